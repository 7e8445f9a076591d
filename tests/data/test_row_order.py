"""The order of a stage's rows: grain's own, each row once an epoch, in the proportions of the tasks."""

from collections import Counter

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.pipeline.row_order import (
    RATE_STEPS,
    SMALL_TASK_ROWS,
    TABLE_ROWS,
    RowOrder,
    interleave,
    round_keys,
    shuffle,
    shuffle_table,
    small_task_orders,
)

SEED_SEQ = {
    0: (2963817213, 69796629, 1973464570, 532167439),
    2**32 - 1: (3258260622, 2976084991, 227751652, 537413182),
}
SHARES = [0.09, 0.7, 0.21]


def one(count: int, seed: int, positions: np.ndarray) -> np.ndarray:
    return RowOrder([count], [1.0], [seed]).at(positions).indices


@pytest.mark.parametrize("count", [256, 1000, 65_535, 65_536, 65_537, 262_144, 262_145, 10**6, 2**31, 2**32 + 5])
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_larger_tasks_are_shuffled_as_grain_shuffles_them(count: int, seed: int):
    theirs = grain.MapDataset.range(count).shuffle(seed=seed).repeat()
    rng = np.random.default_rng(count)
    positions = np.concatenate([np.arange(20), 2 * count - np.arange(10), rng.integers(0, 5 * count, 20)])
    want = [theirs[position] for position in positions.tolist()]
    found = RowOrder([count], [1.0], [seed]).at(positions)
    assert found.indices.tolist() == want and found.epochs.tolist() == (positions // count).tolist()
    assert not found.tasks.any() and one(count, seed ^ 1, positions).tolist() != want


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(1e-4, 1), min_size=2, max_size=6),
    st.lists(st.integers(0, 2**50), min_size=1, max_size=20),
)
def test_tasks_alternate_as_grain_mixes_them(shares: list[float], positions: list[int]):
    weights = [round(share / min(shares) * RATE_STEPS) for share in shares]
    tasks = [grain.MapDataset.range(1).repeat().map_with_index(lambda at, _, n=n: (n, at)) for n in range(len(shares))]
    theirs = grain.MapDataset.mix(tasks, weights=weights)
    found = np.stack(interleave(np.array(positions), weights), axis=1)
    assert found.tolist() == [list(theirs[position]) for position in positions]


def test_weights_whose_products_exceed_64_bits():
    """Exact integers give the same order as a ratio that fits: every weight times 2^30."""
    positions = np.arange(2**40, 2**40 + 500)
    small, large = ([weight << shift for weight in (300, 100, 7)] for shift in (0, 30))
    assert sum(large) ** 2 > 2**63
    for found, expected in zip(interleave(positions, large), interleave(positions, small), strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_every_epoch_of_every_task_sees_each_row_once(counts: list[int], seed: int):
    order = RowOrder(counts, [1.0 / len(counts)] * len(counts), [seed] * len(counts))
    refs = order.at(np.arange(3 * max(counts) * len(counts)))
    seen: dict[tuple[int, int], list[int]] = {}
    for task, epoch, index in np.stack(refs, axis=1).tolist():
        seen.setdefault((task, epoch), []).append(index)
    for (task, epoch), indices in seen.items():
        assert len(set(indices)) == len(indices)
        if (task, epoch + 1) in seen:  # a finished epoch
            assert sorted(indices) == list(range(counts[task]))


@pytest.mark.parametrize("count", [SMALL_TASK_ROWS, 5000, TABLE_ROWS, TABLE_ROWS + 2])
def test_a_shuffle_is_a_permutation(count: int):
    assert np.array_equal(np.sort(shuffle(np.arange(count), count, 3, 2)), np.arange(count))


@pytest.mark.parametrize("count", [2**16 + 1, 2**18 + 1])
def test_the_gap_of_grain_s_order_is_kept(count: int):
    """For one row more than a power of four grain visits row 0's successor twice, and one row never."""
    found = shuffle(np.arange(count), count, 3, 2)
    assert len(np.unique(found)) == count - 1 and found[0] == found[-1]
    theirs = grain.MapDataset.range(count).shuffle(seed=5)
    assert theirs[0] == theirs[count - 1] == shuffle(np.array([0]), count, 5, 0)[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(SMALL_TASK_ROWS, TABLE_ROWS), st.integers(0, 2**32 - 1), st.integers(0, 2**40))
def test_a_table_holds_what_walking_finds(count: int, seed: int, epoch: int):
    rows = np.linspace(0, count - 1, 12).astype(np.int64)
    table = shuffle_table(count, seed, epoch)
    assert len(table) == count and np.array_equal(table[rows], shuffle(rows, count, seed, epoch))


def test_keys_are_those_of_seed_seq():
    """std::seed_seq{seed}.generate of GCC 12's libstdc++."""
    assert round_keys(0) == SEED_SEQ[0] and round_keys(2**32 - 1) == SEED_SEQ[2**32 - 1] != round_keys(1)


def test_each_epoch_has_an_order_of_its_own():
    refs = RowOrder([200], [1.0], [7]).at(np.arange(800))
    assert len({tuple(epoch) for epoch in refs.indices.reshape(4, 200).tolist()}) == 4
    assert refs.epochs.tolist() == np.repeat(np.arange(4), 200).tolist()


def test_the_stream_keeps_the_proportions_everywhere():
    order = RowOrder([1000, 500, 20], SHARES, [1, 2, 3])
    for first in (0, 10**6, 10**12):  # far positions cost nothing
        counts = Counter(order.at(np.arange(first, first + 4000)).tasks.tolist())
        for task, share in enumerate(SHARES):
            # one row of stride, and half a step of rounding relative to the rarest task
            assert abs(counts[task] - 4000 * share) <= 2 + 4000 * share / (2 * RATE_STEPS)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_a_row_does_not_depend_on_what_else_is_asked(positions: list[int], seed: int):
    order = RowOrder([300, 70_000, 4], [0.2, 0.7, 0.1], [seed, seed ^ 1, seed ^ 2])
    together = np.stack(order.at(np.array(positions)), axis=1)
    assert together.tolist() == [np.concatenate(order.at(np.array([at]))).tolist() for at in positions]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, SMALL_TASK_ROWS + 1), st.integers(0, 2**32 - 1), st.integers(0, 2**40))
def test_a_tiny_task_visits_each_row_once_wherever_it_is_read(count: int, seed: int, epoch: int):
    assert sorted(one(count, seed, count * epoch + np.arange(count)).tolist()) == list(range(count))


def test_the_orders_of_tiny_tasks_are_uniform():
    """Of 3 rows each of the 6 orders comes up in about a sixth of 6000 epochs; the chi-squared's 99.99 % is 25.7."""
    found = Counter(map(tuple, small_task_orders(3, 11, np.arange(6000)).tolist()))
    assert len(found) == 6 and sum((count - 1000) ** 2 / 1000 for count in found.values()) < 25.7
