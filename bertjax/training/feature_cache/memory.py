"""Decide whether the features of a stage are cached: whether rows are fixed, read more than once and fit in memory."""

import os
from pathlib import Path

from bertjax.config.schema.run import Stage
from bertjax.data.pipeline.loader import Batches
from bertjax.parallel.multihost import primary
from bertjax.progress.text import size
from bertjax.training.feature_cache.cache import cache_bytes
from bertjax.training.program import TrainProgram


def wants_cache(stage: Stage) -> bool:
    """Whether the stage asks for cached features."""
    return stage.trainable.kind == "features" and stage.trainable.cache_features


def find_obstacle(stage: Stage, program: TrainProgram, batches: Batches, start: int) -> str | None:
    """Why the features that the steps after `start` read are not cached; None if they are. All processes agree."""
    if program.objective.kept_positions is None:
        return f"the objective '{stage.objective.kind}' does not read them through objectives/encoder.py"
    if stage.distillation is not None:
        return "the teacher reads the rows, and losses of hidden states read all positions"
    if not batches.are_fixed:
        return "rows are masked when they are read, so they differ in each epoch"
    reads = (program.steps - start) * stage.batch_size
    if reads <= batches.rows_per_epoch:
        return f"the {reads:,} rows to read are no more than the {batches.rows_per_epoch:,} rows there are"
    needed, limit = cache_bytes(program, batches), _smallest_limit(stage)
    if needed > limit:
        limited = f"stages.{stage.name}.trainable.cache_gib, by default half of the free memory"
        return f"{size(needed)} for {batches.rows_per_epoch:,} rows is more than {size(limit)} ({limited})"
    return None


def _smallest_limit(stage: Stage) -> int:
    """The limit in bytes of the process with the least memory."""
    given = stage.trainable.cache_gib
    mine = free_memory() // 2 if given is None else int(given * 2**30)
    return int(primary.reduce_on_primary(str(mine), lambda limits: min(map(int, limits))))


def free_memory() -> int:
    """Bytes that this process can still allocate: of the machine and, where it is in a container, of that."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    most, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if most.isdigit() and used.isdigit():
        found.append(max(int(most) - int(used), 0))
    return min(found)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
