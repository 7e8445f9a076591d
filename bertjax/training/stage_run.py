"""One stage of a run: episode after episode, step after step; evaluations, checkpoints and stops between two steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import numpy as np

from bertjax.config.evaluation_schema import Evaluation
from bertjax.errors import DivergedError, StoppedSafely, UserError
from bertjax.parallel import distributed
from bertjax.training import bases, freezing, setup, warmstart
from bertjax.training import state as states
from bertjax.training.checkpoint import Checkpoints
from bertjax.training.meter import Meter, real_tokens
from bertjax.training.operations import Operations
from bertjax.training.phases import COMPILE, EVALUATION, SAVE, STARTUP, STEP
from bertjax.training.runs import stage_folder
from bertjax.training.setup import Job
from bertjax.training.stage_plan import StagePlan
from bertjax.training.state import Params, TrainState
from bertjax.training.step_folders import UNSCORED, unscored
from bertjax.training.stopping import Stopped
from bertjax.training.summary import model_summary
from bertjax.training.tracking import Tracker


@dataclass(frozen=True)
class Evaluator:
    """An evaluation of a stage, ready to run on parameters; `run` returns its scores and keeps its files."""

    config: Evaluation
    run: Callable[[Params, int], dict[str, float]]


class StageRun:
    """One stage from its first, or its restored, step to its last."""

    def __init__(
        self,
        job: Job,
        index: int,
        plan: StagePlan,
        tracker: Tracker,
        operations: Operations,
        evaluators: list[Evaluator],
    ):
        self.job, self.index, self.plan, self.tracker, self.operations = job, index, plan, tracker, operations
        self.stop, self.phases = operations.stop, operations.phases
        self.evaluators = evaluators
        self.program, self.stage, self.name = plan.program, plan.stage, plan.stage.name
        self.scores: dict[str, float] = {}
        self.base: dict[str, Any] | None = None  # what adapter-only checkpoints stand on
        self.stepped = False  # since this process began the stage
        self.unscored = False  # the restored step was saved before its evaluations had ended

    def run(self) -> None:
        run = self.job.config.run
        folder = stage_folder(self.job.config.run_dir, self.index, self.name)
        saved = lambda step, seconds: self.event(step, "checkpoint", seconds=round(seconds, 3))  # noqa: E731
        with Checkpoints(folder, run.checkpoint, on_commit=saved) as self.checkpoints:
            with self.phases.enter(STARTUP), self.stop.free("restoring or making the parameters"):
                state = self.begin()
            start = int(state.step)
            self.operations.ledger.begin(self.index, start)
            meter = Meter(self.program, self.plan.batches, self.tracker, self.name, run)
            with self.phases.enter(STEP):
                if self.unscored:
                    self.checkpoints.rescore(start, self.evaluate(state, start, start == self.program.steps, meter))
                with self.plan.batches.iterate(start, self.program.steps, self.plan.rows, run.prefetch) as source:
                    feed = self.placed(source)
                    for number, episode in enumerate(self.plan.episodes):
                        if start < episode.stop:
                            state = self.episode(state, number, feed, meter)
                self.finish(state, meter)

    def begin(self) -> TrainState:
        """The restored state of a started stage, or a fresh one; the record is cut back to where it stands."""
        before = [stage.name for stage in self.job.config.stages[: self.index]]
        key = jax.random.fold_in(jax.random.key(self.job.config.run.seed), self.index)
        init_key, step_key = jax.random.split(key)
        if self.checkpoints.committed_steps():
            state, step = self.restore(step_key)
            self.tracker.rewind(before, self.name, step, scored=not self.unscored)
            self.event(step, "resume")
            return state
        self.tracker.rewind(before, self.name, -1)
        params, lines, self.base = warmstart.initial(
            self.job, self.index, self.program, init_key, self.plan.labels.fresh
        )
        state = self.program.start(params, self.plan.episodes[0].groups, step_key)
        self.summarize(params)
        self.event(0, "start", init="; ".join(lines))
        return state

    def restore(self, key: jax.Array) -> tuple[TrainState, int]:
        """The newest good checkpoint; which slots it holds follows from the episode that led to its step."""
        likes: dict[int, TrainState] = {}

        def abstract(step: int) -> dict[str, Any]:
            number = freezing.episode_at(self.plan.episodes, max(step - 1, 0))
            likes[step] = self.program.abstract_state(self.plan.episodes[number].groups, key)
            return bases.to_tree(likes[step], self.stage, self.index)

        step, tree, meta = self.checkpoints.restore(abstract)
        if changed := [name for name, now in self.plan.batches.sources.items() if meta["sources"].get(name) != now]:
            raise UserError(
                f"stage '{self.name}': the source of task '{changed[0]}' is not what it was when this run began; "
                "restore it, or give this run another run.name"
            )
        self.base, self.unscored = meta.get("base"), unscored(self.checkpoints.folder, meta)
        tree = bases.completed(tree, self.base, self.checkpoints.folder, likes[step], self.job)
        return states.from_tree(tree, likes[step]), step

    def placed(self, source: Iterator[dict[str, np.ndarray]]) -> Iterator[tuple[dict[str, jax.Array], int, float]]:
        """Batches on the devices, one ahead of the step -> (batch, real tokens, seconds waited for it)."""
        ahead = None
        while True:
            began = time.perf_counter()
            batch = next(source, None)
            waited = time.perf_counter() - began
            upcoming = None
            if batch is not None:
                tokens = real_tokens(batch) * jax.process_count()
                put = distributed.place(batch, self.program.batch_sharding(), self.stage.batch_size)
                upcoming = (put, tokens, waited)
            if ahead is not None:
                yield ahead
            if upcoming is None:
                return
            ahead = upcoming

    def episode(self, state: TrainState, number: int, feed: Iterator, meter: Meter) -> TrainState:
        with self.compiling():
            state, train_step = self.opened(state, number, meter)
        policy, begun = self.job.config.run.checkpoint, int(state.step)
        for step in range(begun + 1, self.plan.episodes[number].stop + 1):
            with self.compiling() if step == begun + 1 else nullcontext():
                state = self.step(state, step, train_step, feed, meter)
            self.stepped = True
            last = step == self.program.steps
            scores = self.evaluate(state, step, last, meter)
            stopping = self.should_stop(step)
            if last or stopping or step % policy.save_every == 0 or not scores.keys().isdisjoint(policy.best_of):
                self.save(state, step, scores, meter)
            if stopping and not last:
                self.leave(step)
        return state

    def opened(self, state: TrainState, number: int, meter: Meter) -> tuple[TrainState, Callable]:
        """The state with what trains in this episode, and the step that trains it."""
        groups = self.plan.episodes[number].groups
        self.check(meter.flush(), int(state.step))
        if set(state.opt) != set(groups):
            state = self.program.thaw(state, groups)
        trained = sum(x.size for x in state.params.values())
        about = {"episode": number, "groups": list(groups), "trainable_parameters": trained}
        self.event(int(state.step), "episode", **about)
        meter.episode(number, trained, tuple(state.opt))
        return state, self.program.jit_train_step(state)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Around the first step of an episode. The first one of all may be left: no step has been done."""
        with self.phases.enter(COMPILE), ExitStack() as stack:
            if not self.stepped:
                stack.enter_context(self.stop.free("compiling the first step"))
            yield

    def step(self, state: TrainState, step: int, train_step: Callable, feed: Iterator, meter: Meter) -> TrainState:
        self.operations.profiler.before(step)
        batch, tokens, waited = next(feed)
        state, metrics = train_step(state, batch)
        self.check(meter.after(step, metrics, tokens, waited), step)
        self.operations.profiler.after(metrics["loss"])
        self.operations.stepped(self.index, step, last=step == self.program.steps)
        return state

    def check(self, bad_steps: int, step: int) -> None:
        if bad_steps >= self.job.config.run.max_bad_steps:
            raise DivergedError(
                f"stage '{self.name}' step {step}: the loss or the gradients were not finite {bad_steps} steps in a "
                f"row; the last checkpoint is good; lower the learning rate or lengthen the warm-up"
            )

    def evaluate(self, state: TrainState, step: int, last: bool, meter: Meter) -> dict[str, float]:
        """The scores of this very step, from the evaluations that are due."""
        found: dict[str, float] = {}
        due = [e for e in self.evaluators if last or (e.config.every and step % e.config.every == 0)]
        with self.phases.enter(EVALUATION) if due else nullcontext():
            for evaluator in due:
                self.check(meter.flush(), step)
                name = evaluator.config.name
                try:
                    scores = evaluator.run(self.all(state), step)
                except Stopped:
                    self.save(state, step, {}, meter, unscored=True)
                    self.leave(step)
                self.tracker.evaluation(self.name, step, name, scores)
                found |= {f"{name}/{key}": value for key, value in scores.items()}
        if due:
            meter.pause()
        self.scores |= found
        return found

    def save(
        self, state: TrainState, step: int, scores: dict[str, float], meter: Meter, *, unscored: bool = False
    ) -> None:
        """unscored: the evaluations of this step were broken off; whoever resumes does them first."""
        with self.phases.enter(SAVE):
            self.check(meter.flush(), step)
            batches = self.plan.batches
            about = {"steps": self.program.steps, "sources": batches.sources, "labels": self.plan.labels.names}
            about |= {"unanswerable": batches.unanswerable} if batches.unanswerable is not None else {}
            about |= {"base": self.base} if self.base else {}
            about |= {UNSCORED: True} if unscored else {}
            meta = setup.checkpoint_meta(self.job, self.program, self.index, step) | about
            self.checkpoints.save(step, bases.to_tree(state, self.stage, self.index), meta, scores)
            meter.pause()

    def leave(self, step: int) -> NoReturn:
        with self.phases.enter(SAVE):
            self.checkpoints.wait()
        raise StoppedSafely(f"stopped at step {step} of stage '{self.name}', saved; run the same command again")

    def finish(self, state: TrainState, meter: Meter) -> None:
        with self.phases.enter(SAVE):
            self.checkpoints.wait()
        if mixture := meter.mixture():
            self.event(int(state.step), "mixture", rows=mixture)
        self.event(int(state.step), "stage_end", scores=self.scores)

    def should_stop(self, step: int) -> bool:
        """Whether to save and leave now, behind this step; the same on all processes."""
        return self.stop.poll()

    def all(self, state: TrainState) -> Params:
        return {**state.params, **state.frozen}

    def event(self, step: int, event: str, **fields: Any) -> None:
        self.tracker.event(self.name, step, event, **fields)

    def summarize(self, params: Params) -> None:
        if distributed.is_lead():
            path = self.job.config.run_dir / "model.txt"
            setup.write(path, model_summary(params, self.program.placed(), self.plan.episodes[0].groups))
