"""Packing: every example once, no row overflows, dense, and the packed arrays hold the same examples."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.preprocess.packing import Assignment, pack_lengths, pack_pairs, pack_rows

lengths_and_row = st.integers(8, 80).flatmap(
    lambda row: st.tuples(st.lists(st.integers(1, row), max_size=120), st.just(row))
)


def density(lengths: np.ndarray, assignment: Assignment, sequence_length: int) -> float:
    """The share of positions that are not padding."""
    return float(np.sum(lengths)) / max(1, assignment.rows * sequence_length)


def fullest(lengths: np.ndarray, assignment: Assignment) -> int:
    return int(np.add.reduceat(lengths[assignment.examples], assignment.offsets[:-1]).max())


@settings(max_examples=150, deadline=None)
@given(lengths_and_row, st.integers(1, 9))
def test_every_example_once_and_no_row_overflows(made: tuple[list[int], int], max_segments: int) -> None:
    lengths, row = np.array(made[0], np.int64), made[1]
    assignment = pack_lengths(lengths, row, max_segments)
    assert sorted(assignment.examples.tolist()) == list(range(len(lengths)))
    assert assignment.offsets[0] == 0 and assignment.offsets[-1] == len(lengths)
    if not len(lengths):
        assert assignment.rows == 0
        return
    sizes = np.diff(assignment.offsets)
    assert sizes.min() >= 1 and sizes.max() <= max_segments and fullest(lengths, assignment) <= row
    again = pack_lengths(lengths, row, max_segments)
    assert (again.examples == assignment.examples).all() and (again.offsets == assignment.offsets).all()
    assert density(lengths, assignment, row) == lengths.sum() / (assignment.rows * row)


@settings(max_examples=60, deadline=None)
@given(lengths_and_row)
def test_as_few_rows_as_best_fit_decreasing(made: tuple[list[int], int]) -> None:
    """Equal rows handled at once give as many rows as the textbook does one example at a time."""
    lengths, row = np.array(made[0], np.int64), made[1]
    if not len(lengths):
        return
    assert pack_lengths(lengths, row, len(lengths)).rows == best_fit_decreasing(made[0], row)


def test_rows_that_share_a_filling_take_of_a_length_one_after_the_other():
    """Two rows with 12 tokens left and two examples of 6: both into one row, as one at a time they would."""
    lengths = np.array([3, 4, 4, 4, 6, 6, 6, 15, 15, 19, 22])
    assert pack_lengths(lengths, 27, 11).rows == best_fit_decreasing(lengths.tolist(), 27) == 4
    pairs = np.stack([lengths, np.ones_like(lengths)], axis=1)
    assert pack_pairs(pairs, (27, 100), 11).rows == 4


def best_fit_decreasing(lengths: list[int], row: int) -> int:
    """The textbook, one example at a time: how many rows it takes."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [(space, number) for number, space in enumerate(room) if space >= length]
        if fits:
            room[min(fits)[1]] -= length
        else:
            room.append(row - length)
    return len(room)


def test_bad_lengths_are_refused() -> None:
    for bad in ([0, 3], [3, 9]):
        with pytest.raises(ValueError, match="1..8"):
            pack_lengths(np.array(bad), 8, 4)


def test_a_hundred_thousand_examples_pack_densely_in_under_a_second() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(150), 0.45, 100_000).astype(int), 20, 384)
    start = time.perf_counter()
    assignment = pack_lengths(lengths, 384, 8)
    assert time.perf_counter() - start < 1.0
    assert density(lengths, assignment, 384) > 0.98 and fullest(lengths, assignment) <= 384


def test_packing_is_neutral_to_where_an_example_is() -> None:
    """A row's place, and an example's, say nothing about how full a row is, how many share it, or who they are."""
    lengths = np.clip(np.random.default_rng(1).lognormal(4, 0.8, 50_000).astype(int), 5, 384)
    assignment = pack_lengths(lengths, 384, 8)
    sizes = np.diff(assignment.offsets)
    filled = np.add.reduceat(lengths[assignment.examples], assignment.offsets[:-1])
    row = np.repeat(np.arange(assignment.rows), sizes)
    bound = 5 / np.sqrt(assignment.rows)
    for values in (sizes, filled, assignment.examples[assignment.offsets[:-1]]):
        assert abs(np.corrcoef(np.arange(assignment.rows), values)[0, 1]) < bound
    for values in (sizes[row], filled[row], row):
        assert abs(np.corrcoef(assignment.examples, values)[0, 1]) < bound
    shared = row[1:] == row[:-1]
    assert np.median(np.diff(assignment.examples)[shared]) > 1000


def test_the_assignment_is_the_same_everywhere() -> None:
    """The shuffle is numpy's frozen RandomState(0): ten equal examples, dealt out in its order."""
    order = np.random.RandomState(0)
    dealt = np.sort(order.permutation(10).reshape(2, 5).T, axis=1)
    assignment = pack_lengths(np.full(10, 5), 10, 8)
    assert assignment.examples.reshape(5, 2).tolist() == dealt[order.permutation(5)].tolist()


# ---- two lengths ----------------------------------------------------------------------------------------------------

pairs_and_row = st.tuples(st.integers(4, 60), st.integers(2, 40)).flatmap(
    lambda row: st.tuples(
        st.lists(st.tuples(st.integers(1, row[0]), st.integers(1, row[1])), max_size=80), st.just(row)
    )
)


@settings(max_examples=150, deadline=None)
@given(pairs_and_row, st.integers(1, 9))
def test_every_pair_once_and_neither_length_overflows(
    made: tuple[list[tuple[int, int]], tuple[int, int]], max_segments: int
) -> None:
    pairs, row = np.array(made[0], np.int32).reshape(-1, 2), made[1]
    assignment = pack_pairs(pairs, row, max_segments)
    assert sorted(assignment.examples.tolist()) == list(range(len(pairs)))
    if not len(pairs):
        assert assignment.rows == 0
        return
    sizes = np.diff(assignment.offsets)
    assert sizes.min() >= 1 and sizes.max() <= max_segments
    assert (np.add.reduceat(pairs[assignment.examples], assignment.offsets[:-1]) <= row).all()
    again = pack_pairs(pairs, row, max_segments)
    assert (again.examples == assignment.examples).all() and (again.offsets == assignment.offsets).all()


@settings(max_examples=60, deadline=None)
@given(pairs_and_row)
def test_equal_pairs_at_once_take_as_many_rows_as_one_by_one(
    made: tuple[list[tuple[int, int]], tuple[int, int]],
) -> None:
    """Against the same rule one example at a time: fullest in either length first, least room that holds both."""
    pairs, row = made
    if not pairs:
        return
    totals = np.sum(pairs, axis=0) / row
    if totals[0] < totals[1]:
        pairs, row = [(second, first) for first, second in pairs], (row[1], row[0])
    room: list[tuple[int, int]] = []
    for first, second in sorted(pairs, key=lambda p: (max(p[0] / row[0], p[1] / row[1]), *p), reverse=True):
        fits = [(space, number) for number, space in enumerate(room) if space[0] >= first and space[1] >= second]
        space, number = min(fits) if fits else (row, len(room))
        room[number : number + 1] = [(space[0] - first, space[1] - second)]
    assert pack_pairs(np.array(made[0]), made[1], len(pairs)).rows == len(room)


@settings(max_examples=40, deadline=None)
@given(lengths_and_row, st.integers(1, 9))
def test_with_a_second_length_that_never_matters_it_is_the_packing_of_one(
    made: tuple[list[int], int], max_segments: int
) -> None:
    lengths = np.array(made[0], np.int64)
    pairs = np.stack([lengths, np.ones_like(lengths)], axis=1)
    assert pack_pairs(pairs, (made[1], 1000), max_segments).rows == pack_lengths(lengths, made[1], max_segments).rows


def test_bad_pairs_are_refused() -> None:
    for bad in ([[0, 3]], [[3, 0]], [[9, 3]], [[3, 6]]):
        with pytest.raises(ValueError, match=r"1..\(8, 5\)"):
            pack_pairs(np.array(bad), (8, 5), 4)


def test_a_hundred_thousand_pairs_pack_densely_in_seconds() -> None:
    """Lengths like SQuAD's: the inputs fill the rows, the targets hardly count."""
    draw = np.random.default_rng(0)
    inputs = np.clip(draw.lognormal(5, 0.4, 100_000).astype(int), 20, 512)
    pairs = np.stack([inputs, np.clip(draw.lognormal(1.3, 0.6, 100_000).astype(int), 2, 97)], axis=1)
    start = time.perf_counter()
    assignment = pack_pairs(pairs, (512, 97), 8)
    assert time.perf_counter() - start < 3.0
    assert density(inputs, assignment, 512) > 0.98


# ---- rows -----------------------------------------------------------------------------------------------------------


def unpacked(lengths: list[int], row: int) -> dict[str, np.ndarray]:
    """One example a row; the ids tell example and place."""
    count = len(lengths)
    place = np.arange(row)
    real = place < np.array(lengths)[:, None]
    return {
        "input_ids": np.where(real, np.arange(count)[:, None] * 1000 + place + 1, 77).astype(np.int32),
        "token_type_ids": np.where(real, place % 2, 0).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "positions": np.where(real, place, 0).astype(np.int32),
        "cls_positions": np.zeros((count, 1), np.int32),
        "start_positions": (np.array(lengths)[:, None] // 2).astype(np.int32),
        "end_positions": (np.array(lengths)[:, None] - 1).astype(np.int32),
        "span_weights": np.ones((count, 1), np.float32),
        "nsp_labels": (np.arange(count)[:, None] % 2).astype(np.int32),
    }


def test_a_packed_row_by_hand() -> None:
    rows = unpacked([3, 2, 4], 6)
    packed = pack_rows(rows, Assignment(np.array([0, 1, 2]), np.array([0, 2, 3])), max_segments=3, pad_id=77)
    expected = {
        "input_ids": [[1, 2, 3, 1001, 1002, 77], [2001, 2002, 2003, 2004, 77, 77]],
        "token_type_ids": [[0, 1, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0]],
        "segment_ids": [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]],
        "positions": [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]],
        "cls_positions": [[0, 3, 0], [0, 0, 0]],
        "start_positions": [[1, 4, 0], [2, 0, 0]],
        "end_positions": [[2, 4, 0], [3, 0, 0]],
        "span_weights": [[1, 1, 0], [1, 0, 0]],
        "nsp_labels": [[0, 1, 0], [0, 0, 0]],
    }
    assert {name: value.tolist() for name, value in packed.items()} == expected
    assert {name: value.dtype for name, value in packed.items()} == {name: rows[name].dtype for name in rows}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 7), st.booleans())
def test_every_example_can_be_read_back(lengths: list[int], segments: int, step: int, structured: bool) -> None:
    rows: dict[str, np.ndarray] | np.ndarray = unpacked(lengths, 24)
    if structured:
        table = np.zeros(len(lengths), [(name, value.dtype, value.shape[1:]) for name, value in rows.items()])
        for name, value in rows.items():
            table[name] = value
        rows = table
    assignment = pack_lengths(np.array(lengths), 24, segments)
    seen = []
    for start in range(0, assignment.rows, step):  # in parts, as with bounded memory
        part = assignment.part(start, min(start + step, assignment.rows))
        chosen = rows[part.examples] if structured else {name: value[part.examples] for name, value in rows.items()}
        packed = pack_rows(chosen, part, segments, pad_id=77)
        assert ((packed["segment_ids"] > 0) | (packed["input_ids"] == 77)).all()
        for row in range(part.rows):
            for slot in np.flatnonzero(packed["span_weights"][row]):
                inside = packed["segment_ids"][row] == slot + 1
                ids, begin = packed["input_ids"][row][inside], packed["cls_positions"][row, slot]
                example = int(ids[0] // 1000)
                seen.append(example)
                assert ids.tolist() == rows["input_ids"][example][: lengths[example]].tolist()
                assert packed["positions"][row][inside].tolist() == list(range(lengths[example]))
                assert packed["input_ids"][row, begin] == ids[0]
                end = packed["end_positions"][row, slot]
                assert packed["input_ids"][row, end] == ids[-1] and end == begin + lengths[example] - 1
                assert packed["nsp_labels"][row, slot] == example % 2
    assert seen == assignment.examples.tolist()


def test_rows_that_do_not_fit_and_masked_rows_are_refused() -> None:
    rows = unpacked([5, 5], 8)
    together = Assignment(np.array([0, 1]), np.array([0, 2]))
    with pytest.raises(ValueError, match="exceed 8 tokens"):
        pack_rows(rows, together, 2)
    with pytest.raises(ValueError, match="mask afterwards"):
        pack_rows({**rows, "masked_ids": np.zeros((2, 3))}, together, 2)


@pytest.mark.slow
def test_squad_training_windows_pack_densely(shared_data: Path) -> None:
    """The lengths of every SQuAD v1.1 training question's windows at 384 tokens; measured 0.977, goal 0.975."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = (shared_data / "vocab" / "bert-base-uncased-vocab.txt").read_text().splitlines()
    tokenizer = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with gzip.open(shared_data / "squad" / "train-v1.1.json.gz") as file:
        paragraphs = [p for article in json.load(file)["data"] for p in article["paragraphs"]]
    contexts = [len(e.ids) for e in tokenizer.encode_batch([p["context"] for p in paragraphs])]
    asked = [(n, qa["question"]) for n, p in enumerate(paragraphs) for qa in p["qas"]]
    questions = [len(e.ids) for e in tokenizer.encode_batch([question for _, question in asked])]
    lengths = []
    for (paragraph, _), question in zip(asked, questions, strict=True):
        question = min(question, 64)
        left, window = contexts[paragraph], 384 - question - 3
        while True:  # doc_stride 128 between window starts
            lengths.append(question + 3 + min(left, window))
            if left <= window:
                break
            left -= 128
    assert len(lengths) > 88_000
    assert density(np.array(lengths), pack_lengths(np.array(lengths), 384, 8), 384) >= 0.975
