"""The order in which a stage reads its rows: positions -> (task, epoch, index), many at once and without state.

Each task is reshuffled in each of its epochs. The shuffle is a permutation cipher: four rounds of Simon (Beaulieu et
al., IACR 2013/404) on the smallest even number of bits that holds the rows, at least 16, applied again while the result
is no row (cycle walking, Black and Rogaway 2002). It is the order of grain's `MapDataset.shuffle`, which gives one
position for each call; a test compares the two. Tasks alternate in the fixed stride of grain's `MapDataset.mix`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np

from bertjax.data.preprocess.counter_rng import row_streams

RATE_STEPS = 100  # tasks are mixed by integer weights; the rarest task gets this one
SMALL_TASK_ROWS = 256  # a smaller task is sorted by hashed bits: the cipher would take 65536 / rows steps for each row
TABLE_ROWS = 1 << 18  # the order of an epoch of a task up to here is made at once, in one table
KEPT_EPOCHS = 2  # tables of each task, of 1 MiB at most: a batch may run over the end of an epoch
MIN_BITS = 16
SCALAR_ROWS = 8  # fewer than these are walked one by one, which is faster than arrays of them


Numbers = TypeVar("Numbers", int, np.ndarray)


class RowRefs(NamedTuple):
    """Stored rows: int64 [n] each."""

    tasks: np.ndarray
    epochs: np.ndarray  # of the row's task
    indices: np.ndarray  # of the row in its store


class RowOrder:
    """An endless stream of rows: `at` is a pure function of the position. Thread-safe.

    counts: rows in an epoch of each task. shares: of the tasks in the stream, relative to each other. seeds: in
    [0, 2^32), of each task's shuffles.
    """

    def __init__(self, counts: Sequence[int], shares: Sequence[float], seeds: Sequence[int]):
        # The integers that grain would mix by, rounded: truncated ones cost the rarer tasks up to a hundredth.
        self._weights = [round(share / min(shares) * RATE_STEPS) for share in shares]
        self._tasks = [_TaskOrder(count, seed) for count, seed in zip(counts, seeds, strict=True)]

    def at(self, positions: np.ndarray) -> RowRefs:
        """The rows at `positions` (int64 [n], each >= 0).

        Any window of the stream has the share of each task to within one row, and each task visits every row exactly
        once in an epoch. (Except the last of 2^16 + 1 rows, of 2^18 + 1 and so on: grain reserves one bit too few for
        these counts, so row 0's place comes up twice. Runs that are continued need the same order.)
        """
        positions = np.asarray(positions, np.int64)
        if len(self._tasks) == 1:
            epochs, indices = self._tasks[0].at(positions)
            return RowRefs(np.zeros_like(positions), epochs, indices)
        tasks, places = interleave(positions, self._weights)
        epochs, indices = np.empty_like(positions), np.empty_like(positions)
        for task in np.unique(tasks).tolist():
            where = np.flatnonzero(tasks == task)
            epochs[where], indices[where] = self._tasks[task].at(places[where])
        return RowRefs(tasks, epochs, indices)


def interleave(positions: np.ndarray, weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(task, place in the task's own stream) of each position, int64 [n]; tasks alternate in proportion to `weights`.

    Of the first k positions the first task has ceil(k w / W), spread evenly; the rest go to the other tasks in the same
    way.
    """
    left = sum(weights)
    # k (W - w) / W is computed from k mod W, so products stay below W^2; larger ones need Python's integers.
    kind = np.int64 if left <= math.isqrt(2**63 - 1) else object
    before, after = positions.astype(kind), positions.astype(kind) + 1
    tasks, places = np.full(len(positions), -1), np.zeros(len(positions), np.int64)
    for task, weight in enumerate(weights):
        rest_before, rest_after = (k // left * (left - weight) + k % left * (left - weight) // left
                                   for k in (before, after))  # fmt: skip
        drawn = after - rest_after
        mine = (tasks < 0) & (before - rest_before != drawn).astype(bool)
        tasks[mine], places[mine] = task, (drawn - 1)[mine]
        left, before, after = left - weight, rest_before, rest_after
    return tasks, places


class _TaskOrder:
    """One task's endless stream of rows."""

    def __init__(self, count: int, seed: int):
        self._count, self._seed = count, seed
        self._table = lru_cache(KEPT_EPOCHS)(lambda epoch: shuffle_table(count, seed, epoch))

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, index) at `places` (int64 [n])."""
        epochs, rows = np.divmod(places, self._count)
        each, which = np.unique(epochs, return_inverse=True)
        if self._count < SMALL_TASK_ROWS:
            return epochs, small_task_orders(self._count, self._seed, each)[which, rows]
        indices = np.empty_like(rows)
        for number, epoch in enumerate(each.tolist()):
            where = which == number
            if self._count <= TABLE_ROWS:
                indices[where] = self._table(epoch)[rows[where]]
            else:
                indices[where] = shuffle(rows[where], self._count, self._seed, epoch)
        return epochs, indices


def small_task_orders(count: int, seed: int, epochs: np.ndarray) -> np.ndarray:
    """The rows 0..count-1 in the order of each of `epochs` [E], sorted by 64 hashed bits of each: int64 [E, count]."""
    rows = np.tile(np.arange(count), len(epochs))
    return np.argsort(row_streams(seed, np.repeat(epochs, count), rows).reshape(-1, count), axis=1, kind="stable")


def shuffle(rows: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """What the permutation of one epoch makes of `rows` (int64 [n], each in 0..count-1): int64 [n]."""
    bits, keys = _bits(count), round_keys((seed + epoch) % 2**32)
    found, walking = rows.astype(np.uint64), np.arange(len(rows))
    while len(walking) > SCALAR_ROWS:
        found[walking] = _encrypt(found[walking], keys, bits)
        walking = walking[found[walking] >= count]
    for at in walking.tolist():
        value = int(found[at])
        while (value := _encrypt(value, keys, bits)) >= count:
            pass
        found[at] = value
    return found.astype(np.int64)


def shuffle_table(count: int, seed: int, epoch: int) -> np.ndarray:
    """`shuffle` of all rows 0..count-1 of a task: uint32 [count].

    Walks every number of the cipher at once: `ends` doubles its steps until all have arrived at a row.
    """
    bits = _bits(count)
    numbers = np.arange(1 << bits, dtype=np.uint32)
    after = _encrypt(numbers, round_keys((seed + epoch) % 2**32), bits)
    ends = np.where(numbers < count, numbers, after)
    first = after[np.arange(count) % (1 << bits)]
    while (ends[first] >= count).any():
        ends = ends[ends]
    return ends[first]


def _bits(count: int) -> int:
    bits = math.ceil(math.log2(count - 1))
    return max(bits + bits % 2, MIN_BITS)


def _encrypt(value: Numbers, keys: Sequence[int], bits: int) -> Numbers:
    """Simon's rounds with `keys`, on words of half of `bits`. Numbers: int, or unsigned of at least `bits` bits."""
    half = bits // 2
    word = (1 << half) - 1
    left, right = value >> half & word, value & word
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = (left ^ first ^ _mix(right, half)) & word
        right = (right ^ second ^ _mix(left, half)) & word
    return left << half | right


def _mix(word: Numbers, bits: int) -> Numbers:
    """Simon's round function, (word <<< 1 & word <<< 8) ^ word <<< 2, in its low `bits`."""
    twice = word << bits | word
    return (twice >> (bits - 1) & twice >> (bits - 8)) ^ twice >> (bits - 2)


@lru_cache(maxsize=1024)
def round_keys(seed: int) -> tuple[int, int, int, int]:
    """Four 32-bit keys of a 32-bit seed: C++'s std::seed_seq{seed}.generate, [rand.util.seedseq]."""
    low = 0xFFFFFFFF
    b = [0x8B8B8B8B] * 4
    for k, more in enumerate((1, 1 + seed, 2, 3)):
        mixed = b[k] ^ b[(k + 1) % 4] ^ b[k - 1]
        first = 1664525 * (mixed ^ mixed >> 27) & low
        second = first + more & low
        b[(k + 1) % 4] = b[(k + 1) % 4] + first & low
        b[(k + 2) % 4] = b[(k + 2) % 4] + second & low
        b[k] = second
    for k in range(4):
        mixed = b[k] + b[(k + 1) % 4] + b[k - 1] & low
        first = 1566083941 * (mixed ^ mixed >> 27) & low
        second = first - k & low
        b[(k + 1) % 4] ^= first
        b[(k + 2) % 4] ^= second
        b[k] = second
    return b[0], b[1], b[2], b[3]
