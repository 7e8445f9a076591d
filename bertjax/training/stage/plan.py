"""Plan a stage: open its data, build its program and episodes, before its parameters exist."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.config.schema.run import Stage
from bertjax.data.jobs.job_plan import ReportFn
from bertjax.data.pipeline.loader import Batches, open_batches
from bertjax.data.sources.class_names import ClassSpec
from bertjax.data.sources.registry import match_earlier_version
from bertjax.data.tokenizers.load import AnyTokenizer
from bertjax.errors import UserError
from bertjax.objectives import class_weights
from bertjax.parallel.batches import local_rows
from bertjax.parallel.mesh_shape import batch_problem
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter
from bertjax.training import freezing, rates
from bertjax.training.checkpoint import label_mapping
from bertjax.training.checkpoint.label_mapping import StageLabels
from bertjax.training.checkpoint.stage_files import StageFiles
from bertjax.training.checkpoint.teacher import TeacherFiles
from bertjax.training.program import TrainProgram, stage_program
from bertjax.training.run_context import MULTI_LABEL, RunContext
from bertjax.training.untrained_heads import UntrainedHeads, label_head


@dataclass(frozen=True)
class StagePlan:
    """Everything about a stage but its parameters; `rows`: the rows of each batch that this process reads."""

    files: StageFiles
    batches: Batches
    labels: StageLabels
    program: TrainProgram
    episodes: tuple[freezing.Episode, ...]
    rows: slice | np.ndarray

    @property
    def stage(self) -> Stage:
        return self.files.stage

    def checkpoint_facts(
        self, untrained: UntrainedHeads, base: Mapping[str, Any] | None, pretrained: Mapping[str, str] | None
    ) -> dict[str, Any]:
        """The meta data of a checkpoint about data, carried heads, the base of adapters and the model on the Hub."""
        batches = self.batches
        about = {"steps": self.program.steps, "sources": batches.source_fingerprints, "labels": self.labels.names}
        about |= {"unanswerable": batches.unanswerable} if batches.unanswerable is not None else {}
        about |= untrained.meta
        about |= {"base": dict(base)} if base else {}
        about |= {"pretrained": dict(pretrained)} if pretrained else {}
        about |= {"carried": list(untrained.heads)}
        about |= {"problem_type": MULTI_LABEL} if self.labels.multi_label else {}
        return about | ({"num_labels": untrained.num_labels} if untrained.num_labels else {})


def open_stage(ctx: RunContext, files: StageFiles, previous: StageLabels | None) -> StagePlan:
    """Prepare the data of a stage and check its batch, mesh and episodes; `previous`: labels of the previous stage."""
    stage = files.stage
    report: ReportFn = reporter.result if primary.is_primary() else lambda line: None
    teacher = None if stage.distillation is None or files.is_past else TeacherFiles(files)
    if teacher is not None:
        teacher.check_tokenizer(ctx)
        teacher.check()
    batches, labels = open_data(
        files, ctx.tokenizer, previous, cache=ctx.prepared_dir, report=report, fingerprint=ctx.fingerprint
    )
    steps = batches.steps(stage)
    if teacher is not None:
        teacher.check_labels(labels)
    program = stage_program(
        ctx.config, _weighted(stage, batches, labels, report), ctx.mesh, steps,
        teacher=teacher.teacher if teacher else None,
    )  # fmt: skip
    check_batch(stage, program)
    groups = freezing.param_groups(program.abstract_params())
    plan = freezing.stage_episodes(stage, groups, steps)
    rates.check_patterns(stage, program.abstract_params(), plan)
    if unused := freezing.unused_options(stage.trainable):
        report(f"note: trainable.{', '.join(unused)}: not read by kind: {stage.trainable.kind}")
    if note := rates.muon_note(stage, program.abstract_params(), plan):
        report(f"note: {note}")
    if stage.optimizer.restart:
        program = replace(program, episodes=rates.restarts(stage, plan))
    return StagePlan(files, batches, labels, program, plan, local_rows(program.batch_sharding(), stage.batch_size))


def _weighted(stage: Stage, batches: Batches, labels: StageLabels, report: ReportFn) -> Stage:
    """The stage with the `class_weights` of its objective by id."""
    if getattr(stage.objective, "class_weights", None) is None:
        return stage
    try:
        objective, line = class_weights.weigh_classes(stage.objective, labels.names, batches.stores.values())
    except UserError as error:
        raise UserError(f"stages.{stage.name}.objective.class_weights: {error}") from None
    report(f"stage '{stage.name}': {line}")
    return stage.model_copy(update={"objective": objective})


def open_data(
    files: StageFiles, tokenizer: AnyTokenizer, previous: StageLabels | None, **options: Any
) -> tuple[Batches, StageLabels]:
    """Open the batches of a stage and resolve its labels; `options` go to `open_batches`."""
    stage = files.stage
    start = label_mapping.init_classes(files, previous)

    def opened(classes: ClassSpec | None) -> Batches:
        return open_batches(files.config, stage, tokenizer, base=files.base, classes=classes, **options)

    batches = opened(label_mapping.expected_classes(stage, start))
    if label_head(stage.objective.heads):
        kept = label_mapping.saved_names(files)
        if kept is not None and list(kept) != batches.labels:
            batches = opened(ClassSpec.of_objective(stage.objective, kept, required=True))
    labels = label_mapping.resolve_labels(stage, start, batches)
    for line in labels.lines:
        options["report"](line)
    return batches, labels


def unfinished_stages(plans: list[StagePlan]) -> list[int]:
    """The last stage that has begun, which is restored even when it is finished, and the stages after it."""
    begun = [index for index, plan in enumerate(plans) if plan.files.has_begun]
    return list(range(max(begun, default=0), len(plans)))


def check_batch(stage: Stage, program: TrainProgram) -> None:
    """Raise UserError when the rows of a micro-batch do not divide, naming batch sizes that do."""
    if problem := batch_problem(stage, program.mesh.shape, program.rules):
        raise UserError(problem)


def check_sources(ctx: RunContext, plan: StagePlan, before: Mapping[str, list[str]], folder: Path, step: int) -> None:
    """Raise UserError when the sources of tasks differ from `before`, their fingerprints in the checkpoint `step`."""
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
