"""How a stage begins: with the newest good checkpoint of its own, or with parameters from its `init`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from bertjax.models import param_paths
from bertjax.parallel.multihost import primary
from bertjax.storage import atomic
from bertjax.training import freezing, run_context
from bertjax.training.checkpoint import adapters, warmstart
from bertjax.training.checkpoint.layout import has_pending_eval
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.teacher import LoadedTeacher
from bertjax.training.monitor.param_summary import model_summary
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.run_context import RunContext
from bertjax.training.stage.plan import StagePlan, check_sources
from bertjax.training.state import TrainState, from_tree, stage_keys
from bertjax.training.untrained_heads import UntrainedHeads, add_heads, restored_heads, summary_line


@dataclass(frozen=True)
class StageStart:
    """What belongs to the state that a stage begins with.

    meta: the meta data of the restored checkpoint, empty for a fresh start. scores: of the restored step; its
    evaluations have not ended if `pending_eval`. base: the base of adapter-only checkpoints. pretrained: the model on
    the Hub that the stage started from.
    """

    untrained: UntrainedHeads
    base: dict[str, Any] | None
    pretrained: dict[str, str] | None
    meta: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    pending_eval: bool = False


def init_or_restore(
    ctx: RunContext, plan: StagePlan, checkpoints: CheckpointManager, teacher: LoadedTeacher | None, tracker: Tracker
) -> tuple[TrainState, StageStart]:
    """Restore the state of a stage that has begun, else make a fresh one; remove metrics of later steps."""
    name, index = plan.stage.name, plan.files.index
    before = [stage.name for stage in ctx.config.stages[:index]]
    init_key, step_key = stage_keys(ctx.config.run.seed, index)
    if checkpoints.committed_steps():
        state, start = _restore(ctx, plan, checkpoints, teacher, tracker, step_key)
        tracker.rewind(before, name, int(state.step), scored=not start.pending_eval)
        tracker.event(name, int(state.step), "resume")
        return state, start
    tracker.rewind(before, name, -1)
    params, lines, base, untrained = warmstart.init_params(ctx, plan.files, plan.program, init_key, plan.labels.fresh)
    groups = plan.episodes[0].groups
    state = plan.program.init_state(params, groups, step_key)
    if primary.is_primary():
        text = model_summary(params, plan.program.param_shardings(), groups, plan.program.rate_factors)
        text += summary_line(untrained.params) if untrained.params else ""
        atomic.write_text_atomic(ctx.config.run_dir / "model.txt", text)
    tracker.event(name, 0, "start", init="; ".join([*lines, *([teacher.line] if teacher else [])]))
    place = plan.files.init_place
    return state, StageStart(untrained, base, place.record if place else None)


def _restore(
    ctx: RunContext, plan: StagePlan, checkpoints: CheckpointManager, teacher: LoadedTeacher | None, tracker: Tracker,
    key: jax.Array,
) -> tuple[TrainState, StageStart]:  # fmt: skip
    """Restore the newest good checkpoint; it has optimizer state for the groups of the episode of its step."""
    program, stage, index = plan.program, plan.stage, plan.files.index
    likes: dict[int, TrainState] = {}
    untrained: dict[str, Any] = {}

    def abstract(step: int, meta: dict[str, Any]) -> dict[str, Any]:
        number = freezing.episode_at(plan.episodes, max(step - 1, 0))
        likes[step] = program.abstract_state(plan.episodes[number].groups, key)
        everything = add_heads(program, meta.get("carried", ()), meta["num_labels"]).abstract_params()
        untrained.clear()
        own = program.abstract_params()
        untrained.update({path: x for path, x in everything.items() if path not in own})
        return adapters.checkpoint_tree(likes[step], stage, index, untrained)

    step, tree, meta = checkpoints.restore(abstract)
    check_sources(ctx, plan, meta["sources"], checkpoints.folder, step)
    if teacher is not None:
        teacher.check_same(stage, meta)
    for line in run_context.plugin_changes(ctx.config, meta):
        tracker.note(line)
    if change := run_context.topology_change(ctx.mesh, meta):
        tracker.note(f"{stage.name} {step}: {change}")
    base = meta.get("base")
    saved = param_paths.flatten(tree["params"])
    heads = restored_heads(meta, {path: saved[path] for path in untrained})
    if base is not None:
        saved |= adapters.base_params(base, checkpoints.folder, likes[step].frozen, ctx, plan.files.adapter_base)
    state = from_tree(tree | {"params": param_paths.unflatten(saved)}, likes[step])
    pending = has_pending_eval(checkpoints.folder, meta)
    return state, StageStart(heads, base, meta.get("pretrained"), meta, checkpoints.scores(step), pending)
