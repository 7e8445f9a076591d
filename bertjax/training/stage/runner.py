"""Train one stage of a run: its episodes and steps; evaluations, checkpoints and stops come between two steps."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NoReturn

import jax

from bertjax.errors import StoppedSafely
from bertjax.interrupts import StopRequested
from bertjax.models import param_paths
from bertjax.progress import reporter
from bertjax.training import run_context
from bertjax.training.checkpoint import adapters
from bertjax.training.checkpoint.layout import PENDING_EVAL, num_bytes
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.teacher import LoadedTeacher, load_teacher
from bertjax.training.feature_cache import cache as feature_cache
from bertjax.training.feature_cache.memory import plan_caches
from bertjax.training.monitor.callbacks import Callbacks
from bertjax.training.monitor.meter import Meter
from bertjax.training.monitor.phases import COMPILE, EVALUATION, SAVE, STARTUP, STEP
from bertjax.training.monitor.run_monitor import RunMonitor
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.run_context import RunContext
from bertjax.training.stage.batches import prefetch_to_device
from bertjax.training.stage.evaluations import Evaluator, StageEvaluations
from bertjax.training.stage.plan import StagePlan
from bertjax.training.stage.start import init_or_restore
from bertjax.training.state import TrainState
from bertjax.training.step import Metrics
from bertjax.training.triggers.divergence import raise_diverged
from bertjax.training.triggers.episode_steps import EpisodeSteps
from bertjax.training.triggers.rewind import batch_position, left_out, read_rewinds, rewind
from bertjax.training.triggers.save_timer import SaveTimer
from bertjax.training.triggers.silent_corruption import CorruptionCheck


class StageRunner:
    """Train one stage from its first or its restored step to its last."""

    def __init__(
        self,
        ctx: RunContext,
        plan: StagePlan,
        tracker: Tracker,
        monitor: RunMonitor,
        evaluators: list[Evaluator],
        callbacks: Callbacks | None = None,
    ):
        self.ctx, self.index, self.plan, self.tracker, self.monitor = ctx, plan.files.index, plan, tracker, monitor
        self.stop, self.phases, self.callbacks = monitor.stop, monitor.phases, callbacks or Callbacks()
        self.evaluations = StageEvaluations(evaluators, plan, ctx.config.run.checkpoint, tracker, self.callbacks)
        self.stop_rule, self.policy = self.evaluations.stop_rule, self.evaluations.policy
        self.program, self.stage, self.name = plan.program, plan.stage, plan.stage.name
        self.corruption = CorruptionCheck(ctx.config.run, plan.stage.name)
        self.metrics: Metrics = {}  # of the last step, on the devices
        self.has_stepped = False  # in this process
        self.save_postponed = False  # to the next finite step
        self.checkpoint_bytes = 0  # of the last checkpoint
        self.teacher: LoadedTeacher | None = None  # of a distilled stage

    def run(self) -> None:
        run = self.ctx.config.run
        mirror = self.monitor.mirror

        def saved(step: int, seconds: float) -> None:
            self.event(step, "checkpoint", seconds=round(seconds, 3), bytes=self.checkpoint_bytes)
            if mirror is not None:
                mirror.request()

        before_commit = None if mirror is None else partial(mirror.push, everything=True)
        with CheckpointManager(
            self.plan.files.checkpoints, self.policy, before_commit=before_commit, on_commit=saved
        ) as self.checkpoints:
            state = self.begin()
            start = int(state.step)
            self.monitor.goodput_log.start_stage(self.index, start)
            self.save_timer = SaveTimer(run.checkpoint.save_minutes, start)
            self.callbacks.call("on_stage_begin", self.name, start, self.program.steps)
            unlogged = self.start.meta.get("unlogged")
            meter = Meter(self.program, self.plan.batches, self.tracker, self.name, run, unlogged)
            batches, episodes = self.plan.batches, self.plan.episodes
            begin = start if self.stop_rule.step is None else self.program.steps
            caches = plan_caches(self.stage, self.program, batches, episodes, begin)
            self.cached = caches.programs
            for note in caches.notes:
                self.tracker.note(f"{self.name}: {note}")
            rewinds = read_rewinds(self.ctx.config.run_dir, self.name)
            self.batch_position = batch_position(rewinds)
            if line := left_out(rewinds, start):
                self.tracker.note(f"{self.name}: {line}")
            with self.tracker.show_stage(self.name, start), self.phases.enter(STEP):
                if self.start.pending_eval:
                    self.evaluate(state, start, self.evaluations.due(start), meter, saved=True)
                teacher, ahead = self.teacher.params if self.teacher else None, run.compile_ahead
                fields = dict.fromkeys(self.cached, caches.fields)
                self.episode_steps = EpisodeSteps(self.program, episodes, teacher, ahead=ahead, cached=fields)
                for number, episode in enumerate(episodes):
                    if start < episode.stop and self.stop_rule.step is None:
                        state = self.run_episode(state, number, meter)
                self.finish(state, meter)

    def begin(self) -> TrainState:
        """Make or restore the state; `self.start` keeps all about it but the arrays that train."""
        with (
            self.phases.enter(STARTUP),
            self.stop.may_exit("restoring or making the parameters"),
            reporter.task(f"{self.name}: making or restoring the parameters", finish=False),
        ):
            self.teacher = load_teacher(self.ctx, self.plan.files, self.program)
            state, self.start = init_or_restore(self.ctx, self.plan, self.checkpoints, self.teacher, self.tracker)
        if self.start.meta:
            self.evaluations.restore(self.start.meta, self.start.scores, pending=self.start.pending_eval)
        return state

    def cache_rows(self, state: TrainState, number: int, meter: Meter) -> feature_cache.FeatureCache | None:
        """Encode the training rows once with what is frozen in this episode, if its steps read them from a cache.

        A stop ends it; steps that are not on disk yet are saved first.
        """
        meter.fields = self.plan.batches.fields
        if number not in self.cached:
            return None
        step, doing = int(state.step), "encoding the training rows"
        with (
            self.phases.enter(STARTUP),
            nullcontext() if self.has_stepped else self.stop.may_exit(doing),
            reporter.task(f"{self.name}: {doing}", finish=False) as task,
        ):
            program, params = self.cached[number], {**state.params, **state.frozen}
            beat = self.stop.check if self.has_stepped else self.phases.heartbeat
            encode = self.episode_steps.encoder(number, state)
            try:
                found = feature_cache.encode_rows(program, self.plan.batches, self.plan.rows, params, beat, encode)
            except StopRequested:
                if self.has_stepped:
                    self.save(state, step, {}, meter, pending_eval=bool(self.evaluations.due(step)))
                    self.exit_stopped(step)
                raise
        self.tracker.leave_out(task.elapsed)
        size = {"rows": len(found.features), "bytes": found.features.nbytes, "seconds": round(found.seconds, 3)}
        frozen = program.frozen_layers
        self.event(step, "features", **size, **({"episode": number, "layers": frozen} if frozen else {}))
        meter.fields = meter.fields | found.fields
        return found

    def run_episode(self, state: TrainState, number: int, meter: Meter) -> TrainState:
        """Train an episode, or what is left of it."""
        cache, rows = self.cache_rows(state, number, meter), self.plan.rows
        start, stop, prefetch = int(state.step), self.plan.episodes[number].stop, self.ctx.config.run.prefetch
        more = cache.rows if cache else None
        with self.plan.batches.iterate(start, stop, rows, prefetch, more, self.batch_position) as source:
            feed = prefetch_to_device(source, self.program.batch_sharding(), self.stage.batch_size)
            return self.run_steps(state, number, feed, meter)

    def run_steps(self, state: TrainState, number: int, feed: Iterator, meter: Meter) -> TrainState:
        with self.compile_phase(f"setting up episode {number}"):
            state, train_step = self.start_episode(state, number, meter)
        begun = int(state.step)
        for step in range(begun + 1, self.plan.episodes[number].stop + 1):
            with self.compile_phase("compiling the training step") if step == begun + 1 else nullcontext():
                state = self.run_step(state, step, train_step, feed, meter)
            self.has_stepped = True
            self.notify_step(state, step, meter)
            last, due = step == self.program.steps, self.evaluations.due(step)
            wanted = last or step % self.policy.save_every == 0 or self.evaluations.needs_checkpoint(due)
            wanted = self.save_timer.due(step) or wanted or self.save_postponed
            self.save_postponed = wanted and not last and meter.flush() > 0  # the parameters may be the cause
            if saved := wanted and not self.save_postponed:
                self.save(state, step, {}, meter, pending_eval=bool(due))
            scores = self.evaluate(state, step, due, meter, saved=saved) if due else {}
            if self.stop_rule.step is not None:
                break
            if self.should_stop(step) and not last:
                if not saved:
                    self.save(state, step, scores, meter)
                    if scores and self.evaluations.fitted:
                        self.checkpoints.add_scores(step, scores, self.evaluations.fitted)
                self.exit_stopped(step)
        return state

    def start_episode(self, state: TrainState, number: int, meter: Meter) -> tuple[TrainState, Callable]:
        """-> (the state divided for this episode, its jitted step)."""
        groups = self.plan.episodes[number].groups
        meter.flush()
        self.check_finite(meter)
        state, train_step = self.episode_steps.enter(number, state)
        trained = sum(x.size for x in state.params.values())
        self.event(int(state.step), "episode", episode=number, groups=list(groups), trainable_parameters=trained)
        meter.start_episode(number, trained, tuple(state.opt_state))
        return state, train_step

    @contextmanager
    def compile_phase(self, doing: str) -> Iterator[None]:
        """Enter the phase `compile`; before the first step of this process the run may exit at once."""
        with self.phases.enter(COMPILE), ExitStack() as stack:
            task = stack.enter_context(reporter.task(f"{self.name}: {doing}", first=reporter.COMPILE_SECONDS))
            if not self.has_stepped:
                stack.enter_context(self.stop.may_exit("compiling the first step"))
            yield
        self.tracker.leave_out(task.elapsed)

    def run_step(self, state: TrainState, step: int, train_step: Callable, feed: Iterator, meter: Meter) -> TrainState:
        self.monitor.profiler.before_step(step)
        batch, tokens, waited = next(feed)
        state, metrics = self.corruption.run_step(step, train_step, state, batch)
        meter.record_step(step, metrics, tokens, waited)
        self.check_finite(meter)
        self.check_spikes(meter, step)
        self.metrics = metrics
        self.monitor.profiler.after_step(metrics["loss"])
        self.monitor.step_done(self.index, step, last=step == self.program.steps)
        self.tracker.step(step)
        return state

    def notify_step(self, state: TrainState, step: int, meter: Meter) -> None:
        """Tell the callbacks of a step; if one fails, the step is saved first."""
        try:
            self.callbacks.step_end(step, self.metrics)
        except Exception:
            if jax.process_count() == 1:
                self.save(state, step, {}, meter, pending_eval=bool(self.evaluations.due(step)))
            raise

    def check_finite(self, meter: Meter) -> None:
        """End the run after too many non-finite steps in a row."""
        if (count := meter.nonfinite_steps) >= self.ctx.config.run.max_nonfinite_steps:
            raise_diverged(self.checkpoints, self.name, meter.first_nonfinite, count)

    def check_spikes(self, meter: Meter, step: int) -> None:
        """Go back to an earlier checkpoint after many spikes, if the stage asks for it."""
        rule = self.stage.skip_spikes.rewind if self.stage.skip_spikes else None
        if rule is not None and len(meter.spikes) >= rule.spikes:
            record = lambda target, batches: self.event(target, "rewind", batches=batches, spikes=meter.spikes)  # noqa: E731
            rewind(rule, self.checkpoints, self.ctx.config.run_dir, self.name, meter.spikes, step, record)

    def evaluate(
        self, state: TrainState, step: int, due: list[Evaluator], meter: Meter, *, saved: bool
    ) -> dict[str, float]:
        """Run the evaluations of this step; if they fail, the step is saved first (`saved`: it is already)."""
        meter.flush()
        self.check_finite(meter)
        try:
            with self.phases.enter(EVALUATION):
                found = self.evaluations.run(due, {**state.params, **state.frozen}, step)
        except StopRequested:
            if not saved:
                self.save(state, step, {}, meter, pending_eval=True)
            self.exit_stopped(step)
        except Exception:
            if not saved and jax.process_count() == 1:  # other processes may not have failed, and would not save
                self.save(state, step, {}, meter, pending_eval=True)
            raise
        if saved:
            self.checkpoints.add_scores(step, found, self.evaluations.fitted)
        if self.monitor.mirror is not None:
            self.monitor.mirror.request()
        meter.pause()
        return found

    def save(
        self, state: TrainState, step: int, scores: dict[str, float], meter: Meter, *, pending_eval: bool = False
    ) -> None:
        """Save a step; `pending_eval`: a run that resumes from it does its evaluations first."""
        meter.flush()
        self.check_finite(meter)
        with self.phases.enter(SAVE):
            self.corruption.before_save(step, state)
            meta = self.meta(step, meter) | ({PENDING_EVAL: True} if pending_eval else {})
            tree = adapters.checkpoint_tree(state, self.stage, self.index, self.start.untrained.params)
            self.checkpoint_bytes = num_bytes(param_paths.flatten(tree))
            self.checkpoints.save(step, tree, meta, scores)
            self.save_timer.saved(step)
            meter.pause()
        self.callbacks.call("on_save", step, self.checkpoints.folder / str(step))

    def meta(self, step: int, meter: Meter) -> dict[str, Any]:
        """The meta data of a step's checkpoint."""
        about = self.plan.checkpoint_facts(self.start.untrained, self.start.base, self.start.pretrained)
        about |= {**self.stop_rule.meta, "unlogged": meter.unlogged()}
        about |= {"teacher": self.teacher.record} if self.teacher else {}
        return run_context.checkpoint_meta(self.ctx, self.program, self.index, step) | about

    def end_steps(self) -> None:
        """Wait for the last save; no more steps follow in this process."""
        self.monitor.goodput_log.end_steps()
        with self.phases.enter(SAVE):
            self.checkpoints.wait()

    def exit_stopped(self, step: int) -> NoReturn:
        self.end_steps()
        raise StoppedSafely(f"stopped at step {step} of stage '{self.name}', saved; run the same command again")

    def finish(self, state: TrainState, meter: Meter) -> None:
        self.end_steps()
        if mixture := meter.mixture():
            self.event(int(state.step), "mixture", rows=mixture)
        step = int(state.step)
        early = {"stopped_early": True} if self.stop_rule.step is not None and step < self.program.steps else {}
        self.event(step, "stage_end", scores=self.evaluations.scores, **early)
        if early and (rule := self.stop_rule.rule):
            said = f"{rule.metric} has not improved in {rule.patience} evaluations"
            self.tracker.note(f"{self.name}: stopped early at step {step} of {self.program.steps}: {said}")
        self.callbacks.call("on_stage_end", self.name, self.evaluations.scores)

    def should_stop(self, step: int) -> bool:
        """Whether to save and exit after this step; the same on all processes."""
        return self.stop.poll()

    def event(self, step: int, event: str, **fields: Any) -> None:
        self.tracker.event(self.name, step, event, **fields)
