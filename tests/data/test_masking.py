"""Masking against numbers from running the reference, and the vectorised path against the rules and the reference."""

import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.data import BertPairs
from bertjax.data.preprocess.masking import MaskingRules, mask_rows, mask_tokens
from bertjax.verify import runner

GOLDEN = runner.load_golden("masking.json")
CLS, SEP, MASK = 2, 3, 4


def vocabulary(size: int, continuations: int) -> SimpleNamespace:
    """[CLS] 2, [SEP] 3, [MASK] 4; the last `continuations` ids are '##' pieces."""
    is_continuation = np.arange(size) >= size - continuations
    return SimpleNamespace(vocab_size=size, cls_id=CLS, sep_id=SEP, mask_id=MASK, is_continuation=is_continuation)


def rules(size: int = 100, continuations: int = 35, **options) -> MaskingRules:
    return MaskingRules.from_options(BertPairs(**options), vocabulary(size, continuations))


def rows_of(examples: list[list[list[int]]], length: int) -> dict[str, np.ndarray]:
    """One packed row for each list of examples."""
    input_ids, segment_ids = np.zeros((2, len(examples), length), np.int32)
    for row, parts in enumerate(examples):
        at = 0
        for number, part in enumerate(parts):
            input_ids[row, at : at + len(part)] = part
            segment_ids[row, at : at + len(part)] = number + 1
            at += len(part)
    return {"input_ids": input_ids, "segment_ids": segment_ids}


def an_example(length: int, rng: random.Random, continues: float = 0.3) -> list[int]:
    first = rng.randint(1, length - 4)
    words = [rng.randint(65, 99) if rng.random() < continues else rng.randint(5, 64) for _ in range(length - 3)]
    return [CLS, *words[:first], SEP, *words[first:], SEP]


# ---- one example ----------------------------------------------------------------------------------------------------


# ---- rows -----------------------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[list[int]]], int]:
    """Up to 5 rows of up to 4 examples, and the row length."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    shape = draw(st.lists(st.lists(st.integers(5, 40), min_size=1, max_size=4), min_size=1, max_size=5))
    continues = draw(st.sampled_from([0.0, 0.3, 0.8]))
    examples = [[an_example(length, rng, continues) for length in row] for row in shape]
    return examples, max(sum(row) for row in shape) + draw(st.integers(0, 9))


@settings(max_examples=150, deadline=None)
@given(batches(), st.booleans(), st.sampled_from([0.1, 0.15, 0.4]), st.integers(1, 20), st.integers(0, 2**63))
def test_rows_obey_the_rules(made: tuple, words: bool, probability: float, most: int, seed: int) -> None:
    examples, length = made
    options = {"masked_lm_prob": probability, "max_predictions_per_seq": most, "whole_word_mask": words}
    rule = rules(sequence_length=max(8, length), pack=True, max_segments=4, **options)
    rows = rows_of(examples, length)
    before = rows["input_ids"].copy()
    masked = mask_rows(rows, rule, seed=seed, epoch=1, indices=np.arange(len(examples)))
    assert (rows["input_ids"] == before).all()  # the stored rows are left alone
    for row, parts in enumerate(examples):
        weights, positions = masked["masked_weights"][row], masked["masked_positions"][row]
        count = int(weights.sum())
        assert weights.tolist() == [1.0] * count + [0.0] * (rule.row_predictions - count)
        assert not positions[count:].any() and not masked["masked_ids"][row, count:].any()
        chosen = positions[:count].tolist()
        assert chosen == sorted(set(chosen))
        assert not np.isin(before[row, chosen], [CLS, SEP]).any() and (rows["segment_ids"][row, chosen] > 0).all()
        restored = masked["input_ids"][row].copy()
        restored[chosen] = masked["masked_ids"][row, :count]
        assert (restored == before[row]).all()
        at = 0
        for part in parts:
            inside = {place - at for place in chosen if at <= place < at + len(part)}
            check_example(part, inside, rule)
            at += len(part)


def check_example(tokens: list[int], masked: set[int], rule: MaskingRules) -> None:
    """The number and, for whole words, the shape of what is masked in one example."""
    candidates = [place for place, token in enumerate(tokens) if token not in (CLS, SEP)]
    wanted = min(rule.max_predictions_per_seq, max(1, round(len(tokens) * rule.masked_lm_prob)))
    if not rule.whole_word_mask:
        assert len(masked) == min(wanted, len(candidates))
        return
    words: list[set[int]] = []
    for place in candidates:
        if words and rule.is_continuation[tokens[place]]:
            words[-1].add(place)
        else:
            words.append({place})
    left_out = [word for word in words if not word & masked]
    assert sum(len(word) for word in words if word <= masked) == len(masked) <= wanted  # whole or not at all
    assert all(len(masked) + len(word) > wanted for word in left_out)  # stopped only when nothing more fits


@pytest.mark.parametrize("words", [False, True])
def test_a_row_depends_on_seed_epoch_and_index_alone(words: bool) -> None:
    rng = random.Random(0)
    examples = [[an_example(rng.randint(6, 30), rng) for _ in range(rng.randint(1, 3))] for _ in range(700)]
    rule = rules(sequence_length=90, pack=True, max_segments=3, whole_word_mask=words)
    rows, indices = rows_of(examples, 90), np.arange(700) * 7 + 10**12
    whole = mask_rows(rows, rule, seed=5, epoch=2, indices=indices)
    order = np.random.default_rng(0).permutation(700)
    mixed = mask_rows({k: v[order] for k, v in rows.items()}, rule, seed=5, epoch=2, indices=indices[order])
    structured = np.zeros(700, [(name, np.int32, 90) for name in rows])
    for name in rows:
        structured[name] = rows[name]
    again = mask_rows(structured, rule, seed=5, epoch=2, indices=indices)
    for name in whole:
        assert (whole[name][order] == mixed[name]).all() and (whole[name] == again[name]).all()
        assert whole[name].dtype == mixed[name].dtype
        for row in range(0, 700, 97):
            one = mask_rows({k: v[row][None] for k, v in rows.items()}, rule, seed=5, epoch=2, indices=indices[[row]])
            assert (one[name][0] == whole[name][row]).all()
    epochs = np.arange(700) % 3
    by_epoch = mask_rows(rows, rule, seed=5, epoch=epochs, indices=indices)
    assert all((by_epoch[name][epochs == 2] == whole[name][epochs == 2]).all() for name in whole)
    assert (by_epoch["masked_positions"] != whole["masked_positions"])[epochs != 2].any(axis=1).mean() > 0.9
    for other in ({"seed": 6, "epoch": 2}, {"seed": 5, "epoch": 3}):
        changed = mask_rows(rows, rule, indices=indices, **other)
        assert (changed["masked_positions"] != whole["masked_positions"]).any(axis=1).mean() > 0.9
    moved = mask_rows(rows, rule, seed=5, epoch=2, indices=indices + 1)
    assert (moved["masked_positions"] != whole["masked_positions"]).any(axis=1).mean() > 0.9


def test_an_empty_batch_and_a_row_of_padding() -> None:
    rule = rules(sequence_length=16)
    empty = mask_rows(rows_of([], 16), rule, seed=0, epoch=0, indices=[])
    assert empty["input_ids"].shape == (0, 16) and empty["masked_ids"].shape == (0, 20)
    padding = mask_rows(rows_of([[], []], 16), rule, seed=0, epoch=0, indices=[0, 1])
    assert not padding["masked_weights"].any() and not padding["input_ids"].any()


def test_more_examples_than_the_config_allows_are_refused() -> None:
    rows = rows_of([[[CLS, 9, SEP]] * 10], 30)
    with pytest.raises(ValueError, match="more than 6 tokens"):
        mask_rows(rows, rules(sequence_length=30, pack=True, max_segments=1, max_predictions_per_seq=6),
                  seed=0, epoch=0, indices=[0])  # fmt: skip


# ---- statistics -----------------------------------------------------------------------------------------------------


def test_statistics_over_a_hundred_thousand_masked_tokens() -> None:
    """80/10/10 and 15%, uniform places, random ids over the whole vocabulary; bounds are five standard deviations."""
    size, length, count = 1000, 260, 3000
    ids = np.random.default_rng(1).integers(5, size, (count, length)).astype(np.int32)
    ids[:, 0], ids[:, 100], ids[:, -1] = CLS, SEP, SEP
    rows = {"input_ids": ids, "segment_ids": np.ones_like(ids)}
    rule = rules(size, sequence_length=length, max_predictions_per_seq=80)
    masked = mask_rows(rows, rule, seed=3, epoch=0, indices=np.arange(count))
    total = int(masked["masked_weights"].sum())
    assert total == count * 39 >= 100_000 and total / ids.size == pytest.approx(0.15, abs=0.0005)

    places = masked["masked_positions"][:, :39]
    now, was = np.take_along_axis(masked["input_ids"], places, 1), masked["masked_ids"][:, :39]
    spread = 5 / np.sqrt(total)
    random_share = 0.1 * (1 - 1 / size)  # a random id is sometimes the original
    assert np.mean(now == MASK) == pytest.approx(0.8 + 0.1 / size, abs=spread * 0.4)
    assert np.mean(now == was) == pytest.approx(0.1 + 0.1 / size, abs=spread * 0.3)
    replaced = now[(now != MASK) & (now != was)]
    assert len(replaced) / total == pytest.approx(random_share, abs=spread * 0.3)
    frequency = np.bincount(replaced, minlength=size)
    assert frequency.max() < 40 and frequency[[0, 1, CLS, SEP]].all()  # 11.7 expected of each id, special ones too
    chi_square = np.sum((np.delete(frequency, MASK) - frequency.mean()) ** 2) / frequency.mean()
    assert abs(chi_square - size) < 5 * np.sqrt(2 * size)

    by_place = np.bincount(places.ravel(), minlength=length)
    assert by_place[[0, 100, length - 1]].tolist() == [0, 0, 0]
    chance = 39 / (length - 3)
    candidates = np.delete(by_place, [0, 100, length - 1])
    assert np.abs(candidates - count * chance).max() < 5 * np.sqrt(count * chance * (1 - chance))


def test_epochs_and_neighbours_mask_independently() -> None:
    count, length, most = 4000, 64, 20
    ids = np.full((count, length), 50, np.int32)
    rows, rule = {"input_ids": ids, "segment_ids": np.ones_like(ids)}, rules(sequence_length=length)
    chosen = []
    for epoch in (0, 1):
        masked = mask_rows(rows, rule, seed=0, epoch=epoch, indices=np.arange(count))
        chosen.append(np.zeros((count, length), bool))
        np.put_along_axis(chosen[-1], masked["masked_positions"][:, :10], True, axis=1)
    chance = (10 / length) ** 2
    bound = 5 * np.sqrt(chance / (count * length))
    assert most >= 10 and chosen[0].sum() == count * 10
    for other in (chosen[1], np.roll(chosen[0], 1, axis=0), np.roll(chosen[0], 1, axis=1)):
        assert np.mean(chosen[0] & other) == pytest.approx(chance, abs=bound + 0.002)


@pytest.mark.parametrize("words", [False, True])
def test_rows_choose_with_the_references_distribution(words: bool) -> None:
    """What is masked in one example, over many draws: `mask_rows` against `mask_tokens`, whose draws are golden."""
    draws = 6000
    tokens = [CLS, 10, 70, 71, 11, 12, 72, SEP, 73, 13, 14, 74, 75, 76, 15, SEP]  # a '##' piece follows [SEP]
    rule = rules(sequence_length=16, whole_word_mask=words, masked_lm_prob=0.2)
    reference: Counter[tuple[int, ...]] = Counter()
    rng = random.Random(0)
    for _ in range(draws):
        reference[tuple(mask_tokens(tokens, rule, rng)[1])] += 1
    rows = rows_of([[tokens]] * draws, 16)
    masked = mask_rows(rows, rule, seed=0, epoch=0, indices=np.arange(draws))
    ours = Counter(
        tuple(places[: int(weights.sum())].tolist())
        for places, weights in zip(masked["masked_positions"], masked["masked_weights"], strict=True)
    )
    if words:
        assert set(ours) == set(reference)
    for choice in set(ours) | set(reference):
        expected = (ours[choice] + reference[choice]) / 2
        assert abs(ours[choice] - reference[choice]) < 5 * np.sqrt(2 * expected) + 3, choice


def test_shares_of_the_replacements():
    """ELECTRA's 85 % [MASK] and 15 % kept, none random; and one example as by the reference's loop."""
    rule = rules(sequence_length=64, mask_token_prob=0.85, random_token_prob=0)
    rows = {"input_ids": np.full((4000, 64), 7, np.int32), "segment_ids": np.ones((4000, 64), np.int32)}
    found = mask_rows(rows, rule, seed=1, epoch=0, indices=np.arange(4000))
    ids = np.take_along_axis(found["input_ids"], found["masked_positions"], axis=1)[found["masked_weights"] > 0]
    assert set(ids.tolist()) == {7, rule.mask_id} and len(ids) > 30_000
    assert (ids == rule.mask_id).mean() == pytest.approx(0.85, abs=0.01)
    rng = random.Random(0)
    drawn = [token for _ in range(500) for token in mask_tokens([7] * 64, rule, rng)[0]]
    share = drawn.count(rule.mask_id) / (500 * int(rule.num_predictions(64)))
    assert set(drawn) == {7, rule.mask_id} and share == pytest.approx(0.85, abs=0.02)
    assert rules().kept_share == 0.5 and "mask_token_prob" not in BertPairs().model_dump()
