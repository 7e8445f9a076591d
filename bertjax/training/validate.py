"""Check a run before it writes anything: kinds that fit each other, saved settings, what stages start from."""

from collections.abc import Collection, Sequence

from bertjax.config.loading.load import build_saved, identity_diff, load_saved
from bertjax.config.schema.evaluation import Evaluation
from bertjax.config.schema.run import Config, Stage
from bertjax.errors import BertjaxError, UserError
from bertjax.objectives import registry as objectives
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.progress import reporter
from bertjax.training import preflight
from bertjax.training.checkpoint import warmstart
from bertjax.training.checkpoint.layout import has_pending_eval
from bertjax.training.checkpoint.locate import find_stage_names
from bertjax.training.checkpoint.stage_files import StageFiles, newest_meta
from bertjax.training.program import stage_program
from bertjax.training.run_context import RunContext
from bertjax.training.stage.plan import StagePlan
from bertjax.training.triggers.early_stopping import stopped_early


def check_settings(stages: Sequence[StageFiles]) -> None:
    """Raise UserError when parts of a stage do not fit, or when the run folder holds a run with other settings."""
    config = stages[0].config
    merge_rules(config.mesh.rules)
    for stage in config.stages:
        check_kinds(config, stage)
    saved = _saved_config(stages)
    if changed := identity_diff(saved, config) if saved else []:
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        raise UserError(
            f"{config.run_place / 'config.yaml'}: this run has other settings "
            f"({'; '.join(line[:80] for line in changed[:2])}{more}); "
            "give this one another run.name, or undo the change to continue"
        )


def _saved_config(stages: Sequence[StageFiles]) -> Config | None:
    """The configuration that the run began with: of its newest checkpoint, else of its config.yaml; None without both.

    A checkpoint's is compared with a digest, so a damaged config.yaml beside it is replaced, with a note. Without a
    checkpoint nothing has been learned that it would decide.
    """
    config = stages[0].config
    path, kept, damage = config.run_place / "config.yaml", config.run_dir / "config.yaml", ""
    written = None
    try:
        written = load_saved(kept) if kept.exists() else None
    except UserError as error:
        damage = str(error).splitlines()[0].removeprefix(f"{kept}:").strip()[:120]
    meta = newest_meta(stages)
    saved = build_saved(meta["config"], where=str(path)) if meta else written
    if written is not None and saved is not None and saved is not written and identity_diff(written, saved):
        damage = "it differs from the checkpoints"
    if damage:
        if meta is None and (others := find_stage_names(config.run_place)):
            raise UserError(
                f"{path}: damaged ({damage}), and the checkpoints there are of other stages ({', '.join(others)}); "
                "give this run another run.name, or name its stages as they were"
            )
        reporter.say(f"note: {path}: damaged ({damage}); it is written again")
    return saved


def check_kinds(config: Config, stage: Stage) -> None:
    """Raise UserError when the rows or evaluations of a stage do not fit its objective."""
    objective = stage.objective
    head = f"stage '{stage.name}': objective {objective.kind}"
    if stage.distillation is not None:
        try:
            objectives.build(objective, distillation=stage.distillation)
        except UserError as error:
            raise UserError(f"{head}: distillation: {error}") from None
    for name, task in config.stage_tasks(stage).items():
        kind = task.preprocess.kind
        if kind not in objective.preprocess:
            fitting = _join_or(objective.preprocess)
            raise UserError(f"{head} reads rows made by {fitting}; task '{name}' has preprocess.kind {kind}")
    names = [evaluation.name for evaluation in stage.evaluate]
    for evaluation in stage.evaluate:
        which = f"evaluation '{evaluation.name}'"
        if evaluation.kind not in objective.evaluations:
            use = f"use kind {_join_or(objective.evaluations)}"
            raise UserError(f"{head} cannot be scored by {which} of kind {evaluation.kind}; {use}")
        _check_rows(stage, evaluation, f"stage '{stage.name}': {which}")
        if names.count(evaluation.name) > 1:
            raise UserError(f"stage '{stage.name}': there are two of {which}; give one another name")
    check_threshold_sources(stage)


def check_threshold_sources(stage: Stage, kept: Collection[str] = ()) -> None:
    """Raise UserError unless each `threshold_from` names another evaluation that sweeps a threshold of its own.

    kept: names of evaluations whose threshold the checkpoint keeps.
    """
    sweeping = [e.name for e in stage.evaluate if getattr(e, "threshold_from", "") is None]
    for evaluation in stage.evaluate:
        source, name = getattr(evaluation, "threshold_from", None), evaluation.name
        if source is None or source in kept or source in sweeping:
            continue
        known = [*dict.fromkeys([*sweeping, *kept])]
        use = f"use {_join_or(known)}" if known else "add one"
        raise UserError(
            f"stage '{stage.name}': evaluation '{name}': threshold_from: '{source}' is not another evaluation of this "
            f"stage that sweeps a threshold; {use}"
        )


def _check_rows(stage: Stage, evaluation: Evaluation, where: str) -> None:
    kinds = evaluation.preprocess or stage.objective.preprocess
    if evaluation.data.preprocess.kind not in kinds:
        raise UserError(f"{where}: data.preprocess.kind must be {_join_or(kinds)}")


def check_scores(stage: Stage, heads: Collection[str], where: str, name: str | None = None) -> None:
    """Raise UserError when an evaluation of a stage (or the one called `name`) cannot score a checkpoint's heads.

    An evaluation with a `head` needs that head, which may be a carried one; others need an objective that lists them.
    """
    for evaluation in stage.evaluate:
        if name not in (None, evaluation.name):
            continue
        which = f"evaluation '{evaluation.name}' of kind {evaluation.kind}"
        if evaluation.head is not None and evaluation.head not in heads:
            has = f"has heads {', '.join(heads)}" if heads else "has none"
            need = f"{which} needs the head '{evaluation.head}'"
            raise UserError(f"{where}: {need}, the checkpoint of stage '{stage.name}' {has}")
        if evaluation.head is None and evaluation.kind not in stage.objective.evaluations:
            raise UserError(
                f"{where}: objective {stage.objective.kind} of stage '{stage.name}' cannot be scored by {which}; "
                f"use kind {_join_or(stage.objective.evaluations)}, or name another --stage"
            )
        _check_rows(stage, evaluation, f"{where}: {which}")


def _join_or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def check_init_sources(ctx: RunContext, plans: Sequence[StagePlan]) -> None:
    """Raise UserError when a stage that has not begun could not read what its `init_from` names."""
    shapes: warmstart.Shapes = {}  # at the end of the previous stage
    for plan in plans:
        if not plan.files.has_begun:
            shapes = warmstart.check_init(ctx, plan.files, plan.program, shapes, plan.labels.fresh)
            continue
        try:
            shapes = warmstart.checkpoint_shapes(ctx, plan.files.checkpoints)
        except BertjaxError:  # restoring the stage reports it
            shapes = plan.program.abstract_params()


def check_init_shapes(stages: Sequence[StageFiles], classes: preflight.StageClasses) -> None:
    """As `check_init_sources`, before anything is prepared: without the tokenizer, and without what labels decide."""
    config, base = stages[0].config, stages[0].base
    if all(files.init_folder is None or files.has_begun for files in stages):
        return
    ctx = RunContext(config, base, make_mesh(config.mesh))
    shapes: warmstart.Shapes = {}
    for files in stages:
        program = stage_program(config, files.stage, ctx.mesh, files.stage.steps or 1)
        if files.has_begun:
            shapes = program.abstract_params()
        else:
            shapes = warmstart.check_init(ctx, files, program, shapes, preflight.maybe_fresh(files.stage, classes))


def is_complete(last: StageFiles) -> bool:
    """Whether the last stage has saved and evaluated its last step, judged by its checkpoints alone."""
    if not (steps := last.checkpoints.committed_steps()):
        return False
    meta = last.checkpoints.meta()
    if meta["step"] != steps[-1] or has_pending_eval(last.checkpoints.folder, meta):
        return False
    return meta["step"] == meta.get("steps") or stopped_early(
        last.config, last.stage, meta, last.checkpoints.scores_of(meta["step"])
    )
