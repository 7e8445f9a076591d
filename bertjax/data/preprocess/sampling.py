"""The sample of records that `limit` keeps, by seed, in the order of the source.

The records with the smallest hashes of (seed, number) are kept: the source is read once, and a smaller sample is part
of a larger one.
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from bertjax.data.preprocess.counter_rng import row_streams

VERSION = 1  # in the key of prepared data
_SALT = 0x11A17  # in place of an epoch; unique to this stream of random numbers
_BLOCK = 4096
T = TypeVar("T")


def sample_items(items: Iterable[T], limit: int | None, seed: int) -> Iterator[T]:
    """`items`, or `limit` of them in their order; keeps only these in memory."""
    if limit is None:
        yield from items
        return
    kept: list[tuple[int, int, T]] = []  # a heap with the largest key on top
    for index, key, item in _with_keys(items, seed):
        if len(kept) < limit:
            heapq.heappush(kept, (-key, -index, item))
        elif key < -kept[0][0]:
            heapq.heapreplace(kept, (-key, -index, item))
    kept.sort(key=lambda entry: -entry[1])
    yield from (item for _, _, item in kept)


def sample_indices(count: int, limit: int | None, seed: int) -> np.ndarray:
    """The numbers of the items that `sample_items` keeps out of `count`: int64, ascending."""
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    order = np.argsort(_keys(np.arange(count), seed), kind="stable")
    return np.sort(order[:limit]).astype(np.int64)


def _keys(indices: np.ndarray, seed: int) -> np.ndarray:
    return row_streams(seed, _SALT, indices)[:, 0]


def _with_keys(items: Iterable[T], seed: int) -> Iterator[tuple[int, int, Any]]:
    stream, first = iter(items), 0
    while block := list(islice(stream, _BLOCK)):
        indices = np.arange(first, first + len(block))
        yield from zip(indices.tolist(), _keys(indices, seed).tolist(), block, strict=True)
        first += len(block)
