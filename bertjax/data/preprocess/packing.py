"""Packing: several examples share a row, separated by segment_ids, so that few positions are padding.

A row is one sequence, or two: the inputs and the targets of a text-to-text model, which both must fit.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bertjax.data.jobs.job_plan import Blocks, JobPlan, needs_worker_pool, shard_tokens
from bertjax.data.jobs.shards import BLOCK_ROWS
from bertjax.data.preprocess.masking import StaticMasker
from bertjax.data.store.reader import Store
from bertjax.data.store.row_format import SEGMENTS, packed_dtype, row_lengths

VERSION = 1  # of packed rows, in the key of prepared data

# Fields with a value for each token, under the name of the segment ids that number their sequence.
_PER_TOKEN = {
    "segment_ids": (
        "input_ids", "token_type_ids", "segment_ids", "positions", "token_labels", "word_ids", "frequencies",
    ),
    "target_segment_ids": ("target_ids", "target_segment_ids", "target_positions", "target_weights"),
}  # fmt: skip
_COORDINATES = ("cls_positions", "start_positions", "end_positions")


class Assignment(NamedTuple):
    """Which examples share a row: row r holds examples[offsets[r]:offsets[r + 1]], in that order."""

    examples: np.ndarray  # int64 [N]
    offsets: np.ndarray  # int64 [R + 1]

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> "Assignment":
        """Rows start..stop (exclusive)."""
        offsets = self.offsets[start : stop + 1]
        return Assignment(self.examples[offsets[0] : offsets[-1]], offsets - offsets[0])


Filling = tuple[int, ...]  # the lengths that share a row


def pack_lengths(lengths: np.ndarray, sequence_length: int, max_segments: int) -> Assignment:
    """Assigns examples of these lengths (int [N]) to rows of `sequence_length` tokens and `max_segments` examples.

    Best-fit decreasing on the histogram of lengths (after SPFHP, Krell et al., arXiv 2107.02027 section 3.1): the
    longest go first, each into the fullest row that still has room. The time hardly depends on N. Deterministic: a
    fixed seed shuffles which examples share a row and the order of the rows, so neighbours in the data (questions about
    one paragraph) are not packed together and the place of a row is independent of how full it is.
    Raises ValueError for a length below 1 or above sequence_length.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) == 0:
        return Assignment(np.zeros(0, np.int64), np.zeros(1, np.int64))
    if lengths.min() < 1 or lengths.max() > sequence_length or max_segments < 1:
        raise ValueError(f"example lengths must be 1..{sequence_length}, not {lengths.min()}..{lengths.max()}")
    histogram = np.bincount(lengths, minlength=sequence_length + 1)
    return _assign(lengths, histogram, _fillings(histogram.tolist(), sequence_length, max_segments))


def pack_pairs(lengths: np.ndarray, row: tuple[int, int], max_segments: int) -> Assignment:
    """Assigns examples of two lengths each (int [N, 2]) to rows that hold `row` tokens of the first and of the second.

    Best-fit decreasing, as in `pack_lengths`: examples are sorted by the larger of their two shares of a row. Each goes
    to the fitting row with the least free space, compared in the sequence that is scarcer overall, then in the other.
    Raises ValueError for a length below 1 or above the row's.
    """
    lengths = np.asarray(lengths, np.int64).reshape(-1, 2)
    if len(lengths) == 0:
        return Assignment(np.zeros(0, np.int64), np.zeros(1, np.int64))
    if lengths.min() < 1 or (lengths > row).any() or max_segments < 1:
        raise ValueError(f"example lengths must be 1..{row}, not {lengths.min(0)}..{lengths.max(0)}")
    fullness = lengths.sum(0) / row
    order = [0, 1] if fullness[0] >= fullness[1] else [1, 0]  # the scarcer sequence first
    pairs, kind, counts = np.unique(lengths[:, order], axis=0, return_inverse=True, return_counts=True)
    fillings = _pair_fillings(pairs.tolist(), counts.tolist(), (row[order[0]], row[order[1]]), max_segments)
    return _assign(kind.reshape(-1), counts, fillings)


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
            else:
                filling, rows, space = (), count, sequence_length
            # As many of this length as fit: after the first the row is the fullest one and would be chosen again.
            copies = min(space // length, max_segments - len(filling), count)
            used = min(rows, count // copies)
            if filling and used < rows:
                room[space].append((filling, rows - used))
            elif filling and not room[space]:
                spaces &= ~(1 << space)
            filling, space, count = filling + (length,) * copies, space - copies * length, count - used * copies
            if space and len(filling) < max_segments:
                room[space].append((filling, used))
                spaces |= 1 << space
            else:
                full.append((filling, used))
    return full + [entry for entries in room.values() for entry in entries]


def _pair_fillings(
    pairs: list[list[int]], counts: list[int], row: tuple[int, int], max_segments: int
) -> list[tuple[Filling, int]]:
    """`_fillings` for pairs of lengths; a filling holds their places in `pairs`."""
    full: list[tuple[Filling, int]] = []
    room: dict[tuple[int, int], list[tuple[Filling, int]]] = defaultdict(list)  # rows by what they still take of both
    firsts, seconds = 0, [0] * (row[0] + 1)  # bit s of seconds[f]: room[f, s] is not empty; bit f of firsts: seconds[f]
    most = [(max(first / row[0], second / row[1]), first, second) for first, second in pairs]
    for kind in sorted(range(len(pairs)), key=most.__getitem__, reverse=True):
        (first, second), count = pairs[kind], counts[kind]
        while count:
            space = _tightest(firsts, seconds, first, second)
            if space:
                filling, rows = room[space].pop()
            else:
                filling, rows, space = (), count, row
            copies = min(space[0] // first, space[1] // second, max_segments - len(filling), count)
            used = min(rows, count // copies)
            if filling and used < rows:
                room[space].append((filling, rows - used))
            elif filling and not room[space]:
                seconds[space[0]] &= ~(1 << space[1])
                if not seconds[space[0]]:
                    firsts &= ~(1 << space[0])
            filling += (kind,) * copies
            left = (space[0] - copies * first, space[1] - copies * second)
            count -= used * copies
            if min(left) and len(filling) < max_segments:
                room[left].append((filling, used))
                seconds[left[0]] |= 1 << left[1]
                firsts |= 1 << left[0]
            else:
                full.append((filling, used))
    return full + [entry for entries in room.values() for entry in entries]


def _tightest(firsts: int, seconds: list[int], first: int, second: int) -> tuple[int, int] | None:
    """The least room (of the first length, then of the second) that holds both lengths."""
    wanted = firsts >> first << first
    while wanted:
        lowest = (wanted & -wanted).bit_length() - 1
        fits = seconds[lowest] >> second
        if fits:
            return lowest, second + (fits & -fits).bit_length() - 1
        wanted &= wanted - 1
    return None


def _assign(lengths: np.ndarray, histogram: np.ndarray, fillings: list[tuple[Filling, int]]) -> Assignment:
    """Gives each place of each filling an example of its length; both are shuffled."""
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

    `rows` has one example a row, *in the order of assignment.examples* (`store.rows(part.examples)`): the fields of
    `_PER_TOKEN` [N, S] and [N, T], everything else [N, 1].
    Returns the same fields for R rows: those with a value for each token [R, S] and [R, T], with segment ids 1..G in
    row order and positions that restart; the others [R, G], zero where there is no example, those of cls, start and end
    positions moved to row coordinates. dtypes stay.
    Raises ValueError when the examples do not fit, and for masked_* fields: rows are masked after packing.
    """
    fields = list(rows.dtype.names or ()) if isinstance(rows, np.ndarray) else list(rows)
    if any(name.startswith("masked_") for name in fields):
        raise ValueError("pack first, mask afterwards: masked_* fields cannot be packed")
    row = np.repeat(np.arange(assignment.rows), np.diff(assignment.offsets))
    place = np.arange(len(row)) - assignment.offsets[row]
    layouts = {
        name: _layout(np.asarray(rows[segments]) > 0, assignment, row, place, max_segments)
        for segments, names in _PER_TOKEN.items() if segments in fields
        for name in names if name in fields
    }  # fmt: skip
    packed = {}
    for name in fields:
        values = np.asarray(rows[name])
        if layout := layouts.get(name):
            real = layout.numbers if name in SEGMENTS else values[layout.real]
            joined = np.full(layout.shape, pad_id if name == "input_ids" else 0, values.dtype)
            joined.reshape(-1)[layout.at] = real
        else:
            joined = np.zeros((assignment.rows, max_segments), values.dtype)
            joined[row, place] = values[:, 0] + layouts["input_ids"].shift if name in _COORDINATES else values[:, 0]
        packed[name] = joined
    return packed


class _Layout(NamedTuple):
    """Where the tokens of one sequence go: from N unpacked rows to R packed ones of S places."""

    shape: tuple[int, int]  # [R, S]
    real: np.ndarray  # bool [N, S] what is not padding
    at: np.ndarray  # int64 [tokens] its place in the packed rows, flattened
    numbers: np.ndarray  # int64 [tokens] its segment id there
    shift: np.ndarray  # int64 [N] where in its row an example begins


def _layout(real: np.ndarray, assignment: Assignment, row: np.ndarray, place: np.ndarray, max_segments: int) -> _Layout:
    """row, place: int64 [N] the packed row of each example and its number in there."""
    length = real.shape[1]
    tokens = np.count_nonzero(real, axis=1)
    before = np.cumsum(tokens) - tokens
    shift = before - before[assignment.offsets[row]]
    if (shift + tokens > length).any() or (place >= max_segments).any():
        raise ValueError(f"the examples of a row exceed {length} tokens or {max_segments} examples")
    example, column = np.nonzero(real)
    at = row[example] * length + shift[example] + column
    return _Layout((assignment.rows, length), real, at, place[example] + 1, shift)


@dataclass(frozen=True)
class PackingContext:
    store: Store
    max_segments: int
    pad_id: int
    dtype: np.dtype
    masker: StaticMasker | None


def packing_blocks(context: PackingContext, part: tuple[int, Assignment]) -> Blocks:
    """Packs the rows of an assignment, numbered from part[0], from a store of unpacked rows."""
    first, assignment = part
    for start in range(0, assignment.rows, BLOCK_ROWS):
        some = assignment.part(start, min(start + BLOCK_ROWS, assignment.rows))
        packed = pack_rows(context.store.rows(some.examples), some, context.max_segments, context.pad_id)
        rows = np.zeros(some.rows, context.dtype)
        for name, values in packed.items():
            rows[name] = values
        if context.masker:
            context.masker(rows, first + start)
        yield rows


def plan_packing(
    store: Store, lengths: np.ndarray, max_segments: int, pad_id: int, masker: StaticMasker | None
) -> JobPlan:
    """Jobs that pack the rows of `store`, which have `lengths` tokens [N] or [N, 2]. facts: the number of rows."""
    room = row_lengths(store.dtype)
    if len(room) > 1:
        assignment = pack_pairs(lengths, (room[0], room[1]), max_segments)
    else:
        assignment = pack_lengths(lengths, room[0], max_segments)
    tokens = assignment.rows * sum(room)
    step = shard_tokens(tokens) // sum(room) + 1
    parts = (
        (first, assignment.part(first, min(first + step, assignment.rows))) for first in range(0, assignment.rows, step)
    )
    dtype = packed_dtype(store.dtype, max_segments)
    dtype = masker.with_fields(dtype) if masker else dtype
    context = PackingContext(store, max_segments, pad_id, dtype, masker)
    return JobPlan(packing_blocks, context, parts, dtype, needs_worker_pool(tokens), {"rows": assignment.rows})
