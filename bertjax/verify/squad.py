"""SQuAD windows, answers and scores."""

from importlib import resources
from typing import Any

import numpy as np

from bertjax.config.data_schema import SpanQa, SquadFiles
from bertjax.data import qa, tokenizers
from bertjax.data.questions import read_squad
from bertjax.evaluation import answers, squad
from bertjax.verify.table import GOLDENS, Triples, golden


def _tiny() -> tuple[list[qa.Example], tokenizers.Tokenizer]:
    with resources.as_file(GOLDENS) as folder:
        examples = read_squad(SquadFiles(files=["squad_tiny.json"]), folder)
        return examples, tokenizers.from_file(folder / "squad_vocab.txt")


def _windows_of(file: dict[str, Any]) -> SpanQa:
    sizes = {name: file[name] for name in ("sequence_length", "doc_stride", "max_query_length")}
    return SpanQa(profile="bert", **sizes)


def training_windows() -> Triples:
    file, (examples, tokenizer) = golden("squad_features.json"), _tiny()
    rows = qa.training_features(examples, tokenizer, _windows_of(file))
    yield "windows", len(rows), len(file["training"])
    for number, (row, want) in enumerate(zip(rows, file["training"], strict=True)):
        used = len(want["ids"])
        yield f"window {number}: ids", row["input_ids"][:used].tolist(), want["ids"]
        yield f"window {number}: types", "".join(map(str, row["token_type_ids"])), want["types"]
        found = [int(row["start_positions"][0]), int(row["end_positions"][0])]
        yield f"window {number}: answer", found, [want["start"], want["end"]]


def evaluation_windows() -> Triples:
    file, (examples, tokenizer) = golden("squad_features.json"), _tiny()
    features = qa.evaluation_features(examples, tokenizer, _windows_of(file))
    yield "windows", len(features), len(file["evaluation"])
    for number, want in enumerate(file["evaluation"]):
        inside = np.flatnonzero(features.token_to_word[number] >= 0)
        yield f"window {number}: question", examples[features.example_index[number]].id, want["id"]
        yield f"window {number}: words", features.token_to_word[number, inside].tolist(), want["words"]
        flags = "".join(str(int(flag)) for flag in features.max_context[number, inside])
        yield f"window {number}: max context", flags, want["max_context"]


def predictions() -> Triples:
    examples, tokenizer = _tiny()
    features = qa.evaluation_features(examples, tokenizer, _windows_of(golden("squad_features.json")))
    for run in golden("squad_predictions.json")["runs"]:
        texts, _, odds = answers.predict_answers(
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


def answer_texts() -> Triples:
    file = golden("squad_texts.json")
    for predicted, original, lowercase, want in file["final"]:
        yield f"{predicted!r} in {original!r}", answers.final_text(predicted, original.split(" "), lowercase), want
    for text, lowercase, want in file["basic"]:
        yield f"tokens of {text!r}", answers.basic_tokens(text, lowercase), want


def squad_scores() -> Triples:
    file, tiny = golden("squad_scores.json"), golden("squad_tiny.json")
    for case in file["cases"]:
        gold = tiny if case["version_2"] else answerable(tiny)
        found = squad.score(gold, case["predictions"], case["na_prob"], case["na_prob_thresh"])
        yield case["name"], {key: found.get(key) for key in case["scores"]}, case["scores"]
    for text, want in file["normalized"]:
        yield f"normal form of {text!r}", squad.normalize(text), want


def answerable(squad_2: dict[str, Any]) -> dict[str, Any]:
    """The questions that have answers, as a v1.1 file."""
    articles = [
        article
        | {
            "paragraphs": [
                paragraph
                | {"qas": [{k: q[k] for k in ("id", "question", "answers")} for q in paragraph["qas"] if q["answers"]]}
                for paragraph in article["paragraphs"]
            ]
        }
        for article in squad_2["data"]
    ]
    return squad_2 | {"version": "1.1", "data": articles}
