"""Writing the shards of a store, one job each.

What a shard holds depends on its job alone, never on which process or machine runs it or how many there are, so a store
is the same to the byte for any number of workers and any runner.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertjax.data.jobs.jobs import JobOutput, Jobs, LocalRunner, Runner, Shuffle
from bertjax.data.jobs.text_counts import META_KEY, TextCounts, merge_counts
from bertjax.data.store.manifest import shard_name
from bertjax.data.store.row_format import SEGMENTS
from bertjax.data.store.writer import StoreWriter, write_shard

Blocks = Iterator[np.ndarray]
CountedBlocks = Generator[np.ndarray, None, TextCounts]  # returns what it has counted of the texts
RowSums = Callable[[np.ndarray], dict[str, int]]
MakeBlocks = Callable[[Any, Any], Blocks]  # (what all jobs share, one job's argument) -> blocks of rows

BLOCK_ROWS = 1024


class ShardContext(NamedTuple):
    """What the jobs of one store share."""

    make: MakeBlocks
    shared: Any
    row_sums: RowSums | None


class WriteResult(NamedTuple):
    """Attributes:
    lengths: the number of tokens of each row, int32 [rows]; with targets of inputs and targets, int32 [rows, 2].
    shards: how many were read; reused: how many of them were there already.
    sums: of `row_sums` over all rows.
    text_counts: of all shards; see `text_counts`.
    """

    lengths: np.ndarray
    shards: int
    reused: int
    sums: Counter[str]
    text_counts: TextCounts


def write_shards(
    make: MakeBlocks,
    shared: Any,
    arguments: Iterable[Any],
    writer: StoreWriter,
    *,
    records: Path,
    workers: int,
    runner: Runner | None = None,
    shuffle: Shuffle | None = None,
    row_sums: RowSums | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> WriteResult:
    """Runs `make(shared, argument)` for each argument and adds one shard for each to `writer`, in order.

    Args:
        make: a module-level function; it and `shared` are sent to each process once.
        records: where the records of finished shards are kept; those that are there and whole are not made again.
        workers: processes; 1 works in this one.
        shuffle: how a runner apart brings to the jobs what they would else read from `shared` at random.
        row_sums: a module-level function of a block of rows -> counts to add up.
        progress: told the rows so far after every shard.
    """
    jobs = Jobs(make_shard, ShardContext(make, shared, row_sums), writer.temporary, records)
    lengths: list[np.ndarray] = []
    rows, found, counts = 0, 0, TextCounts()
    sums: Counter[str] = Counter()
    run = (runner or LocalRunner()).run(jobs, arguments, workers=workers, shuffle=shuffle)
    with closing(run) as results:  # type: ignore[type-var]
        for record in results:
            for entry in record.files:
                size = {"records": record.facts["records"], "bytes": entry["bytes"], "sha256": entry["sha256"]}
                writer.add_shard({"file": entry["file"], **size})
            lengths.append(record.counts)
            rows += len(record.counts)
            found += record.reused
            sums.update(record.facts["sums"])
            counts = merge_counts(counts, record.facts[META_KEY])
            progress(rows)
    return WriteResult(_concat(lengths), len(lengths), found, sums, counts)


def make_shard(context: ShardContext, argument: Any, index: int, folder: Path) -> JobOutput:
    """A job (`jobs.JobFn`): one shard in `folder`, or none when there are no rows. Counts: the tokens of each row."""
    lengths: list[np.ndarray] = []
    sums: Counter[str] = Counter()
    counts = TextCounts()

    def counted() -> Iterator[np.ndarray]:
        blocks = context.make(context.shared, argument)
        while True:
            try:
                block = next(blocks)
            except StopIteration as end:
                counts.update(end.value or {})
                return
            lengths.append(_tokens(block))
            if context.row_sums is not None:
                sums.update(context.row_sums(block))
            yield block

    records = write_shard(folder / shard_name(index), counted())
    facts = {"records": records, "sums": dict(sums), META_KEY: counts}
    return JobOutput([shard_name(index)] if records else [], facts, _concat(lengths))


def _tokens(rows: np.ndarray) -> np.ndarray:
    if "length" in (rows.dtype.names or ()):  # chunks of text
        return rows["length"][:, 0]
    counts = [np.count_nonzero(rows[name], axis=1) for name in SEGMENTS if name in (rows.dtype.names or ())]
    return (np.stack(counts, axis=1) if len(counts) > 1 else counts[0]).astype(np.int32)


def _concat(parts: list[np.ndarray]) -> np.ndarray:
    filled = [part for part in parts if len(part)]
    return np.concatenate(filled) if filled else np.zeros(0, np.int32)
