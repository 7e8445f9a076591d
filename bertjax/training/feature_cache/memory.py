"""Decide in which episodes hidden states are cached: where rows are fixed, read more than once and fit in memory."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from bertjax.config.schema.run import Stage
from bertjax.data.pipeline.loader import Batches
from bertjax.data.pipeline.task_rows import Fields
from bertjax.parallel.multihost import primary
from bertjax.progress.text import size
from bertjax.training.feature_cache.cache import feature_field, field_name
from bertjax.training.freezing import Episode
from bertjax.training.program import TrainProgram


def wants_cache(stage: Stage) -> bool:
    """Whether the stage asks for cached features, or cached outputs of its frozen layers."""
    asked = stage.trainable
    return (asked.kind == "features" and asked.cache_features) or (asked.kind == "gradual" and asked.cache_frozen)


@dataclass(frozen=True)
class EpisodeCaches:
    """programs: {episode: the program that encodes its rows}; notes: why others have no cache, a line each.

    fields: that each of these caches adds to a batch.
    """

    programs: Mapping[int, TrainProgram]
    fields: Fields
    notes: Sequence[str]


def plan_caches(
    stage: Stage, program: TrainProgram, batches: Batches, episodes: Sequence[Episode], start: int
) -> EpisodeCaches:
    """Decide for the episodes that have steps after `start`; those without a frozen layer are not mentioned.

    It is decided once, since a cache takes of the free memory. All processes agree.
    """
    programs = {n: program.split_segments(e.groups) for n, e in enumerate(episodes) if start < e.stop}
    programs = {n: p for n, p in programs.items() if wants_cache(stage) and (p.frozen_layers or p.peft.feature_layers)}
    if not programs:
        return EpisodeCaches({}, {}, [])
    reasons: dict[str, list[int]] = {}
    fields: Fields = {}
    if obstacle := find_obstacle(stage, program, batches):
        reasons[obstacle] = list(programs)
    else:
        any_one = next(iter(programs.values()))  # the outputs of all layers have one shape
        shape, dtype = feature_field(any_one, batches.fields)
        fields = {field_name(any_one): (shape, dtype)}
        needed, limit = batches.rows_per_epoch * prod(shape) * dtype.itemsize, _smallest_limit(stage)
        for n in programs:
            reads = (episodes[n].stop - max(start, episodes[n].start)) * stage.batch_size
            if reads <= batches.rows_per_epoch:
                few = f"the {reads:,} rows to read are no more than the {batches.rows_per_epoch:,} rows there are"
                reasons.setdefault(few, []).append(n)
            elif needed > limit:
                limited = f"stages.{stage.name}.trainable.cache_gib, by default half of the free memory"
                much = f"{size(needed)} for {batches.rows_per_epoch:,} rows is more than {size(limit)} ({limited})"
                reasons.setdefault(much, []).append(n)
    left_out = {n for numbers in reasons.values() for n in numbers}
    notes = [f"{_describe_steps(stage, numbers)}: {reason}" for reason, numbers in reasons.items()]
    return EpisodeCaches({n: p for n, p in programs.items() if n not in left_out}, fields, notes)


def _describe_steps(stage: Stage, episodes: Sequence[int]) -> str:
    if stage.trainable.kind == "features":
        return "features are not cached, every step encodes its rows"
    several = f"episode{'s' * (len(episodes) > 1)} {', '.join(map(str, episodes))}"
    return f"{several}: outputs of frozen layers are not cached, every step computes them"


def find_obstacle(stage: Stage, program: TrainProgram, batches: Batches) -> str | None:
    """Why the steps of a stage cannot read hidden states from a cache; None if they can."""
    if program.objective.kept_positions is None:
        return f"the objective '{stage.objective.kind}' does not read them through objectives/encoder.py"
    if stage.distillation is not None:
        return "the teacher reads the rows, and losses of hidden states read all positions"
    if not batches.are_fixed:
        return "rows are masked when they are read, so they differ in each epoch"
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
