"""The table of checks. Each yields (what, found, expected) triples; `verify` compares and counts them.

Expected numbers come from running the reference (the files in `goldens/` name what was run), from its published values,
or from its formula worked out by hand; none is a copy of our own output.
"""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from types import SimpleNamespace
from typing import Any

import numpy as np

from bertjax.config.data_schema import BertPairs, Mixture, SpanQa, SquadFiles
from bertjax.config.schema import ModelConfig, Optimizer, Trainable
from bertjax.data import mixing, qa, tokenizers
from bertjax.data.masking import MaskingRules, mask_rows, mask_tokens
from bertjax.data.pairs import pairs_from_document
from bertjax.data.questions import read_squad
from bertjax.evaluation import answers, squad

GOLDENS = resources.files("bertjax.verify") / "goldens"
Triples = Iterator[tuple[str, Any, Any]]


@dataclass(frozen=True)
class Check:
    """Attributes:
    name: a dotted name; source: the program or paper whose semantics it is; run: yields (what, found, expected).
    """

    name: str
    source: str
    run: Callable[[], Triples]


@dataclass(frozen=True)
class Result:
    """How many values were compared and what differs, one line each."""

    check: Check
    compared: int
    wrong: list[str]

    def as_lines(self) -> list[str]:
        verdict = "FAIL" if self.wrong else "pass"
        head = f"{verdict}  {self.check.name:<28}{self.compared:>4}  {self.check.source}"
        more = [f"      and {len(self.wrong) - 5} more"] if len(self.wrong) > 5 else []
        return [head, *(f"      {line}" for line in self.wrong[:5]), *more]

    def as_dict(self) -> dict[str, Any]:
        about = {"check": self.check.name, "source": self.check.source}
        return about | {"compared": self.compared, "wrong": self.wrong, "passed": not self.wrong}


def verify(check: Check) -> Result:
    compared, wrong = 0, []
    for what, found, expected in check.run():
        compared += 1
        if not agrees(found, expected):
            wrong.append(f"{what}: {str(found)[:80]}, should be {str(expected)[:80]}")
    return Result(check, compared, wrong)


def agrees(found: Any, expected: Any) -> bool:
    """Equal; numbers with a fraction to six digits, inside lists and mappings too."""
    if isinstance(expected, float):
        return isinstance(found, int | float) and math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(expected)
        return same and all(map(agrees, found, expected))
    if isinstance(expected, dict):
        same = isinstance(found, dict) and found.keys() == expected.keys()
        return same and all(agrees(found[key], value) for key, value in expected.items())
    return bool(found == expected)


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


# ---- BERT's data ----------------------------------------------------------------------------------------------------


def _vocabulary(pieces: list[str]) -> SimpleNamespace:
    ids = {name: pieces.index(f"[{name.upper()}]") for name in ("cls", "sep", "mask")}
    continues = np.array([piece.startswith("##") for piece in pieces])
    return SimpleNamespace(vocab_size=len(pieces), is_continuation=continues, **{f"{n}_id": i for n, i in ids.items()})


def _masking_rules(pieces: list[str], **options: Any) -> MaskingRules:
    return MaskingRules.of(BertPairs(**options), _vocabulary(pieces))


def masked_examples() -> Triples:
    file = golden("masking.json")
    for case in file["cases"]:
        options = {name: case[name] for name in ("whole_word_mask", "masked_lm_prob", "max_predictions_per_seq")}
        draw = random.Random(case["seed"])
        found = mask_tokens(case["tokens"], _masking_rules(file["vocabulary"], **options), draw)
        what = f"{len(case['tokens'])} tokens{', whole words' * case['whole_word_mask']}"
        yield what, list(found), [case["output"], case["positions"], case["labels"]]
        yield f"{what}: draws used", draw.random(), case["next_random"]


def prediction_counts() -> Triples:
    rules = _masking_rules(golden("masking.json")["vocabulary"], max_predictions_per_seq=80)
    for length, count in {3: 1, 6: 1, 30: 4, 70: 10, 110: 16, 128: 19, 150: 22, 512: 77}.items():
        yield f"{length} tokens", int(rules.predictions(length)), count
    capped = _masking_rules(golden("masking.json")["vocabulary"])
    yield "512 tokens, 20 at most", int(capped.predictions(512)), 20


def masking_rates() -> Triples:
    """Within four standard deviations; the counts of masked tokens are exact."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(1000))]
    rows, length = 6000, 128
    ids = np.random.default_rng(0).integers(5, len(pieces), (rows, length), dtype=np.int32)
    ids[:, 0], ids[:, [60, length - 1]] = 2, 3
    batch = {"input_ids": ids, "segment_ids": np.ones_like(ids)}
    found = mask_rows(batch, _masking_rules(pieces), seed=1, epoch=0, indices=np.arange(rows))
    yield "masked tokens of 768,000", int(found["masked_weights"].sum()), rows * 19
    picked = np.take_along_axis(found["input_ids"], found["masked_positions"], axis=1)[:, :19]
    original = found["masked_ids"][:, :19]
    shares = {"[MASK]": picked == 4, "kept": picked == original, "another": (picked != 4) & (picked != original)}
    for name, expected in (("[MASK]", 0.8), ("kept", 0.1), ("another", 0.1)):
        share, spread = shares[name].mean(), 4 * math.sqrt(expected * (1 - expected) / picked.size) + 0.1 / len(pieces)
        yield f"{name}: {share:.4f} is {expected} within {spread:.4f}", bool(abs(share - expected) < spread), True


def sentence_pairs() -> Triples:
    file = golden("pairs.json")
    for name, case in file["cases"].items():
        ids = iter(range(100, 100 + sum(map(sum, case["documents"]))))
        made = [[[next(ids) for _ in range(length)] for length in document] for document in case["documents"]]
        corpus = _Lists(made)
        options = BertPairs(sequence_length=case["sequence_length"], short_seq_prob=case["short_seq_prob"])
        draw = random.Random(file["seed"])
        found = [
            [pair.tokens_a[0], pair.tokens_a[-1], pair.tokens_b[0], pair.tokens_b[-1], int(bool(pair.is_random_next))]
            for _ in range(case["passes"])
            for document in range(len(made))
            for pair in pairs_from_document(document, corpus, options, draw)
        ]
        yield f"{name}: {len(case['pairs'])} pairs", found, case["pairs"]
        yield f"{name}: draws used", draw.random(), case["next_random"]


@dataclass(frozen=True)
class _Lists:
    """A corpus in memory."""

    documents: list[list[list[int]]]

    def __len__(self) -> int:
        return len(self.documents)

    def sentences(self, document: int) -> int:
        return len(self.documents[document])

    def tokens(self, document: int, sentence: int) -> list[int]:
        return self.documents[document][sentence]


# ---- models, optimizer, schedule ------------------------------------------------------------------------------------


def parameter_counts() -> Triples:
    from bertjax.models import bert, paths

    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    distil = {"family": "distilbert", "num_hidden_layers": 6, "type_vocab_size": 0}
    for name, sizes, heads, expected in (
        ("BERT-base uncased with pooler", {}, ("pooler",), 109_482_240),
        ("BERT-large uncased with pooler", large, ("pooler",), 335_141_888),
        ("DistilBERT-base uncased", distil, (), 66_362_880),
    ):
        state = paths.flatten(bert.structure(ModelConfig(**sizes), heads)[1])  # type: ignore[arg-type]
        yield name, sum(math.prod(x.shape) for x in state.values()), expected


def activations() -> Triples:
    from bertjax.models.layers import activation

    for x in (-3.0, -1.0, 0.5, 1.0, 2.0):
        erf = x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
        tanh = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        for name, expected in (("gelu", erf), ("gelu_new", tanh)):
            found = float(activation(name, np.float32(x)))  # type: ignore[arg-type]
            yield f"{name}({x})", bool(abs(found - expected) < 1e-6), True


def learning_rates() -> Triples:
    from bertjax.training import optim

    schedule = optim.schedule(Optimizer(learning_rate=1e-4, warmup_steps=10_000), 100_000)
    for step, expected in {
        0: 0.0, 1: 1e-8, 5_000: 5e-5, 9_999: 9.999e-5, 10_000: 9.0e-5, 10_001: 8.9999e-5, 50_000: 5e-5, 99_999: 1e-9,
        100_000: 0.0,
    }.items():  # fmt: skip
        yield f"step {step:,}", float(schedule(np.int32(step))), expected  # type: ignore[arg-type]


def adam_steps() -> Triples:
    """Two steps by hand: m = .9 m + .1 g, v = .999 v + .001 g^2, update = m / (sqrt v + 1e-6) + .01 w where decayed."""
    from bertjax.training import optim

    rule = optim.direction(Optimizer())
    for path, decay in (("layers/0/mlp/output/kernel", 0.01), ("layers/0/mlp/output/bias", 0.0)):
        w, m, v = 0.5, 0.0, 0.0
        params = {path: np.float32(w)}
        slots = rule.init(params)  # type: ignore[arg-type]
        for step, g in enumerate((0.1, -0.2)):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            expected = m / (math.sqrt(v) + 1e-6) + decay * w
            update, slots = rule.update({path: np.float32(g)}, slots, params)  # type: ignore[arg-type]
            found = float(update[path])  # type: ignore[index,call-overload]
            yield f"{path.split('/')[-1]}, step {step}", bool(abs(found - expected) < 2e-6), True


# ---- mixing and unfreezing ------------------------------------------------------------------------------------------

GLUE = {
    "cola": 8551, "sst2": 67349, "mrpc": 3668, "qqp": 363849, "stsb": 5749, "mnli": 392702, "qnli": 104743, "rte": 2490,
}  # fmt: skip
GLUE_RATES: dict[str, tuple[dict[str, float], list[float]]] = {
    "T=1": ({}, [0.00901, 0.07096, 0.00386, 0.38336, 0.00606, 0.41376, 0.11036, 0.00262]),
    "K=2^16": ({"limit": 65536}, [0.03026, 0.2319, 0.01298, 0.2319, 0.02034, 0.2319, 0.2319, 0.00881]),
    "T=2": ({"temperature": 2.0}, [0.04421, 0.12407, 0.02895, 0.28837, 0.03625, 0.29958, 0.15472, 0.02386]),
}


def glue_rates() -> Triples:
    for rule, (options, expected) in GLUE_RATES.items():
        found = mixing.rates(GLUE, Mixture(mixture=list(GLUE), **options))  # type: ignore[arg-type]
        for (task, rate), share in zip(found.items(), expected, strict=True):
            yield f"{rule} {task}", round(rate, 5), share


def unfreezing() -> Triples:
    from bertjax.training import freezing

    starts = [0, 21845, 43690, 65536, 87381, 109226, 131072, 152917, 174762, 196608, 218453, 240298]
    groups = ("embeddings", *(f"layers/{n}" for n in range(12)), "heads")
    plan = freezing.episodes(Trainable(kind="gradual", embeddings="always"), groups, 2**18)
    for number, (episode, start) in enumerate(zip(plan, starts, strict=True)):
        yield f"episode {number} begins", episode.start, start
        top = [f"layers/{n}" for n in range(11 - number, 12)]
        yield f"episode {number} trains", list(episode.groups), ["embeddings", *top, "heads"]
    yield "the end", plan[-1].stop, 2**18


# ---- question answering ---------------------------------------------------------------------------------------------


def _tiny() -> tuple[list[qa.Example], tokenizers.Tokenizer]:
    with resources.as_file(GOLDENS) as folder:
        examples = read_squad(SquadFiles(files=["squad_tiny.json"]), folder)
        return examples, tokenizers.from_file(folder / "squad_vocab.txt")


def _windows_of(file: dict[str, Any]) -> SpanQa:
    return SpanQa(**{name: file[name] for name in ("sequence_length", "doc_stride", "max_query_length")})


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


BERT, OPTIMIZATION = "google-research/bert create_pretraining_data.py", "google-research/bert optimization.py"
RUN_SQUAD = "google-research/bert run_squad.py"
CHECKS = (
    Check("bert.masked_examples", BERT, masked_examples),
    Check("bert.prediction_counts", f"{BERT} under Python 3", prediction_counts),
    Check("bert.masking_rates", "arXiv 1810.04805 section 3.1", masking_rates),
    Check("bert.sentence_pairs", BERT, sentence_pairs),
    Check("bert.parameter_counts", "the released models", parameter_counts),
    Check("bert.activations", "arXiv 1606.08415; google-research/bert modeling.py", activations),
    Check("bert.learning_rates", OPTIMIZATION, learning_rates),
    Check("bert.adam_steps", OPTIMIZATION, adam_steps),
    Check("t5.mixing_rates", "arXiv 1910.10683 section 3.5.2; seqio.mixing_rate_num_examples", glue_rates),
    Check("t5.gradual_unfreezing", "arXiv 1910.10683 section 3.5.1", unfreezing),
    Check("squad.training_windows", RUN_SQUAD, training_windows),
    Check("squad.evaluation_windows", RUN_SQUAD, evaluation_windows),
    Check("squad.predictions", RUN_SQUAD, predictions),
    Check("squad.answer_texts", f"{RUN_SQUAD}, tokenization.py", answer_texts),
    Check("squad.scores", "rajpurkar/SQuAD-explorer evaluate-v1.1.py, evaluate-v2.0.py", squad_scores),
)
