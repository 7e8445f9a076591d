"""Denoising of T5: lengths, masks and sentinels of span corruption, prefix lengths, decoder-only rows."""

from math import comb
from types import SimpleNamespace
from typing import Any

import numpy as np

from bertjax.config.schema.data import IidDenoising, PrefixLm, SpanCorruption
from bertjax.data.preprocess.decoder_only import to_decoder_only_rows
from bertjax.data.preprocess.denoising import reference
from bertjax.data.preprocess.denoising.batch import denoise_rows
from bertjax.data.preprocess.denoising.rules import DenoisingRules
from bertjax.errors import UserError
from bertjax.verify.runner import Comparisons

DRAWS = 4000


def _tokenizer(vocab_size: int = 32100, extra_ids: int = 100) -> SimpleNamespace:
    """T5's numbers."""
    sentinel_id = lambda number: vocab_size - 1 - number  # noqa: E731
    return SimpleNamespace(vocab_size=vocab_size, eos_id=1, extra_ids=extra_ids, sentinel_id=sentinel_id)


def _rows(rules: DenoisingRules, draws: int, length: int | None = None) -> dict[str, np.ndarray]:
    """The same text, ids 3, 4, 5..., `draws` times."""
    length = length or rules.tokens_length
    text = np.zeros((draws, rules.tokens_length), np.int32)
    text[:, :length] = np.arange(3, 3 + length)
    rows = {"tokens": text, "length": np.full((draws, 1), length, np.int32)}
    return denoise_rows(rows, rules, seed=7, epoch=0, indices=np.arange(draws))


def _hidden(rows: dict[str, np.ndarray], length: int) -> np.ndarray:
    """Which tokens of that text are missing in the inputs: bool [draws, length]."""
    there = np.zeros((len(rows["input_ids"]), 40000), bool)
    there[np.arange(len(there))[:, None], rows["input_ids"]] = True
    return ~there[:, 3 : 3 + length]


def span_lengths() -> Comparisons:
    table = {
        32: (34, 8, 5, 2), 64: (70, 14, 10, 3), 128: (141, 29, 21, 7), 256: (284, 58, 43, 14), 384: (426, 86, 64, 21),
        512: (568, 114, 85, 28), 1024: (1137, 229, 171, 57), 2048: (2274, 456, 341, 114),
    }  # fmt: skip
    for length, expected in table.items():
        yield f"{length} tokens", tuple(reference.span_lengths(length, 0.15, 3.0)), expected
    upstream = {(64, 0.2, 2.0): (70, 22), (64, 0.2, 1.0): (63, 27)}
    variants = {
        (512, 0.15, 2.0): (552, 126), (512, 0.15, 5.0): (581, 105), (512, 0.15, 10.0): (591, 99),
        (512, 0.1, 3.0): (548, 74), (512, 0.25, 3.0): (614, 206),
    }  # fmt: skip
    for arguments, pair in (upstream | variants).items():
        yield f"length, density, mean {arguments}", tuple(reference.span_lengths(*arguments))[:2], pair
    # Density 0.5 by hand: 11 tokens hide round(5.5) = 6 in 6 spans; inputs 12, targets 13: one token less.
    yield "density 0.5", tuple(reference.span_lengths(12, 0.5, 1.0))[:2], (10, 12)


def noise_rounding() -> Comparisons:
    """random_spans_noise_mask rounds float32, numpy and Python float64."""
    lengths = np.arange(4, 4097)  # shorter ones have one noise token by rule
    differ = lengths[reference.noise_counts(lengths, 0.15, 3.0)[0] != np.rint(lengths * 0.15)]
    yield "lengths up to 4096 where float64 counts other noise", len(differ), 39
    yield "the first of them", differ[:4].tolist(), [190, 350, 390, 670]
    yield "568 tokens", [int(count) for count in reference.noise_counts(568, 0.15, 3.0)], [85, 28]
    yield "one token", [int(count) for count in reference.noise_counts(1, 0.15, 3.0)], [1, 1]
    rng = np.random.default_rng(0)
    mask = reference.random_spans_noise_mask(32, 0.25, 2.0, rng)
    yield "32 tokens at 0.25, mean 2: noise, spans", [int(mask.sum()), _runs(mask)], [8, 4]
    yield "one token is text", reference.random_spans_noise_mask(1, 0.15, 3.0, rng).tolist(), [False]
    yield "five tokens", reference.random_spans_noise_mask(5, 0.15, 3.0, rng).tolist(), [False] * 4 + [True]
    yield "density 0", int(reference.random_spans_noise_mask(9, 0.0, 3.0, rng).sum()), 0


def _runs(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask[1:] & ~mask[:-1]) + mask[0])


def span_masks() -> Comparisons:
    """Compare single texts and batches."""
    rng = np.random.default_rng(1)
    rules = DenoisingRules.from_options(SpanCorruption(), _tokenizer())
    found = {
        "one by one": np.stack([reference.random_spans_noise_mask(568, 0.15, 3.0, rng) for _ in range(DRAWS)]),
        "batches": _hidden(_rows(rules, DRAWS), 568),
    }
    last_ten = [0.15, 0.16, 0.17, 0.19, 0.23, 0.28, 0.35, 0.47, 0.67, 1.0]
    for how, masks in found.items():
        yield f"{how}: noise tokens", np.unique(masks.sum(axis=1)).tolist(), [85]
        runs = np.count_nonzero(masks[:, 1:] & ~masks[:, :-1], axis=1)
        yield f"{how}: spans", np.unique(runs).tolist(), [28]
        yield f"{how}: first and last token hidden", masks[:, [0, -1]].mean(axis=0).tolist(), [0.0, 1.0]
        for place, (share, expected) in enumerate(zip(masks[:, -10:].mean(axis=0), last_ten, strict=True)):
            yield f"{how}: token {place - 10} hidden near {expected}", bool(abs(share - expected) < 0.037), True
    small = SpanCorruption(sequence_length=11, noise_density=0.33, mean_noise_span_length=2.0)
    rules = DenoisingRules.from_options(small, _tokenizer())
    yield "12 tokens at 0.33, mean 2", [rules.tokens_length, rules.target_length], [12, 7]
    kinds, counts = np.unique(_hidden(_rows(rules, DRAWS), 12), axis=0, return_counts=True)
    yield "12 tokens: masks that there are", len(kinds), comb(3, 1) * comb(7, 1)
    statistic = float(((counts - DRAWS / 21) ** 2 / (DRAWS / 21)).sum())
    yield "12 tokens: all equally likely (chi-square, 20 degrees of freedom)", statistic < 45.3, True  # p = 0.001


def sentinels() -> Comparisons:
    tokens = np.arange(10, 16)
    mask = np.array([True, True, False, False, True, False])
    ids = np.arange(999, 899, -1)
    found = reference.noise_span_to_unique_sentinel(tokens, mask, ids).tolist()
    yield "noise to sentinels", found, [999, 12, 13, 998, 15]
    found = reference.nonnoise_span_to_unique_sentinel(tokens, mask, ids).tolist()
    yield "text to sentinels", found, [10, 11, 999, 14, 998]
    yield "noise tokens", reference.noise_token_to_sentinel(tokens, mask, 999).tolist(), [999, 999, 12, 13, 999, 15]
    yield "without noise", reference.drop_noise_tokens(tokens, mask).tolist(), [12, 13, 15]
    yield "without text", reference.drop_nonnoise_tokens(tokens, mask).tolist(), [10, 11, 14]
    rows = _rows(DenoisingRules.from_options(SpanCorruption(), _tokenizer()), 1)
    inputs, targets = rows["input_ids"][0], rows["target_ids"][0]
    descending = list(range(32099, 32099 - 28, -1))
    yield "sentinels of the inputs", inputs[inputs >= 32000].tolist(), descending
    yield "sentinels of the targets", targets[targets >= 32000].tolist(), descending
    yield "targets begin with <extra_id_0>", int(targets[0]), 32099
    yield "targets end with text and EOS", [bool(targets[-2] < 32000), int(targets[-1])], [True, 1]
    yield "inputs end with a sentinel and EOS", inputs[-2:].tolist(), [descending[-1], 1]
    for length, expected in {1809: 100, 1810: 101, 2048: 114}.items():
        yield f"{length} tokens: sentinels needed", _sentinels_needed(length), expected


def _sentinels_needed(length: int) -> int:
    """The smallest number of sentinels that the rules accept."""
    for extra_ids in range(90, 120):
        try:
            DenoisingRules.from_options(SpanCorruption(sequence_length=length), _tokenizer(extra_ids=extra_ids))
        except UserError:
            continue
        return extra_ids
    return -1


def prefix_lengths() -> Comparisons:
    """Uniform from 1 to one less than the text: within five standard deviations."""
    for density, shortest in {0.5: 1, 0.25: 255}.items():  # round((1 - 2 * 0.25) * 510) = 255
        rules = DenoisingRules.from_options(PrefixLm(sequence_length=512, noise_density=density), _tokenizer())
        found = _rows(rules, DRAWS)["segment_ids"].sum(axis=1) - 1
        near = [bool(found.min() < shortest + 9), int(found.max()) > 501]
        yield f"density {density}: inside its bounds", near, [True, True]
        yield f"density {density}: bounds", [int(b) for b in reference.prefix_bounds(511, density)], [shortest, 510]
        outside = np.count_nonzero((found < shortest) | (found > 510))
        yield f"density {density}: lengths outside them", int(outside), 0
        spread = (511 - shortest) / 12**0.5 / DRAWS**0.5
        yield f"density {density}: mean", bool(abs(found.mean() - (510 + shortest) / 2) < 5 * spread), True
    rules = DenoisingRules.from_options(PrefixLm(), _tokenizer())
    yield "two tokens", _rows(rules, 1, length=2)["input_ids"][0, :3].tolist(), [3, 1, 0]
    yield "one token: no inputs", _rows(rules, 1, length=1)["input_ids"][0, :2].tolist(), [1, 0]


def iid_rates() -> Comparisons:
    """objectives/iid_15_r10s90_f.gin: 15% hidden, a tenth of them as random ids from 3 on; the target is the text."""
    rules = DenoisingRules.from_options(IidDenoising(), _tokenizer())
    rows = _rows(rules, 1000)
    inputs, text = rows["input_ids"][:, :511], rows["target_ids"][:, :511]
    changed = inputs != text
    count = changed.size
    yield "targets", [text[0, 0], text[0, -1], int(rows["target_ids"][0, 511])], [3, 513, 1]
    for what, share, expected in (
        ("mask tokens", np.mean(inputs == 32099), 0.15 * 0.9),
        ("random tokens", np.mean(changed & (inputs != 32099)), 0.15 * 0.1),
    ):
        spread = (expected * (1 - expected) / count) ** 0.5
        yield f"share of {what}", bool(abs(share - expected) < 5 * spread), True
    yield "smallest random id", bool(inputs[changed].min() >= 3), True


def decoder_only_rows() -> Comparisons:
    """The packed example of PrefixLMFeatureConverter."""
    rows: dict[str, Any] = {
        "input_ids": [7, 8, 5, 1, 8, 4, 9, 3, 1, 0], "segment_ids": [1, 1, 1, 1, 2, 2, 2, 2, 2, 0],
        "positions": [0, 1, 2, 3, 0, 1, 2, 3, 4, 0], "target_ids": [3, 9, 1, 4, 1],
        "target_segment_ids": [1, 1, 1, 2, 2], "target_positions": [0, 1, 2, 0, 1], "target_weights": [1.0] * 5,
    }  # fmt: skip
    fused = to_decoder_only_rows({name: np.array([values]) for name, values in rows.items()})
    expected = {
        "target_ids": [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0],
        "target_weights": [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0],
        "target_positions": [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0],
        "target_segment_ids": [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0],
        "prefix_mask": [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0],
    }
    for name, values in expected.items():
        yield name, fused[name][0].tolist(), values
