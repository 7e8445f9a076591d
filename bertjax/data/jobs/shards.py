"""Writes the shards of a store, one job each: the bytes are the same for any number of workers and any runner."""

from collections import Counter
from collections.abc import Callable, Iterator, Sized
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertjax.data.jobs.job_plan import Blocks, JobPlan, PrepareContext
from bertjax.data.jobs.jobs import JobOutput, Jobs
from bertjax.data.jobs.text_counts import META_KEY, TextCounts, merge_counts
from bertjax.data.store.manifest import shard_name
from bertjax.data.store.row_codec import CODEC
from bertjax.data.store.row_format import SEGMENTS
from bertjax.data.store.writer import StoreWriter, write_shard
from bertjax.progress import reporter

BLOCK_ROWS = 1024


class ShardContext(NamedTuple):
    """What the jobs of one store share: see `JobPlan`."""

    make: Callable[[Any, Any], Blocks]
    shared: Any
    row_sums: Callable[[np.ndarray], dict[str, int]] | None


class WriteResult(NamedTuple):
    """What `write_shards` has written."""

    lengths: np.ndarray  # tokens of each row, int32 [rows]; of rows with inputs and targets int32 [rows, 2]
    shards: int
    reused: int  # shards that an earlier call had finished
    sums: Counter[str]  # of `row_sums` over all rows
    text_counts: TextCounts


def write_shards(context: PrepareContext, plan: JobPlan, writer: StoreWriter, what: str) -> WriteResult:
    """Runs the jobs of `plan` and adds their shards to `writer` in order. `what`: "examples" or "rows"."""
    shared = ShardContext(plan.make, plan.shared, plan.row_sums)
    jobs = Jobs(make_shard, shared, writer.temporary, context.folder / f"{what}-done")
    lengths: list[np.ndarray] = []
    reused, counts = 0, TextCounts()
    sums: Counter[str] = Counter()
    workers = context.workers if plan.use_pool else 1
    run = context.runner.run(jobs, plan.arguments, workers=workers, shuffle=plan.shuffle)
    task = reporter.task(f"{context.name}: making {what}", plan.facts.get("rows"), "rows", finish=False)
    if isinstance(plan.arguments, Sized):
        task.expect(len(plan.arguments), "parts")
    with task, closing(run) as results:  # type: ignore[type-var]
        for record in results:
            for entry in record.files:
                # A job finished by an earlier version has no codec: its rows are not coded.
                facts: dict[str, Any] = {
                    name: record.facts[name] for name in ("records", "codec") if name in record.facts
                }
                size = {"bytes": entry["bytes"], "sha256": entry["sha256"]}
                writer.add_shard({"file": entry["file"], **facts, **size})
            lengths.append(record.counts)
            reused += record.reused
            sums.update(record.facts["sums"])
            counts = merge_counts(counts, record.facts[META_KEY])
            task.advance(1, "parts")
            if record.reused:
                task.advance(len(record.counts), "rows")
    return WriteResult(_concat(lengths), len(lengths), reused, sums, counts)


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
            reporter.advance(len(block), "rows")
            yield block

    records = write_shard(folder / shard_name(index), counted())
    facts = {"records": records, "codec": CODEC, "sums": dict(sums), META_KEY: counts}
    return JobOutput([shard_name(index)] if records else [], facts, _concat(lengths))


def _tokens(rows: np.ndarray) -> np.ndarray:
    if "length" in (rows.dtype.names or ()):  # chunks of text
        return rows["length"][:, 0]
    counts = [np.count_nonzero(rows[name], axis=1) for name in SEGMENTS if name in (rows.dtype.names or ())]
    return (np.stack(counts, axis=1) if len(counts) > 1 else counts[0]).astype(np.int32)


def _concat(parts: list[np.ndarray]) -> np.ndarray:
    filled = [part for part in parts if len(part)]
    return np.concatenate(filled) if filled else np.zeros(0, np.int32)
