"""The compiled step of a stage, its state and its batches, for training loops of one's own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bertjax.api.train import ConfigLike, make_config
from bertjax.config.loading import plugins
from bertjax.config.schema.run import Config
from bertjax.errors import UserError
from bertjax.parallel.batches import place
from bertjax.parallel.multihost import initialize
from bertjax.parallel.multihost.primary import primary_first, run_on_primary
from bertjax.storage.mirror import Mirror
from bertjax.training import inputs, run_context, validate
from bertjax.training.checkpoint import adapters, warmstart
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.stage_files import newest_meta, run_stages
from bertjax.training.checkpoint.teacher import load_teacher
from bertjax.training.freezing import Episode
from bertjax.training.monitor import run_mirror
from bertjax.training.run_context import RunContext
from bertjax.training.stage.plan import StagePlan, open_stage
from bertjax.training.state import TrainState, stage_keys
from bertjax.training.step import jit_train_step
from bertjax.training.untrained_heads import UntrainedHeads

Batch = dict[str, jax.Array]
Step = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]


class StageProgram:
    """A stage of a configuration as `train` runs it, without the loop around its step.

    Attributes:
        config, stage: the configuration and the name of the stage.
        steps: training steps of the stage.
        episodes: `Episode(start, stop, groups)`: the parameter groups that train in steps [start, stop); one, unless
            the stage unfreezes gradually.
        mesh: the device mesh.
        program: the `TrainProgram`: model, objective, optimizer and shardings.
    """

    def __init__(self, ctx: RunContext, plan: StagePlan) -> None:
        self._ctx, self._plan = ctx, plan
        self._base: dict[str, Any] | None = None
        self._pretrained: dict[str, str] | None = None
        self._untrained = UntrainedHeads()
        self.config: Config = ctx.config
        self.stage: str = plan.stage.name
        self.steps: int = plan.program.steps
        self.episodes: tuple[Episode, ...] = plan.episodes
        self.mesh: Mesh = ctx.mesh
        self.program = plan.program

    def init_state(self) -> TrainState:
        """The state before the first step: parameters by `init_from` (in their shards), optimizer state, key, step 0.

        `state.params` and `state.frozen`, {path: float32 array}, together are the model.
        """
        init_key, step_key = stage_keys(self.config.run.seed, self._plan.files.index)
        fresh = self._plan.labels.fresh
        found = warmstart.init_params(self._ctx, self._plan.files, self.program, init_key, fresh)
        self._base, self._untrained = found.base, found.untrained
        place = self._plan.files.init_place
        self._pretrained = place.record if place else None
        return self.program.init_state(found.params, self.episodes[0].groups, step_key)

    def unfreeze(self, state: TrainState, episode: Episode) -> TrainState:
        """The state with the groups of an episode training; optimizer state is kept, and fresh for new groups."""
        return self.program.unfreeze(state, episode.groups) if set(state.opt_state) != set(episode.groups) else state

    def jit_step(self, state: TrainState) -> Step:
        """The step, (state, batch) -> (state, metrics), compiled at its first call for states divided like `state`.

        The state given to a step is donated: do not use it afterwards. The metrics are arrays: `loss`, `grad_norm`,
        `learning_rate`, and the loss and accuracy of each term of the objective. A batch is one of `batches`, or NumPy
        arrays of the same shapes (in one process).
        """
        teacher = load_teacher(self._ctx, self._plan.files, self.program)
        return jit_train_step(self.program, state, teacher.params if teacher else None)

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of steps [start, stop), {name: array [batch_size, ...]} on the devices; read ahead by threads.

        `stop` is by default the end of the stage. Batch k depends only on the data, the seed and k.
        """
        if start < 0:
            raise UserError(f"start: must be 0 or above (got {start})")
        source = self._plan.batches.iterate(
            start, self.steps if stop is None else stop, self._plan.rows, self.config.run.prefetch
        )
        with closing(source):
            for batch in source:
                yield place(batch, self.program.batch_sharding(), self._plan.stage.batch_size)

    def save(self, state: TrainState) -> Path:
        """Save a checkpoint into the configuration's run folder and wait until it is on disk -> its folder.

        It is like those of `train`: `bertjax.open` opens it, `train` continues from it. Raises UserError when the run
        folder holds a newer step or other settings.
        """
        step = int(state.step)
        with run_mirror.mirrored(self.config) as mirror:
            run_mirror.open_mirror(mirror, self.config)
            return self._save(state, step, mirror)

    def _save(self, state: TrainState, step: int, mirror: Mirror | None) -> Path:
        stages = run_stages(self.config, self._ctx.base)
        run_on_primary(lambda: validate.check_settings(stages))
        run_on_primary(lambda: run_context.create_run_dir(self._ctx, meta=newest_meta(stages)))
        if mirror is not None:
            run_on_primary(lambda: mirror.push(everything=True))
        tree = adapters.checkpoint_tree(state, self._plan.stage, self._plan.files.index, self._untrained.params)
        meta = run_context.checkpoint_meta(self._ctx, self.program, self._plan.files.index, step)
        meta |= self._plan.checkpoint_facts(self._untrained, self._base, self._pretrained)
        with CheckpointManager(self._plan.files.checkpoints, self.config.run.checkpoint) as manager:
            manager.save(step, tree, meta)
            manager.wait()
        return manager.folder / str(step)


def build_program(config: ConfigLike, stage: str | None = None, *overrides: str, **sections: Any) -> StageProgram:
    """Open a stage (default: the first one): prepare its data, build its model and step on all devices.

    config, overrides, sections: as for `train`. With several processes, each calls it. Raises UserError for an unknown
    stage, and for everything that `train` would refuse about the stage.
    """
    config = make_config(config, *overrides, **sections)
    plugins.require(config.plugins, str(config.run_dir))
    initialize.initialize_distributed()
    base = Path.cwd()
    stages = run_stages(config, base)
    names = [files.stage.name for files in stages]
    if stage not in (None, *names):
        raise UserError(f"there is no stage '{stage}'; the stages are {', '.join(names)}")
    index = names.index(stage) if stage else 0
    first = index
    while first and stages[first].starts_from_previous:  # whose labels the next one has
        first -= 1
    for files in stages[first : index + 1]:
        validate.check_kinds(config, files.stage)
    chosen = config.model_copy(update={"stages": [files.stage for files in stages[first : index + 1]]})
    primary_first(lambda: inputs.check_data(chosen, base))
    ctx = primary_first(lambda: run_context.open_run_context(config, base))
    initialize.warm_up_collectives(ctx.mesh)
    plans: list[StagePlan] = []
    for files in stages[first : index + 1]:
        plans.append(primary_first(partial(open_stage, ctx, files, plans[-1].labels if plans else None)))
    return StageProgram(ctx, plans[-1])


def batches(config: ConfigLike, stage: str | None = None, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
    """The batches of steps [start, stop) of a stage, as `build_program(config, stage).batches(start, stop)`."""
    return build_program(config, stage).batches(start, stop)
