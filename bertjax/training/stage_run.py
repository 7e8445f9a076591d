"""One stage of a run: episode after episode, step after step; evaluations, checkpoints and stops between two steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from bertjax.config.evaluation_schema import Evaluation
from bertjax.errors import DivergedError, StoppedSafely
from bertjax.models import paths
from bertjax.parallel import distributed
from bertjax.training import bases, freezing, setup, warmstart
from bertjax.training import state as states
from bertjax.training.carried import Carried, carried_line, carrier, restored_heads
from bertjax.training.checkpoint import Checkpoints
from bertjax.training.meter import Meter, real_tokens
from bertjax.training.operations import Operations
from bertjax.training.phases import COMPILE, EVALUATION, SAVE, STARTUP, STEP
from bertjax.training.runs import stage_folder
from bertjax.training.setup import Job
from bertjax.training.stage_plan import StagePlan, check_sources
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
        self.carried = Carried()
        self.unlogged: dict[str, Any] | None = None  # what the meter had not logged at the restored step

    def run(self) -> None:
        run = self.job.config.run
        folder = stage_folder(self.job.config.run_dir, self.index, self.name)
        saved = lambda step, seconds: self.event(step, "checkpoint", seconds=round(seconds, 3))  # noqa: E731
        with Checkpoints(folder, run.checkpoint, on_commit=saved) as self.checkpoints:
            with self.phases.enter(STARTUP), self.stop.free("restoring or making the parameters"):
                state = self.begin()
            start = int(state.step)
            self.operations.ledger.begin(self.index, start)
            meter = Meter(self.program, self.plan.batches, self.tracker, self.name, run, self.unlogged)
            with self.phases.enter(STEP):
                if self.unscored:
                    self.evaluate(state, start, self.due(start), meter, saved=True)
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
        params, lines, self.base, self.carried = warmstart.initial(
            self.job, self.index, self.program, init_key, self.plan.labels.fresh
        )
        state = self.program.start(params, self.plan.episodes[0].groups, step_key)
        self.summarize(params)
        self.event(0, "start", init="; ".join(lines))
        return state

    def restore(self, key: jax.Array) -> tuple[TrainState, int]:
        """The newest good checkpoint; which slots it holds follows from the episode that led to its step."""
        likes: dict[int, TrainState] = {}
        carried: dict[str, Any] = {}

        def abstract(step: int, meta: dict[str, Any]) -> dict[str, Any]:
            number = freezing.episode_at(self.plan.episodes, max(step - 1, 0))
            likes[step] = self.program.abstract_state(self.plan.episodes[number].groups, key)
            everything = carrier(self.program, meta.get("carried", ()), meta["num_labels"]).abstract_params()
            carried.clear()
            carried.update({path: x for path, x in everything.items() if path not in self.program.placed()})
            return bases.to_tree(likes[step], self.stage, self.index, carried)

        step, tree, meta = self.checkpoints.restore(abstract)
        check_sources(self.job, self.plan, meta["sources"], self.checkpoints.folder, step)
        self.base, self.unscored = meta.get("base"), unscored(self.checkpoints.folder, meta)
        self.unlogged, self.scores = meta.get("unlogged"), self.checkpoints.scores(step)
        held = paths.flatten(tree["params"])
        self.carried = restored_heads(meta, {path: held[path] for path in carried})
        named = self.job.base / Path(self.stage.init_base).expanduser() if self.stage.init_base else None
        tree = bases.completed(tree, self.base, self.checkpoints.folder, likes[step], self.job, named)
        return states.from_tree(tree, likes[step]), step

    def placed(self, source: Iterator[dict[str, np.ndarray]]) -> Iterator[tuple[dict[str, jax.Array], int, float]]:
        """Batches on the devices, one ahead of the step -> (batch, its real tokens, seconds waited since the last)."""
        ahead, waited = None, 0.0
        while True:
            began = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - began
            upcoming = None
            if batch is not None:
                tokens = real_tokens(batch) * jax.process_count()
                put = distributed.place(batch, self.program.batch_sharding(), self.stage.batch_size)
                upcoming = (put, tokens)
            if ahead is not None:
                yield *ahead, waited
                waited = 0.0
            if upcoming is None:
                return
            ahead = upcoming

    def episode(self, state: TrainState, number: int, feed: Iterator, meter: Meter) -> TrainState:
        with self.compiling():
            state, train_step = self.opened(state, number, meter)
        policy, begun = self.job.config.run.checkpoint, int(state.step)
        compared = {score.partition("/")[0] for score in policy.best_of}
        for step in range(begun + 1, self.plan.episodes[number].stop + 1):
            with self.compiling() if step == begun + 1 else nullcontext():
                state = self.step(state, step, train_step, feed, meter)
            self.stepped = True
            last, due = step == self.program.steps, self.due(step)
            saved = last or step % policy.save_every == 0 or any(e.config.name in compared for e in due)
            if saved:
                self.save(state, step, {}, meter, unscored=bool(due))
            scores = self.evaluate(state, step, due, meter, saved=saved) if due else {}
            if self.should_stop(step) and not last:
                if not saved:
                    self.save(state, step, scores, meter)
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

    def due(self, step: int) -> list[Evaluator]:
        """The evaluations of this step; at the end of the stage all of them."""
        last = step == self.program.steps
        return [e for e in self.evaluators if last or (e.config.every and step % e.config.every == 0)]

    def evaluate(
        self, state: TrainState, step: int, due: list[Evaluator], meter: Meter, *, saved: bool
    ) -> dict[str, float]:
        """The scores of this very step. It is saved before, if it is to be: an evaluation that fails loses no step."""
        self.check(meter.flush(), step)
        try:
            with self.phases.enter(EVALUATION):
                found = self.scores_of(state, step, due)
        except Stopped:
            if not saved:
                self.save(state, step, {}, meter, unscored=True)
            self.leave(step)
        except Exception:
            if not saved and jax.process_count() == 1:  # others may not have failed, and would not join in
                self.save(state, step, {}, meter, unscored=True)
            raise
        if saved:
            self.checkpoints.rescore(step, found)
        meter.pause()
        self.scores |= found
        return found

    def scores_of(self, state: TrainState, step: int, due: list[Evaluator]) -> dict[str, float]:
        found: dict[str, float] = {}
        for evaluator in due:
            name = evaluator.config.name
            scores = evaluator.run(self.all(state), step)
            self.tracker.evaluation(self.name, step, name, scores)
            found |= {f"{name}/{key}": value for key, value in scores.items()}
        return found

    def save(
        self, state: TrainState, step: int, scores: dict[str, float], meter: Meter, *, unscored: bool = False
    ) -> None:
        """unscored: the evaluations of this step are still to be done; whoever resumes does them first."""
        self.check(meter.flush(), step)
        with self.phases.enter(SAVE):
            meta = self.meta(step, meter) | ({UNSCORED: True} if unscored else {})
            tree = bases.to_tree(state, self.stage, self.index, self.carried.params)
            self.checkpoints.save(step, tree, meta, scores)
            meter.pause()

    def meta(self, step: int, meter: Meter) -> dict[str, Any]:
        """What makes this step self-describing."""
        batches, carried = self.plan.batches, self.carried
        about = {"steps": self.program.steps, "sources": batches.sources, "labels": self.plan.labels.names}
        about |= {"unanswerable": batches.unanswerable} if batches.unanswerable is not None else {}
        about |= carried.about
        about |= {"base": self.base} if self.base else {}
        about |= {"unlogged": meter.unlogged(), "carried": list(carried.heads)}
        about |= {"num_labels": carried.num_labels} if carried.num_labels else {}
        return setup.checkpoint_meta(self.job, self.program, self.index, step) | about

    def leave(self, step: int) -> NoReturn:
        self.operations.ledger.settle()
        with self.phases.enter(SAVE):
            self.checkpoints.wait()
        raise StoppedSafely(f"stopped at step {step} of stage '{self.name}', saved; run the same command again")

    def finish(self, state: TrainState, meter: Meter) -> None:
        self.operations.ledger.settle()
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
            text = model_summary(params, self.program.placed(), self.plan.episodes[0].groups)
            if held := self.carried.params:
                text += carried_line(held)
            setup.write(self.job.config.run_dir / "model.txt", text)
