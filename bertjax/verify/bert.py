"""BERT's data, sizes, activations, learning rate and optimizer."""

import math
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from bertjax.config.schema.data import BertPairs
from bertjax.config.schema.model import BertConfig, DistilBertConfig
from bertjax.config.schema.optimizers import AdamW
from bertjax.data.preprocess.masking import MaskingRules, mask_rows, mask_tokens
from bertjax.data.preprocess.sentence_pairs import pairs_from_document
from bertjax.models import registry
from bertjax.models.layers.numerics import activation
from bertjax.training import optimizers
from bertjax.verify.runner import Comparisons, load_golden


def _vocabulary(pieces: list[str]) -> SimpleNamespace:
    ids = {name: pieces.index(f"[{name.upper()}]") for name in ("cls", "sep", "mask")}
    continues = np.array([piece.startswith("##") for piece in pieces])
    return SimpleNamespace(vocab_size=len(pieces), is_continuation=continues, **{f"{n}_id": i for n, i in ids.items()})


def _make_masking_rules(pieces: list[str], **options: Any) -> MaskingRules:
    return MaskingRules.from_options(BertPairs(**options), _vocabulary(pieces))


def masked_examples() -> Comparisons:
    file = load_golden("masking.json")
    for case in file["cases"]:
        options = {name: case[name] for name in ("whole_word_mask", "masked_lm_prob", "max_predictions_per_seq")}
        draw = random.Random(case["seed"])
        found = mask_tokens(case["tokens"], _make_masking_rules(file["vocabulary"], **options), draw)
        what = f"{len(case['tokens'])} tokens{', whole words' * case['whole_word_mask']}"
        yield what, list(found), [case["output"], case["positions"], case["labels"]]
        yield f"{what}: draws used", draw.random(), case["next_random"]


def prediction_counts() -> Comparisons:
    rules = _make_masking_rules(load_golden("masking.json")["vocabulary"], max_predictions_per_seq=80)
    for length, count in {3: 1, 6: 1, 30: 4, 70: 10, 110: 16, 128: 19, 150: 22, 512: 77}.items():
        yield f"{length} tokens", int(rules.num_predictions(length)), count
    capped = _make_masking_rules(load_golden("masking.json")["vocabulary"])
    yield "512 tokens, 20 at most", int(capped.num_predictions(512)), 20


def masking_rates() -> Comparisons:
    """Within four standard deviations; the counts of masked tokens are exact."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(1000))]
    rows, length = 6000, 128
    ids = np.random.default_rng(0).integers(5, len(pieces), (rows, length), dtype=np.int32)
    ids[:, 0], ids[:, [60, length - 1]] = 2, 3
    batch = {"input_ids": ids, "segment_ids": np.ones_like(ids)}
    found = mask_rows(batch, _make_masking_rules(pieces), seed=1, epoch=0, indices=np.arange(rows))
    yield "masked tokens of 768,000", int(found["masked_weights"].sum()), rows * 19
    picked = np.take_along_axis(found["input_ids"], found["masked_positions"], axis=1)[:, :19]
    original = found["masked_ids"][:, :19]
    shares = {"[MASK]": picked == 4, "kept": picked == original, "another": (picked != 4) & (picked != original)}
    for name, expected in (("[MASK]", 0.8), ("kept", 0.1), ("another", 0.1)):
        share, spread = shares[name].mean(), 4 * math.sqrt(expected * (1 - expected) / picked.size) + 0.1 / len(pieces)
        yield f"{name}: {share:.4f} is {expected} within {spread:.4f}", bool(abs(share - expected) < spread), True


def sentence_pairs() -> Comparisons:
    file = load_golden("pairs.json")
    for name, case in file["cases"].items():
        ids = iter(range(100, 100 + sum(map(sum, case["documents"]))))
        made = [[[next(ids) for _ in range(length)] for length in document] for document in case["documents"]]
        corpus = _InMemoryCorpus(made)
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
class _InMemoryCorpus:
    documents: list[list[list[int]]]

    def __len__(self) -> int:
        return len(self.documents)

    def num_sentences(self, document: int) -> int:
        return len(self.documents[document])

    def sentence_tokens(self, document: int, sentence: int) -> list[int]:
        return self.documents[document][sentence]


def parameter_counts() -> Comparisons:
    large = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    for name, model, heads, expected in (
        ("BERT-base uncased with pooler", BertConfig(), ("pooler",), 109_482_240),
        ("BERT-large uncased with pooler", large, ("pooler",), 335_141_888),
        ("DistilBERT-base uncased", DistilBertConfig(num_hidden_layers=6, type_vocab_size=0), (), 66_362_880),
    ):
        state = registry.abstract_params(model, heads)
        yield name, sum(math.prod(x.shape) for x in state.values()), expected


def activations() -> Comparisons:
    for x in (-3.0, -1.0, 0.5, 1.0, 2.0):
        erf = x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
        tanh = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        for name, expected in (("gelu", erf), ("gelu_new", tanh)):
            found = float(activation(name, np.float32(x)))  # type: ignore[arg-type]
            yield f"{name}({x})", bool(abs(found - expected) < 1e-6), True


def learning_rates() -> Comparisons:
    schedule = optimizers.schedule(AdamW(learning_rate=1e-4, warmup_steps=10_000), 100_000)
    for step, expected in {
        0: 0.0, 1: 1e-8, 5_000: 5e-5, 9_999: 9.999e-5, 10_000: 9.0e-5, 10_001: 8.9999e-5, 50_000: 5e-5, 99_999: 1e-9,
        100_000: 0.0,
    }.items():  # fmt: skip
        yield f"step {step:,}", float(schedule(np.int32(step))), expected  # type: ignore[arg-type]


def adam_steps() -> Comparisons:
    """Two steps by hand: m = .9 m + .1 g, v = .999 v + .001 g^2, update = m / (sqrt v + 1e-6) + .01 w where decayed."""
    rule = optimizers.make_transform(AdamW())
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
