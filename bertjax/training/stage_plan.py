"""A stage with everything decided that does not need its parameters: data, program and episodes; and what remains."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.config.schema.run import Config, Stage
from bertjax.data.jobs.job_plan import ReportFn
from bertjax.data.pipeline.loader import Batches, open_batches
from bertjax.data.sources.class_names import ClassSpec
from bertjax.data.sources.registry import match_earlier_version
from bertjax.data.tokenizers.load import AnyTokenizer
from bertjax.errors import UserError
from bertjax.parallel.batches import local_rows
from bertjax.parallel.mesh_shape import batch_problem
from bertjax.parallel.multihost import primary
from bertjax.training import freezing
from bertjax.training.checkpoint import label_mapping
from bertjax.training.checkpoint.label_mapping import StageLabels
from bertjax.training.checkpoint.layout import committed_steps
from bertjax.training.checkpoint.locate import stage_folder
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext


@dataclass(frozen=True)
class StagePlan:
    """A stage with everything decided that does not need its parameters."""

    stage: Stage
    batches: Batches
    labels: StageLabels
    program: TrainProgram
    episodes: tuple[freezing.Episode, ...]
    rows: slice | np.ndarray


def open_stage(ctx: RunContext, index: int, previous: StageLabels | None) -> StagePlan:
    """Prepares the data and checks batch, mesh and episodes, so that a later stage's mistake shows at once.

    previous: the labels of the stage before.
    """
    stage = ctx.config.stages[index]
    report: ReportFn = partial(print, flush=True) if primary.is_primary() else lambda line: None
    batches, labels = open_data(
        ctx.config, index, ctx.tokenizer, previous, base=ctx.base, cache=ctx.prepared_dir, report=report
    )
    steps = batches.steps(stage)
    program = ctx.program(stage, steps)
    check_batch(stage, program)
    groups = freezing.param_groups(program.abstract_params())
    plan = freezing.episodes(stage.trainable, groups, steps)
    return StagePlan(stage, batches, labels, program, plan, local_rows(program.batch_sharding(), stage.batch_size))


def open_data(
    config: Config, index: int, tokenizer: AnyTokenizer, previous: StageLabels | None, *, base: Path, cache: Path,
    report: ReportFn, **options: Any,
) -> tuple[Batches, StageLabels]:  # fmt: skip
    """The batches of a stage and what its labels are; `options` of `open_batches`."""
    stage = config.stages[index]
    start = label_mapping.init_classes(config, base, index, previous)

    def opened(classes: ClassSpec | None) -> Batches:
        return open_batches(config, stage, tokenizer, base=base, cache=cache, report=report, classes=classes, **options)

    batches = opened(label_mapping.expected_classes(stage, start))
    if label_mapping.CLASSIFIER in stage.objective.heads:
        kept = label_mapping.saved_names(config, index)
        if kept is not None and list(kept) != batches.labels:
            batches = opened(ClassSpec(stage.objective.num_labels, kept, required=True))
    labels = label_mapping.resolve_labels(stage, start, batches)
    for line in labels.lines:
        report(line)
    return batches, labels


def unfinished_stages(config: Config, plans: list[StagePlan]) -> list[int]:
    """The last stage that has begun and those behind it.

    It may be at its end: it is restored all the same, and what is damaged made anew, before the next one builds on it.
    """
    begun = [i for i, p in enumerate(plans) if committed_steps(stage_folder(config.run_dir, i, p.stage.name))]
    return list(range(max(begun, default=0), len(plans)))


def check_batch(stage: Stage, program: TrainProgram) -> None:
    """Raises UserError when the rows of a micro-batch do not divide, naming batch sizes that do."""
    if problem := batch_problem(stage, program.mesh.shape, program.rules):
        raise UserError(problem)


def check_sources(ctx: RunContext, plan: StagePlan, before: Mapping[str, list[str]], folder: Path, step: int) -> None:
    """Raises UserError when the rows to come are not those that the run with the checkpoint `step` began with.

    before: fingerprints of the sources of each task, as that checkpoint has them.
    """
    changed = [name for name, now in plan.batches.source_fingerprints.items() if before.get(name) != now]
    if not changed:
        return
    stage, tasks = plan.stage, ctx.config.stage_tasks(plan.stage)
    head = f"stage '{stage.name}': "
    other = [name for name in changed if not match_earlier_version(tasks[name].source, ctx.base, before.get(name, []))]
    if other:
        raise UserError(
            f"{head}the source of task '{other[0]}' is not what it was when this run began; "
            "restore it, or give this run another run.name"
        )
    if step < plan.program.steps:
        raise UserError(
            f"{head}the run was begun by an earlier version of bertjax, which reads the same source of task "
            f"'{changed[0]}' otherwise; go on with that version, or under another run.name with init_from: {folder}"
        )
