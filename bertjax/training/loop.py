"""The training loop: stage after stage, episode after episode, step after step; it reads top to bottom."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from bertjax.config.evaluation_schema import Evaluation
from bertjax.config.schema import Config, Stage
from bertjax.data.loader import Batches, open_batches
from bertjax.errors import DivergedError, StoppedSafely, UserError
from bertjax.parallel import distributed
from bertjax.training import bases, freezing, preflight, setup, warmstart
from bertjax.training import state as states
from bertjax.training.checkpoint import Checkpoints
from bertjax.training.lead import from_lead, lead_first
from bertjax.training.meter import Meter, real_tokens
from bertjax.training.runs import stage_folder
from bertjax.training.setup import Job
from bertjax.training.state import Params, TrainState
from bertjax.training.step import Program
from bertjax.training.step_folders import committed_steps
from bertjax.training.summary import model_summary
from bertjax.training.tracking import Tracker


@dataclass(frozen=True)
class Evaluator:
    """An evaluation of a stage, ready to run on parameters; `run` returns its scores and keeps its files."""

    config: Evaluation
    run: Callable[[Params, int], dict[str, float]]


class BuildEvaluators(Protocol):
    def __call__(self, job: Job, index: int, program: Program, labels: list[str] | None) -> list[Evaluator]: ...


def train(config: Config, base: Path, build_evaluators: BuildEvaluators) -> None:
    """Run, or continue, every stage of a configuration. Raises the errors of `bertjax.errors`.

    All that can be read and checked is, before the run folder is there: a mistake in the last stage shows at once, and
    its correction finds no half-begun run. A finished run is left as it is.
    """
    distributed.start()
    preflight.check_settings(config)
    if from_lead(lambda: preflight.is_complete(config)):
        if distributed.is_lead():
            print(f"{config.run_dir}: every stage is finished", flush=True)
        return
    job = lead_first(lambda: setup.open_job(config, base))
    plans = [lead_first(partial(open_stage, job, stage)) for stage in config.stages]
    todo = from_lead(lambda: unfinished(config, plans))
    evaluators = {
        index: lead_first(partial(build_evaluators, job, index, plan.program, plan.batches.labels))
        for index, plan in enumerate(plans)
        if index in todo
    }
    from_lead(lambda: preflight.check_starts(job, [plan.program for plan in plans]))
    from_lead(lambda: setup.open_run_folder(job))
    setup.use_compile_cache(config)
    with (
        stop_signal() as stop,
        Tracker(
            config.run_dir,
            stages={plan.stage.name: plan.program.steps for plan in plans},
            tensorboard=config.run.tensorboard or False,
            wandb=config.run.wandb,
            lead=distributed.is_lead(),
            config=config.model_dump(mode="json"),
        ) as tracker,
    ):
        for index in todo:
            StageRun(job, index, plans[index], tracker, stop, evaluators[index]).run()


@dataclass(frozen=True)
class StagePlan:
    """A stage with everything decided that does not need its parameters."""

    stage: Stage
    batches: Batches
    program: Program
    episodes: tuple[freezing.Episode, ...]
    rows: slice | np.ndarray


def open_stage(job: Job, stage: Stage) -> StagePlan:
    """Prepares the data and checks batch, mesh and episodes, so that a later stage's mistake shows at once."""
    report = (lambda line: print(line, flush=True)) if distributed.is_lead() else None
    batches = open_batches(job.config, stage, job.tokenizer, base=job.base, cache=job.cache, report=report)
    preflight.check_labels(stage, batches)
    steps = batches.steps(stage)
    program = job.program(stage, steps)
    distributed.local_rows(program.batch_sharding(), stage.batch_size // stage.grad_accum)
    groups = freezing.groups_of(program.abstract_params())
    plan = freezing.episodes(stage.trainable, groups, steps)
    return StagePlan(stage, batches, program, plan, distributed.local_rows(program.batch_sharding(), stage.batch_size))


def unfinished(config: Config, plans: list[StagePlan]) -> list[int]:
    """The last stage that has begun and those behind it.

    It may be at its end: it is restored all the same, and what is damaged made anew, before the next one builds on it.
    """
    begun = [i for i, p in enumerate(plans) if committed_steps(stage_folder(config.run_dir, i, p.stage.name))]
    return list(range(max(begun, default=0), len(plans)))


class StageRun:
    """One stage from its first, or its restored, step to its last."""

    def __init__(
        self,
        job: Job,
        index: int,
        plan: StagePlan,
        tracker: Tracker,
        stop: threading.Event,
        evaluators: list[Evaluator],
    ):
        self.job, self.index, self.plan, self.tracker, self.stop = job, index, plan, tracker, stop
        self.evaluators = evaluators
        self.program, self.stage, self.name = plan.program, plan.stage, plan.stage.name
        self.scores: dict[str, float] = {}
        self.base: dict[str, Any] | None = None  # what adapter-only checkpoints stand on

    def run(self) -> None:
        run = self.job.config.run
        folder = stage_folder(self.job.config.run_dir, self.index, self.name)
        saved = lambda step, seconds: self.event(step, "checkpoint", seconds=round(seconds, 3))  # noqa: E731
        with Checkpoints(folder, run.checkpoint, on_commit=saved) as self.checkpoints, distributed.fail_together():
            state = self.begin()
            meter = Meter(self.program, self.plan.batches, self.tracker, self.name, run)
            start = int(state.step)
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
            self.tracker.rewind(before, self.name, step)
            self.event(step, "resume")
            return state
        self.tracker.rewind(before, self.name, -1)
        params, lines, self.base = warmstart.initial(self.job, self.index, self.program, init_key)
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
        self.base = meta.get("base")
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
        episode = self.plan.episodes[number]
        self.check(meter.flush(), int(state.step))
        if set(state.opt) != set(episode.groups):
            state = self.program.thaw(state, episode.groups)
        trained = sum(x.size for x in state.params.values())
        about = {"episode": number, "groups": list(episode.groups), "trainable_parameters": trained}
        self.event(int(state.step), "episode", **about)
        train_step = self.program.jit_train_step(state)
        meter.episode(number, trained, tuple(state.opt))
        policy = self.job.config.run.checkpoint
        for step in range(int(state.step) + 1, episode.stop + 1):
            batch, tokens, waited = next(feed)
            state, metrics = train_step(state, batch)
            self.check(meter.after(step, metrics, tokens, waited), step)
            last = step == self.program.steps
            scores = self.evaluate(state, step, last, meter)
            stopping = self.should_stop(step)
            if last or stopping or step % policy.save_every == 0 or not scores.keys().isdisjoint(policy.best_of):
                self.check(meter.flush(), step)
                self.save(state, step, scores)
                meter.pause()
            if stopping and not last:
                self.checkpoints.wait()
                raise StoppedSafely(f"stopped at step {step} of stage '{self.name}', saved; run the same command again")
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
        for evaluator in due:
            self.check(meter.flush(), step)
            name = evaluator.config.name
            scores = evaluator.run(self.all(state), step)
            self.tracker.evaluation(self.name, step, name, scores)
            found |= {f"{name}/{key}": value for key, value in scores.items()}
        if due:
            meter.pause()
        self.scores |= found
        return found

    def save(self, state: TrainState, step: int, scores: dict[str, float]) -> None:
        about = {"steps": self.program.steps, "sources": self.plan.batches.sources, "labels": self.plan.batches.labels}
        about |= {"base": self.base} if self.base else {}
        meta = setup.checkpoint_meta(self.job, self.program, self.index, step) | about
        self.checkpoints.save(step, bases.to_tree(state, self.stage, self.index), meta, scores)

    def finish(self, state: TrainState, meter: Meter) -> None:
        self.checkpoints.wait()
        if mixture := meter.mixture():
            self.event(int(state.step), "mixture", rows=mixture)
        self.event(int(state.step), "stage_end", scores=self.scores)

    def should_stop(self, step: int) -> bool:
        """Whether to save and leave now; several processes agree on the step through jax's preemption service."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self.stop.is_set()

    def all(self, state: TrainState) -> Params:
        return {**state.params, **state.frozen}

    def event(self, step: int, event: str, **fields: Any) -> None:
        self.tracker.event(self.name, step, event, **fields)

    def summarize(self, params: Params) -> None:
        if distributed.is_lead():
            path = self.job.config.run_dir / "model.txt"
            setup.write(path, model_summary(params, self.program.placed(), self.plan.episodes[0].groups))


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; the loop saves and leaves at the next step boundary."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
