"""SQuAD windows, answers and scores."""

from importlib import resources
from typing import Any

import numpy as np

from bertjax.config.schema.data import SpanQa
from bertjax.config.schema.sources import SquadFiles
from bertjax.data.preprocess import span_qa
from bertjax.data.sources.squad import read_squad
from bertjax.data.tokenizers import load
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.evaluation.inference import span_decoding
from bertjax.evaluation.metrics import squad
from bertjax.verify.runner import GOLDENS, Comparisons, load_golden


def _tiny() -> tuple[list[span_qa.Example], Tokenizer]:
    with resources.as_file(GOLDENS) as folder:
        examples = read_squad(SquadFiles(files=["squad_tiny.json"]), folder)
        return examples, load.from_file(folder / "squad_vocab.txt")


def _window_options(file: dict[str, Any]) -> SpanQa:
    sizes = {name: file[name] for name in ("sequence_length", "doc_stride", "max_query_length")}
    return SpanQa(profile="bert", **sizes)


def training_windows() -> Comparisons:
    file, (examples, tokenizer) = load_golden("squad_features.json"), _tiny()
    rows = span_qa.training_features(examples, tokenizer, _window_options(file))
    yield "windows", len(rows), len(file["training"])
    for number, (row, want) in enumerate(zip(rows, file["training"], strict=True)):
        used = len(want["ids"])
        yield f"window {number}: ids", row["input_ids"][:used].tolist(), want["ids"]
        yield f"window {number}: types", "".join(map(str, row["token_type_ids"])), want["types"]
        found = [int(row["start_positions"][0]), int(row["end_positions"][0])]
        yield f"window {number}: answer", found, [want["start"], want["end"]]


def evaluation_windows() -> Comparisons:
    file, (examples, tokenizer) = load_golden("squad_features.json"), _tiny()
    features = span_qa.evaluation_features(examples, tokenizer, _window_options(file))
    yield "windows", len(features), len(file["evaluation"])
    for number, want in enumerate(file["evaluation"]):
        inside = np.flatnonzero(features.token_to_word[number] >= 0)
        yield f"window {number}: question", examples[features.example_index[number]].id, want["id"]
        yield f"window {number}: words", features.token_to_word[number, inside].tolist(), want["words"]
        flags = "".join(str(int(flag)) for flag in features.max_context[number, inside])
        yield f"window {number}: max context", flags, want["max_context"]


def predictions() -> Comparisons:
    examples, tokenizer = _tiny()
    features = span_qa.evaluation_features(examples, tokenizer, _window_options(load_golden("squad_features.json")))
    for run in load_golden("squad_predictions.json")["runs"]:
        texts, _, odds = span_decoding.predict_answers(
            examples, features, *reference_logits(run, features.token_to_word.shape), n_best=run["n_best"],
            max_answer_length=run["max_answer_length"], null_score_diff_threshold=run["threshold"],
            version_2=run["version_2"],
        )  # fmt: skip
        expected = run["predictions"]  # None where the reference stopped: no span was valid, so no answer
        yield f"logits {run['seed']}: answers", texts, {key: text or "" for key, text in expected.items()}
        found = {key: value for key, value in odds.items() if expected[key] is not None}
        yield f"logits {run['seed']}: null odds", found, run["null_odds"]


def reference_logits(run: dict[str, Any], shape: tuple[int, ...]) -> list[np.ndarray]:
    """The numbers that the reference was given: see `source` in the file."""
    draw, made = np.random.RandomState(run["seed"]), []
    for _ in range(2):
        values = draw.randn(*shape) * 3
        if run["steps"]:
            values = np.round(values * run["steps"]) / run["steps"]
        values[:, 0] += run["null_boost"]
        made.append(values.astype(np.float32))
    return made


def answer_texts() -> Comparisons:
    file = load_golden("squad_texts.json")
    for predicted, original, lowercase, want in file["final"]:
        found = span_decoding.final_text(predicted, original.split(" "), lowercase)
        yield f"{predicted!r} in {original!r}", found, want
    for text, lowercase, want in file["basic"]:
        yield f"tokens of {text!r}", span_decoding.basic_tokens(text, lowercase), want


def squad_scores() -> Comparisons:
    file, tiny = load_golden("squad_scores.json"), load_golden("squad_tiny.json")
    for case in file["cases"]:
        gold = tiny if case["version_2"] else answerable_only(tiny)
        found = squad.score(gold, case["predictions"], case["na_prob"], case["na_prob_thresh"])
        yield case["name"], {key: found.get(key) for key in case["scores"]}, case["scores"]
    for text, want in file["normalized"]:
        yield f"normal form of {text!r}", squad.normalize(text), want


def answerable_only(squad_2: dict[str, Any]) -> dict[str, Any]:
    """The questions that have answers, as a v1.1 file."""

    def keep(paragraph: dict[str, Any]) -> dict[str, Any]:
        questions = [{k: q[k] for k in ("id", "question", "answers")} for q in paragraph["qas"] if q["answers"]]
        return paragraph | {"qas": questions}

    articles = [article | {"paragraphs": list(map(keep, article["paragraphs"]))} for article in squad_2["data"]]
    return squad_2 | {"version": "1.1", "data": articles}
