"""Whole batches against the rules of one text, and the promises about places in the stream."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.loading.load import load
from bertjax.config.schema.data import CausalLm, Deshuffling, IidDenoising, PrefixLm, SpanCorruption
from bertjax.data.preprocess.denoising.batch import denoise_rows
from bertjax.data.preprocess.denoising.reference import noise_counts, random_spans_noise_mask
from bertjax.data.preprocess.denoising.rules import DenoisingRules
from bertjax.data.tokenizers.byte_level import ByteTokenizer
from bertjax.errors import UserError

EOS = 1


def tokenizer(vocab_size: int = 1000, extra_ids: int = 100) -> SimpleNamespace:
    return SimpleNamespace(
        vocab_size=vocab_size, eos_id=EOS, unk_id=2, extra_ids=extra_ids,
        sentinel_id=lambda number: vocab_size - 1 - number,
        encode_batch=lambda texts: [[3 + ord(letter) for letter in text] for text in texts],
    )  # fmt: skip


SENTINELS = [999 - number for number in range(100)]
KINDS: dict[str, Any] = {
    "spans": SpanCorruption(sequence_length=40),
    "turned spans": SpanCorruption(sequence_length=40, random_roll=True),
    "long spans": SpanCorruption(sequence_length=40, noise_density=0.5, mean_noise_span_length=4.0),
    "bert": IidDenoising(sequence_length=40),
    "mass": IidDenoising(sequence_length=40, style="mass"),
    "replace_spans": IidDenoising(sequence_length=40, style="replace_spans", target_length=41),
    "drop": IidDenoising(sequence_length=40, style="drop", target_length=41),
    "deshuffling": Deshuffling(sequence_length=40),
    "prefix_lm": PrefixLm(sequence_length=40),
    "causal_lm": CausalLm(sequence_length=40),
}


def texts(lengths: list[int], width: int) -> dict[str, np.ndarray]:
    """Rows of different ids of text, 3..899."""
    rows = {"tokens": np.zeros((len(lengths), width), np.int32), "length": np.array(lengths, np.int32)[:, None]}
    for row, length in enumerate(lengths):
        rows["tokens"][row, :length] = 3 + (np.arange(length) + 50 * row) % 897
    return rows


def made(kind: str, lengths: list[int], **place: Any) -> tuple[DenoisingRules, dict[str, np.ndarray], dict]:
    rules = DenoisingRules.from_options(KINDS[kind], tokenizer())
    rows = texts([min(length, rules.tokens_length) for length in lengths], rules.tokens_length)
    place = {"seed": 0, "epoch": 0, "indices": np.arange(len(lengths))} | place
    return rules, rows, denoise_rows(rows, rules, **place)


def sides(out: dict[str, np.ndarray], row: int) -> tuple[list[int], list[int]]:
    """Inputs and targets without EOS and padding, which are checked."""
    found = []
    for name in ("", "target_"):
        ids, segments, positions = (out[f"{prefix}{what}"][row] for prefix, what in (
            (name or "input_", "ids"), (name, "segment_ids"), (name, "positions")))  # fmt: skip
        size = int(segments.sum())
        assert segments.tolist() == [1] * size + [0] * (len(ids) - size)
        assert positions.tolist() == list(range(size)) + [0] * (len(ids) - size)
        assert ids[size - 1] == EOS and not ids[size:].any()
        found.append(ids[: size - 1].tolist())
    assert out["target_weights"][row].tolist() == out["target_segment_ids"][row].tolist()
    return found[0], found[1]


def pieces(side: list[int]) -> tuple[list[int], list[list[int]]]:
    """Its sentinels, and the text before, between and behind them."""
    found: list[list[int]] = [[]]
    for token in side:
        if token in SENTINELS:
            found.append([])
        else:
            found[-1].append(token)
    return [token for token in side if token in SENTINELS], found


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)
seeds = st.integers(0, 2**63)


@given(lengths, seeds, st.sampled_from(["spans", "turned spans", "long spans", "replace_spans"]))
def test_spans_restore_the_text_and_sentinels_descend(lengths: list[int], seed: int, kind: str):
    _, rows, out = made(kind, lengths, seed=seed)
    for row in range(len(lengths)):
        text = rows["tokens"][row, : rows["length"][row, 0]].tolist()
        inputs, targets = sides(out, row)
        (hidden, kept), (shown, lost) = pieces(inputs), pieces(targets)
        assert hidden == SENTINELS[: len(hidden)] and shown == SENTINELS[: len(shown)]
        if inputs[0] == SENTINELS[0]:  # noise first: the targets begin with it
            turns = [part for n in range(len(lost)) for part in (lost[n], kept[n + 1] if n + 1 < len(kept) else [])]
        else:
            turns = [part for n in range(len(kept)) for part in (kept[n], lost[n + 1] if n + 1 < len(lost) else [])]
        assert [token for part in turns for token in part] == text


@given(lengths, seeds, st.sampled_from(["spans", "long spans"]))
def test_spans_count_as_the_reference(lengths: list[int], seed: int, kind: str):
    rules, rows, out = made(kind, lengths, seed=seed)
    noise, count = noise_counts(rows["length"][:, 0], rules.options.noise_density, rules.options.mean_noise_span_length)
    for row, length in enumerate(rows["length"][:, 0]):
        inputs, targets = sides(out, row)
        if length == 1:
            assert inputs == rows["tokens"][row, :1].tolist() and targets == SENTINELS[:1]
            continue
        assert len(inputs) == length - noise[row] + count[row] and len(targets) == noise[row] + count[row]
        assert inputs[0] not in SENTINELS and inputs[-1] == SENTINELS[count[row] - 1]
        assert targets[0] == SENTINELS[0] and targets[-1] not in SENTINELS


@given(lengths, seeds)
def test_the_other_objectives_keep_what_they_should(lengths: list[int], seed: int):
    found = {kind: made(kind, lengths, seed=seed) for kind in ("bert", "mass", "drop", "deshuffling", "prefix_lm")}
    for row in range(len(lengths)):
        for kind, (_, rows, out) in found.items():
            text = rows["tokens"][row, : rows["length"][row, 0]].tolist()
            inputs, targets = sides(out, row)
            if kind in ("bert", "mass", "deshuffling"):
                assert targets == text and len(inputs) == len(text)
            if kind == "mass":
                assert all(token in (was, SENTINELS[0]) for token, was in zip(inputs, text, strict=True))
            if kind == "deshuffling":
                assert sorted(inputs) == sorted(text)
            if kind == "drop":  # no id is there twice
                assert inputs == [t for t in text if t not in targets] and targets == [t for t in text if t in targets]
            if kind == "prefix_lm":
                assert inputs + targets == text and targets and (inputs or len(text) == 1)


def test_a_causal_language_model_reads_the_text_as_it_is():
    rules, rows, out = made("causal_lm", [40, 7])
    assert rules.tokens_length == rules.target_length == 40
    real = np.arange(40) < rows["length"]
    np.testing.assert_array_equal(out["target_ids"], rows["tokens"])
    np.testing.assert_array_equal(out["target_segment_ids"], real)
    np.testing.assert_array_equal(out["target_weights"], real)
    np.testing.assert_array_equal(out["target_positions"], np.arange(40) * real)
    assert not out["prefix_mask"].any() and out["target_weights"].dtype == np.float32


@settings(max_examples=30)
@given(st.sampled_from(sorted(KINDS)), lengths, seeds, st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_a_row_is_the_same_alone_and_in_any_batch(kind: str, lengths: list[int], seed: int, epoch: int, rng: Any):
    indices = np.array([rng.randrange(2**40) for _ in lengths])
    epochs = np.array([epoch + rng.randrange(3) for _ in lengths])
    rules, rows, together = made(kind, lengths, seed=seed, epoch=epochs, indices=indices)
    for row in rng.sample(range(len(lengths)), min(4, len(lengths))):
        alone = {name: values[row : row + 1] for name, values in rows.items()}
        found = denoise_rows(alone, rules, seed=seed, epoch=int(epochs[row]), indices=[indices[row]])
        for name, values in found.items():
            np.testing.assert_array_equal(values[0], together[name][row])
            assert values.dtype == together[name].dtype


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "causal_lm"])
def test_every_epoch_corrupts_anew(kind: str):
    first, again, other, elsewhere = (
        made(kind, [60] * 20, **place)[2]["input_ids"]
        for place in ({}, {}, {"epoch": 1}, {"indices": np.arange(20) + 100})
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=1).all() and (first != elsewhere).any(axis=1).mean() > 0.8


def test_masks_are_as_those_of_one_text():
    """Where noise stands, and the order of shuffled tokens: shares of 4,000 rows within five standard deviations."""
    draws, rng = 4000, np.random.default_rng(0)
    options = SpanCorruption(sequence_length=24, noise_density=0.3, mean_noise_span_length=2.0)
    rules = DenoisingRules.from_options(options, tokenizer())
    length = rules.tokens_length
    rows = {"tokens": np.tile(np.arange(3, 3 + length, dtype=np.int32), (draws, 1)),
            "length": np.full((draws, 1), length, np.int32)}  # fmt: skip
    for roll in (False, True):
        rules = replace(rules, options=options.model_copy(update={"random_roll": roll}), target_length=40)
        out = denoise_rows(rows, rules, seed=1, epoch=0, indices=np.arange(draws))
        hidden = np.stack([~np.isin(np.arange(3, 3 + length), row) for row in out["input_ids"]])
        expected = np.stack([random_spans_noise_mask(length, 0.3, 2.0, rng, roll) for _ in range(draws)])
        for found, want in ((hidden, expected), (hidden[:, :-1] & hidden[:, 1:], expected[:, :-1] & expected[:, 1:])):
            p = want.mean(axis=0)
            assert (np.abs(found.mean(axis=0) - p) <= 5 * (2 * p * (1 - p) / draws) ** 0.5 + 1e-9).all()
    rules = DenoisingRules.from_options(Deshuffling(sequence_length=length + 1), tokenizer())
    out = denoise_rows(rows, rules, seed=1, epoch=0, indices=np.arange(draws))
    places = np.stack([np.mean(out["input_ids"][:, :length] == token, axis=0) for token in range(3, 3 + length)])
    assert np.abs(places - 1 / length).max() < 5.5 * (1 / length / draws) ** 0.5


def test_random_targets_have_room_and_too_long_ones_lose_their_end():
    for style, reference in (("drop", 104), ("replace_spans", 192)):  # objectives/iid_15_d_d.gin and iid_15_u_u.gin
        rules = DenoisingRules.from_options(IidDenoising(style=style), tokenizer(32100))  # type: ignore[arg-type]
        assert reference <= rules.target_length <= reference + 10
        rows = texts([511] * 2000, 511)
        out = denoise_rows(rows, rules, seed=2, epoch=0, indices=np.arange(2000))
        longest = out["target_segment_ids"].sum(axis=1).max()
        assert reference - 20 < longest <= rules.target_length
        short = replace(rules, target_length=40)
        cut = denoise_rows(rows, short, seed=2, epoch=0, indices=np.arange(2000))
        np.testing.assert_array_equal(cut["target_ids"][:, :39], out["target_ids"][:, :39])
        assert (cut["target_ids"][:, 39] == EOS).all()


def test_runs_beyond_the_last_sentinel_stay_text():
    rules = DenoisingRules.from_options(
        IidDenoising(sequence_length=64, style="replace_spans", noise_density=0.5), tokenizer()
    )
    few = replace(rules, target_length=64, sentinels=rules.sentinels[:3])
    rows = texts([63] * 300, 63)
    out = denoise_rows(rows, few, seed=3, epoch=0, indices=np.arange(300))
    for row in range(300):
        inputs, targets = sides(out, row)
        assert len(pieces(inputs)[0]) in (2, 3) and len(pieces(targets)[0]) == 3
        assert sorted(t for t in inputs + targets if t < 900) == sorted(rows["tokens"][row].tolist())


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match="needs 101 sentinels and the tokenizer has 100"):
        DenoisingRules.from_options(SpanCorruption(sequence_length=1810), tokenizer(32100))
    with pytest.raises(UserError, match="target_length: 113 is too short.* need 114"):
        DenoisingRules.from_options(SpanCorruption(target_length=113), tokenizer(32100))
    assert DenoisingRules.from_options(SpanCorruption(target_length=128), tokenizer(32100)).target_length == 128
    with pytest.raises(UserError, match="tokenizer.kind: sentencepiece"):
        DenoisingRules.from_options(SpanCorruption(), SimpleNamespace(vocab_size=10))  # type: ignore[arg-type]
    rules = DenoisingRules.from_options(CausalLm(), tokenizer(extra_ids=0))
    with pytest.raises(ValueError, match="too long"):
        denoise_rows(texts([5], 70_000), rules, seed=0, epoch=0, indices=[0])


PREFIX = "[NLU]"  # five tokens of the tokenizer above


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "causal_lm"])
def test_a_prefix_comes_before_inputs_that_are_as_without_it(kind: str):
    options = KINDS[kind]
    with_prefix = options.model_copy(update={"prefix": PREFIX})
    shorter = options.model_copy(update={"sequence_length": options.sequence_length - len(PREFIX)})
    rules, plain = (DenoisingRules.from_options(each, tokenizer()) for each in (with_prefix, shorter))
    widths = DenoisingRules.from_options(options, tokenizer())
    assert (rules.tokens_length, rules.target_length) == (plain.tokens_length, widths.target_length)
    rows = texts([rules.tokens_length, 1, 9, 20], rules.tokens_length)
    found, expected = (
        denoise_rows(rows, each, seed=5, epoch=1, indices=np.arange(4))
        for each in (rules, replace(plain, target_length=rules.target_length))
    )
    assert found["input_ids"].shape == (4, options.sequence_length)
    for row in range(4):
        (inputs, targets), (bare, same) = sides(found, row), sides(expected, row)
        assert inputs == [3 + ord(letter) for letter in PREFIX] + bare and targets == same


def test_the_rows_of_ul2():
    """configs/t5/pretrain_ul2_base.yaml: table 1 of arXiv 2205.05131 in one batch, with the vocabulary's sentinels."""
    config = load(Path(__file__).resolve().parents[2] / "configs/t5/pretrain_ul2_base.yaml")
    ids = tokenizer(32128, config.tokenizer.extra_ids)
    table = {  # prefix, share of the text that is hidden, mean length of a span: 89 is one span of 15 % of 594 tokens
        "r_3_15": ("[NLU]", 0.15, 3), "r_8_15": ("[NLU]", 0.15, 8), "x_3_50": ("[NLG]", 0.5, 3),
        "x_8_50": ("[NLG]", 0.5, 8), "x_64_50": ("[NLG]", 0.5, 64), "x_64_15": ("[NLG]", 0.15, 89),
        "s": ("[S2S]", 0.25, None),
    }  # fmt: skip
    assert config.tasks.keys() == table.keys()
    for name, (prefix, share, length) in table.items():
        rules = DenoisingRules.from_options(config.tasks[name].preprocess, ids)
        out = denoise_rows(
            texts([rules.tokens_length] * 200, rules.tokens_length), rules, seed=0, epoch=0, indices=np.arange(200)
        )
        assert out["input_ids"].shape == out["target_ids"].shape == (200, 512)
        assert {"".join(chr(token - 3) for token in row[:5]) for row in out["input_ids"]} == {prefix}
        hidden = ((out["target_ids"] > EOS) & (out["target_ids"] < 900)).sum(axis=1)  # text is below 900
        spans = (out["target_ids"] >= 32000).sum(axis=1)
        assert hidden.mean() / rules.tokens_length == pytest.approx(share, abs=0.002 if length else 0.03)
        if length is None:
            assert not spans.any()
        else:
            assert hidden.mean() / spans.mean() == pytest.approx(length, rel=0.03)
            assert out["segment_ids"].sum(axis=1).min() >= 511, "inputs are full"
    rates = config.stages[0].data.mixture  # type: ignore[union-attr]
    groups = [sum(rate for name, rate in rates.items() if name[0] == kind) for kind in "rxs"]
    assert groups == pytest.approx([0.4, 0.4, 0.2])


def test_a_prefix_that_leaves_no_room():
    with pytest.raises(UserError, match="preprocess.prefix: 'x+' is 33 tokens, which leaves no room"):
        DenoisingRules.from_options(SpanCorruption(sequence_length=40, prefix="x" * 33), tokenizer())


def test_no_rows():
    for kind in KINDS:
        rules, _, out = made(kind, [])
        assert all(len(values) == 0 for values in out.values()), kind


@pytest.mark.parametrize("ids", [[], [2], [2, 2]])
def test_a_prefix_that_the_tokenizer_does_not_know_is_refused(ids):
    unknown = SimpleNamespace(**vars(tokenizer()) | {"encode_batch": lambda texts: [ids] * len(texts)})
    with pytest.raises(UserError, match=r"^preprocess.prefix: the tokenizer has no piece for '\[NLU\]'; take another"):
        DenoisingRules.from_options(KINDS["prefix_lm"].model_copy(update={"prefix": PREFIX}), unknown)


@pytest.mark.parametrize("extra_ids", [125, 300])
def test_sentinels_of_bytes_end_at_256(extra_ids):
    rules = DenoisingRules.from_options(SpanCorruption(sequence_length=64), ByteTokenizer(extra_ids))
    assert rules.sentinels.tolist() == list(range(258, 258 - min(extra_ids, 256), -1))
    for length, advice in ((1000, "set tokenizer.extra_ids: [0-9]+ or shorten it"), (8192, "shorten it")):
        needed = SpanCorruption(sequence_length=length, mean_noise_span_length=1)
        if length == 8192 or extra_ids == 125:
            with pytest.raises(UserError, match=f"the tokenizer has {min(extra_ids, 256)}; {advice}$"):
                DenoisingRules.from_options(needed, ByteTokenizer(extra_ids))
