"""Counter-based random numbers: hashing (seed, epoch, index) gives each row a stream, a counter selects a number.

The numbers of a row depend only on its place, so any process can make any batch in any order.
"""

from collections.abc import Callable

import numpy as np

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)

# Sort keys hold a position in their low bits, so that no two are equal and the position can be read off.
KEY_POSITION_MASK = np.uint64(0xFFFF)
SORT_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)  # the key of what is never chosen
NO_POSITION = np.uint16(0xFFFF)
BLOCK_TOKENS = 1 << 16  # tokens per block: enough to hide the cost of a call, few enough for the cache


def splitmix64(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014) on uint64 of any shape."""
    shifted: np.ndarray = np.asarray(state >> np.uint64(30))
    mixed: np.ndarray = state ^ shifted
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= np.right_shift(mixed, np.uint64(31), out=shifted)
    return mixed


def row_streams(seed: int, epoch: int | np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The state of each row's SplitMix64 generator: uint64 [B, 1]. `epoch` is one for all rows or an array [B]."""
    state = np.array([seed % (1 << 64)], np.uint64)
    state = splitmix64(state + _GOLDEN_GAMMA) + np.asarray(epoch).astype(np.uint64)
    state = splitmix64(state + _GOLDEN_GAMMA) + indices.astype(np.uint64)
    return splitmix64(state + _GOLDEN_GAMMA)[:, None]


def random_bits(streams: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Draw number `counters` (uint64) of each stream: uint64, the broadcast shape."""
    return splitmix64(streams + (counters + np.uint64(1)) * _GOLDEN_GAMMA)


def map_blocks(make: Callable[..., dict[str, np.ndarray]], *arrays: np.ndarray) -> dict[str, np.ndarray]:
    """`make` of blocks of the rows of `arrays` [B, ...], the last one [B, S], and its results joined."""
    batch, length = arrays[-1].shape
    step = max(1, BLOCK_TOKENS // length)
    blocks = [make(*(array[at : at + step] for array in arrays)) for at in range(0, max(1, batch), step)]
    return blocks[0] if len(blocks) == 1 else {key: np.concatenate([b[key] for b in blocks]) for key in blocks[0]}
