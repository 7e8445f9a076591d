"""Packing: several examples share a row, told apart by segment_ids, so that few positions are padding."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_PER_TOKEN = ("input_ids", "token_type_ids", "segment_ids", "positions")
_COORDINATES = ("cls_positions", "start_positions", "end_positions")


class Assignment(NamedTuple):
    """Which examples share a row: row r holds examples[offsets[r]:offsets[r + 1]], in that order."""

    examples: np.ndarray  # int64 [N]
    offsets: np.ndarray  # int64 [R + 1]

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> "Assignment":
        """Rows start..stop (exclusive) alone."""
        offsets = self.offsets[start : stop + 1]
        return Assignment(self.examples[offsets[0] : offsets[-1]], offsets - offsets[0])


Filling = tuple[int, ...]  # the lengths that share a row


def pack_lengths(lengths: np.ndarray, sequence_length: int, max_segments: int) -> Assignment:
    """Assigns examples of these lengths (int [N]) to rows of `sequence_length` tokens and `max_segments` examples.

    Best-fit decreasing on the histogram of lengths (after SPFHP, Krell et al., arXiv 2107.02027 section 3.1): the
    longest go first, each into the fullest row that still has room. The time depends on the number of different
    lengths and fillings, hardly on N. Deterministic: a fixed seed shuffles who shares a row and the order of the rows,
    so neighbours in the data (questions about one paragraph) are not packed together and a row's place says nothing
    about how full it is. For data too large to hold in memory, pack blocks of, say, a million lengths one by one.
    Raises ValueError for a length below 1 or above sequence_length.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) == 0:
        return Assignment(np.zeros(0, np.int64), np.zeros(1, np.int64))
    if lengths.min() < 1 or lengths.max() > sequence_length or max_segments < 1:
        raise ValueError(f"example lengths must be 1..{sequence_length}, not {lengths.min()}..{lengths.max()}")
    histogram = np.bincount(lengths, minlength=sequence_length + 1)
    return _assign(lengths, histogram, _fillings(histogram.tolist(), sequence_length, max_segments))


def density(lengths: np.ndarray, assignment: Assignment, sequence_length: int) -> float:
    """The share of positions that are not padding: real tokens / (rows * sequence_length)."""
    return float(np.sum(lengths)) / max(1, assignment.rows * sequence_length)


def _fillings(histogram: list[int], sequence_length: int, max_segments: int) -> list[tuple[Filling, int]]:
    """(filling, number of such rows), together using up the histogram: best-fit decreasing, equal rows at once."""
    full: list[tuple[Filling, int]] = []
    room: dict[int, list[tuple[Filling, int]]] = defaultdict(list)  # rows by the tokens they still take
    spaces = 0  # bit s: room[s] is not empty
    for length in range(sequence_length, 0, -1):
        count = histogram[length]
        while count:
            fits = spaces >> length
            if fits:
                space = length + (fits & -fits).bit_length() - 1
                filling, rows = room[space].pop()
                used = min(rows, count)
                if used < rows:
                    room[space].append((filling, rows - used))
                if not room[space]:
                    spaces &= ~(1 << space)
                filling, space, count = (*filling, length), space - length, count - used
            else:  # new rows, each taking as many of this length as one by one they would
                copies = min(sequence_length // length, max_segments, count)
                used = count // copies
                filling, space, count = (length,) * copies, sequence_length - copies * length, count - used * copies
            if space and len(filling) < max_segments:
                room[space].append((filling, used))
                spaces |= 1 << space
            else:
                full.append((filling, used))
    return full + [entry for entries in room.values() for entry in entries]


def _assign(lengths: np.ndarray, histogram: np.ndarray, fillings: list[tuple[Filling, int]]) -> Assignment:
    """Gives every place in every filling an example of its length; both are shuffled."""
    shuffle = np.random.RandomState(0)  # unlike a Generator's, its stream is the same in every version of numpy
    by_length = shuffle.permutation(len(lengths))
    by_length = by_length[np.argsort(lengths[by_length], kind="stable")]
    next_of = (np.cumsum(histogram) - histogram).tolist()
    examples, sizes = [], []
    for filling, rows in fillings:
        columns = []
        for length in filling:
            columns.append(by_length[next_of[length] : next_of[length] + rows])
            next_of[length] += rows
        examples.append(np.sort(np.stack(columns, axis=1), axis=1).ravel())
        sizes.append(np.full(rows, len(filling)))
    size, flat = np.concatenate(sizes), np.concatenate(examples)
    order = shuffle.permutation(len(size))
    offsets = np.concatenate([[0], np.cumsum(size[order])])
    start = (np.cumsum(size) - size)[order]
    return Assignment(flat[np.repeat(start - offsets[:-1], size[order]) + np.arange(len(flat))], offsets)


def pack_rows(
    rows: Mapping[str, np.ndarray] | np.ndarray, assignment: Assignment, max_segments: int, pad_id: int = 0
) -> dict[str, np.ndarray]:
    """Joins unpacked rows into packed ones.

    `rows`: a dict of arrays or a structured array with one example a row, leading axis N *in the order of
    assignment.examples* (`store.rows(part.examples)`, `array[part.examples]`). Fields: input_ids, token_type_ids,
    segment_ids, positions [N, S]; everything else [N, 1].
    Returns the same fields for R rows: the first four [R, S], with segment_ids 1..G in row order and positions that
    restart; the others [R, G], zero where there is no example, those of cls, start and end positions moved to row
    coordinates. dtypes stay. For bounded memory go through `assignment.part(a, b)`.
    Raises ValueError when the examples do not fit, and for masked_* fields: rows are masked after packing.
    """
    fields = list(rows.dtype.names or ()) if isinstance(rows, np.ndarray) else list(rows)
    if any(name.startswith("masked_") for name in fields):
        raise ValueError("pack first, mask afterwards: masked_* fields cannot be packed")
    real = np.asarray(rows["segment_ids"]) > 0
    count, length = real.shape
    sizes = np.diff(assignment.offsets)
    row = np.repeat(np.arange(assignment.rows), sizes)
    place = np.arange(count) - assignment.offsets[row]
    tokens = np.count_nonzero(real, axis=1)
    before = np.cumsum(tokens) - tokens
    shift = before - before[assignment.offsets[row]]  # where in its row an example begins
    if (shift + tokens > length).any() or (sizes > max_segments).any():
        raise ValueError(f"the examples of a row exceed {length} tokens or {max_segments} examples")

    example, column = np.nonzero(real)
    at = row[example] * length + shift[example] + column
    packed = {}
    for name in fields:
        values = np.asarray(rows[name])
        if name in _PER_TOKEN:
            joined = np.full(assignment.rows * length, pad_id if name == "input_ids" else 0, values.dtype)
            joined[at] = (place[example] + 1) if name == "segment_ids" else values[real]
            packed[name] = joined.reshape(assignment.rows, length)
        else:
            joined = np.zeros((assignment.rows, max_segments), values.dtype)
            joined[row, place] = values[:, 0] + shift if name in _COORDINATES else values[:, 0]
            packed[name] = joined
    return packed
