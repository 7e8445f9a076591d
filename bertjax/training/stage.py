"""Train one stage of a run: its episodes and steps; evaluations, checkpoints and stops come between two steps."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import jax
import numpy as np

from bertjax.config.schema.evaluation import Evaluation
from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import StoppedSafely, UserError
from bertjax.interrupts import StopRequested
from bertjax.models import param_paths
from bertjax.parallel.batches import place
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter
from bertjax.storage import atomic
from bertjax.training import freezing, run_context
from bertjax.training.checkpoint import adapters, warmstart
from bertjax.training.checkpoint.layout import PENDING_EVAL, has_pending_eval, num_bytes
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.teacher import LoadedTeacher, load_teacher
from bertjax.training.feature_cache import cache as feature_cache
from bertjax.training.feature_cache.memory import find_obstacle, wants_cache
from bertjax.training.monitor.callbacks import Callbacks
from bertjax.training.monitor.meter import Meter, non_padding_tokens
from bertjax.training.monitor.param_summary import model_summary
from bertjax.training.monitor.phases import COMPILE, EVALUATION, SAVE, STARTUP, STEP
from bertjax.training.monitor.run_monitor import RunMonitor
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.run_context import RunContext
from bertjax.training.stage_plan import StagePlan, check_sources
from bertjax.training.state import Params, TrainState, from_tree, stage_keys
from bertjax.training.step import Metrics
from bertjax.training.triggers.divergence import raise_diverged
from bertjax.training.triggers.early_stopping import StopRule
from bertjax.training.triggers.episode_steps import EpisodeSteps
from bertjax.training.triggers.evaluation_steps import intervals
from bertjax.training.triggers.rewind import batch_position, read_rewinds, rewind
from bertjax.training.triggers.save_timer import SaveTimer
from bertjax.training.triggers.silent_corruption import CorruptionCheck
from bertjax.training.untrained_heads import UntrainedHeads, add_heads, restored_heads, summary_line


@dataclass(frozen=True)
class Evaluator:
    """An evaluation of a stage; `run(params, step)` returns its scores and writes its files.

    cost: about how many training rows take as long as one run of it; 0 if unknown. fit: what it fitted in this run, to
    keep with the checkpoint.
    """

    config: Evaluation
    run: Callable[[Params, int], dict[str, float]]
    cost: float = 0.0
    fit: Callable[[Params, int], Mapping[str, Any]] | None = None


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
        self.stop, self.phases = monitor.stop, monitor.phases
        self.evaluators, self.callbacks = evaluators, callbacks or Callbacks()
        self.stop_rule = StopRule(plan.stage.early_stopping, ctx.config.run.checkpoint.best_mode)
        self.every = intervals(
            {e.config.name: e.config.every for e in evaluators},
            plan.program.steps,
            {e.config.name: e.cost / plan.stage.batch_size for e in evaluators},
            self.stop_rule.evaluation,
        )
        self.program, self.stage, self.name = plan.program, plan.stage, plan.stage.name
        self.corruption = CorruptionCheck(ctx.config.run, plan.stage.name)
        self.scores: dict[str, float] = {}
        self.fitted: dict[str, Mapping[str, Any]] = {}  # by the evaluations of the last step that had some
        self.metrics: Metrics = {}  # of the last step, on the devices
        self.base: dict[str, Any] | None = None  # the base of adapter-only checkpoints
        self.pretrained: dict[str, str] | None = None  # the model on the Hub that the stage started from
        self.has_stepped = False  # in this process
        self.save_postponed = False  # to the next finite step
        self.checkpoint_bytes = 0  # of the last checkpoint
        self.pending_eval = False  # the restored step was saved before its evaluations had ended
        self.untrained = UntrainedHeads()
        self.teacher: LoadedTeacher | None = None  # of a distilled stage
        self.unlogged: dict[str, Any] | None = None  # what the meter had not logged at the restored step

    def run(self) -> None:
        run = self.ctx.config.run
        mirror = self.monitor.mirror

        def saved(step: int, seconds: float) -> None:
            self.event(step, "checkpoint", seconds=round(seconds, 3), bytes=self.checkpoint_bytes)
            if mirror is not None:
                mirror.request()

        before_commit = None if mirror is None else partial(mirror.push, everything=True)
        with CheckpointManager(
            self.plan.files.checkpoints, self.policy(), before_commit=before_commit, on_commit=saved
        ) as self.checkpoints:
            with (
                self.phases.enter(STARTUP),
                self.stop.may_exit("restoring or making the parameters"),
                reporter.task(f"{self.name}: making or restoring the parameters", finish=False),
            ):
                self.teacher = load_teacher(self.ctx, self.plan.files, self.program)
                state = self.init_or_restore()
            start = int(state.step)
            self.monitor.goodput_log.start_stage(self.index, start)
            self.save_timer = SaveTimer(run.checkpoint.save_minutes, start)
            self.callbacks.call("on_stage_begin", self.name, start, self.program.steps)
            meter = Meter(self.program, self.plan.batches, self.tracker, self.name, run, self.unlogged)
            cache = self.cache_features(state, start, meter)
            with self.tracker.show_stage(self.name, start), self.phases.enter(STEP):
                if self.pending_eval:
                    self.evaluate(state, start, self.due_evaluations(start), meter, saved=True)
                with self.plan.batches.iterate(
                    start, self.program.steps, self.plan.rows, run.prefetch, cache.rows if cache else None,
                    batch_position(read_rewinds(self.ctx.config.run_dir, self.name)),
                ) as source:  # fmt: skip
                    feed = self.prefetch_to_device(source)
                    teacher = self.teacher.params if self.teacher else None
                    ahead = run.compile_ahead
                    self.episode_steps = EpisodeSteps(self.program, self.plan.episodes, teacher, ahead=ahead)
                    for number, episode in enumerate(self.plan.episodes):
                        if start < episode.stop and self.stop_rule.step is None:
                            state = self.run_episode(state, number, feed, meter)
                self.finish(state, meter)

    def policy(self) -> CheckpointPolicy:
        """Which checkpoints are kept: also the best by the score of early stopping."""
        policy, rule = self.ctx.config.run.checkpoint, self.stop_rule.rule
        if rule is None or rule.metric in policy.best_metrics:
            return policy
        return policy.model_copy(update={"keep_best": [*policy.best_metrics, rule.metric]})

    def init_or_restore(self) -> TrainState:
        """Restore the state of a stage that has begun, else make a fresh one; remove metrics of later steps."""
        before = [stage.name for stage in self.ctx.config.stages[: self.index]]
        init_key, step_key = stage_keys(self.ctx.config.run.seed, self.index)
        if self.checkpoints.committed_steps():
            state, step = self.restore(step_key)
            self.tracker.rewind(before, self.name, step, scored=not self.pending_eval)
            self.event(step, "resume")
            return state
        self.tracker.rewind(before, self.name, -1)
        place = self.plan.files.init_place
        self.pretrained = place.record if place else None
        params, lines, self.base, self.untrained = warmstart.init_params(
            self.ctx, self.plan.files, self.program, init_key, self.plan.labels.fresh
        )
        state = self.program.init_state(params, self.plan.episodes[0].groups, step_key)
        if primary.is_primary():
            factors, groups = self.program.rate_factors, self.plan.episodes[0].groups
            text = model_summary(params, self.program.param_shardings(), groups, factors)
            text += summary_line(self.untrained.params) if self.untrained.params else ""
            atomic.write_text_atomic(self.ctx.config.run_dir / "model.txt", text)
        self.event(0, "start", init="; ".join([*lines, *([self.teacher.line] if self.teacher else [])]))
        return state

    def restore(self, key: jax.Array) -> tuple[TrainState, int]:
        """Restore the newest good checkpoint; it has optimizer state for the groups of the episode of its step."""
        likes: dict[int, TrainState] = {}
        untrained: dict[str, Any] = {}

        def abstract(step: int, meta: dict[str, Any]) -> dict[str, Any]:
            number = freezing.episode_at(self.plan.episodes, max(step - 1, 0))
            likes[step] = self.program.abstract_state(self.plan.episodes[number].groups, key)
            everything = add_heads(self.program, meta.get("carried", ()), meta["num_labels"]).abstract_params()
            untrained.clear()
            untrained.update({path: x for path, x in everything.items() if path not in self.program.param_shardings()})
            return adapters.checkpoint_tree(likes[step], self.stage, self.index, untrained)

        step, tree, meta = self.checkpoints.restore(abstract)
        check_sources(self.ctx, self.plan, meta["sources"], self.checkpoints.folder, step)
        if self.teacher is not None:
            self.teacher.check_same(self.stage, meta)
        self.pretrained = meta.get("pretrained")
        for line in run_context.plugin_changes(self.ctx.config, meta):
            self.tracker.note(line)
        if change := run_context.topology_change(self.ctx.mesh, meta):
            self.tracker.note(f"{self.name} {step}: {change}")
        self.base, self.pending_eval = meta.get("base"), has_pending_eval(self.checkpoints.folder, meta)
        self.unlogged, self.scores = meta.get("unlogged"), self.checkpoints.scores(step)
        self.stop_rule.restore(meta, {} if self.pending_eval else self.scores)
        saved = param_paths.flatten(tree["params"])
        self.untrained = restored_heads(meta, {path: saved[path] for path in untrained})
        if self.base is not None:
            named, folder = self.plan.files.adapter_base, self.checkpoints.folder
            saved |= adapters.base_params(self.base, folder, likes[step].frozen, self.ctx, named)
        return from_tree(tree | {"params": param_paths.unflatten(saved)}, likes[step]), step

    def cache_features(self, state: TrainState, start: int, meter: Meter) -> feature_cache.FeatureCache | None:
        """Encode the training rows once if the stage asks for it, has steps left and can; else say why not."""
        batches = self.plan.batches
        if start >= self.program.steps or self.stop_rule.step is not None or not wants_cache(self.stage):
            return None
        if reason := find_obstacle(self.stage, self.program, batches, start):
            self.tracker.note(f"{self.name}: features are not cached, every step encodes its rows: {reason}")
            return None
        with (
            self.phases.enter(STARTUP),
            self.stop.may_exit("encoding the training rows"),
            reporter.task(f"{self.name}: encoding the training rows", finish=False),
        ):
            params = {**state.params, **state.frozen}
            found = feature_cache.encode_rows(self.program, batches, self.plan.rows, params, self.phases.heartbeat)
        size = {"rows": len(found.features), "bytes": found.features.nbytes, "seconds": round(found.seconds, 3)}
        self.event(start, "features", **size)
        meter.fields = meter.fields | found.fields
        return found

    def prefetch_to_device(
        self, source: Iterator[dict[str, np.ndarray]]
    ) -> Iterator[tuple[dict[str, jax.Array], int, float]]:
        """Place batches one step ahead -> (batch on devices, its non-padding tokens, seconds waited since the last)."""
        ahead, waited = None, 0.0
        while True:
            began = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - began
            upcoming = None
            if batch is not None:
                tokens = non_padding_tokens(batch) * jax.process_count()
                upcoming = place(batch, self.program.batch_sharding(), self.stage.batch_size), tokens
            if ahead is not None:
                yield *ahead, waited
                waited = 0.0
            if upcoming is None:
                return
            ahead = upcoming

    def run_episode(self, state: TrainState, number: int, feed: Iterator, meter: Meter) -> TrainState:
        with self.compile_phase(f"setting up episode {number}"):
            state, train_step = self.start_episode(state, number, meter)
        policy, begun = self.policy(), int(state.step)
        compared = {score.partition("/")[0] for score in policy.best_metrics}
        for step in range(begun + 1, self.plan.episodes[number].stop + 1):
            with self.compile_phase("compiling the training step") if step == begun + 1 else nullcontext():
                state = self.run_step(state, step, train_step, feed, meter)
            self.has_stepped = True
            self.notify_step(state, step, meter)
            last, due = step == self.program.steps, self.due_evaluations(step)
            wanted = last or step % policy.save_every == 0 or any(e.config.name in compared for e in due)
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
                    if scores and self.fitted:
                        self.checkpoints.add_scores(step, scores, self.fitted)
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
                self.save(state, step, {}, meter, pending_eval=bool(self.due_evaluations(step)))
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

    def due_evaluations(self, step: int) -> list[Evaluator]:
        """The evaluations to run after this step: at the end of the stage all of them."""
        last = step == self.program.steps
        return [e for e in self.evaluators if last or ((n := self.every[e.config.name]) and step % n == 0)]

    def evaluate(
        self, state: TrainState, step: int, due: list[Evaluator], meter: Meter, *, saved: bool
    ) -> dict[str, float]:
        """Run the evaluations of this step; if they fail, the step is saved first (`saved`: it is already)."""
        meter.flush()
        self.check_finite(meter)
        found: dict[str, float] = {}
        self.fitted = {}
        try:
            with self.phases.enter(EVALUATION):
                for evaluator in due:
                    self.run_evaluator(evaluator, state, step, found)
                if problem := self.stop_rule.unknown_metric(found):
                    raise UserError(f"stages.{self.name}.{problem}")
                self.stop_rule.add(step, primary.run_on_primary(lambda: found) if self.stop_rule.rule else found)
                if self.stop_rule.step is not None and step < self.program.steps:  # all run at the end of a stage
                    for evaluator in self.evaluators:
                        if evaluator not in due:
                            self.run_evaluator(evaluator, state, step, found)
        except StopRequested:
            if not saved:
                self.save(state, step, {}, meter, pending_eval=True)
            self.exit_stopped(step)
        except Exception:
            if not saved and jax.process_count() == 1:  # other processes may not have failed, and would not save
                self.save(state, step, {}, meter, pending_eval=True)
            raise
        if saved:
            self.checkpoints.add_scores(step, found, self.fitted)
        meter.pause()
        self.scores |= found
        return found

    def run_evaluator(self, evaluator: Evaluator, state: TrainState, step: int, found: dict[str, float]) -> None:
        """Run one evaluation and add its scores to `found` as NAME/SCORE."""
        name = evaluator.config.name
        with reporter.task(f"{self.name} {step}: evaluating '{name}'", finish=False):
            params = {**state.params, **state.frozen}
            scores = evaluator.run(params, step)
            if evaluator.fit is not None and (fitted := evaluator.fit(params, step)):
                self.fitted[name] = fitted
        self.tracker.evaluation(self.name, step, name, scores)
        if self.monitor.mirror is not None:
            self.monitor.mirror.request()
        self.callbacks.call("on_evaluate", name, scores)
        found |= {f"{name}/{key}": value for key, value in scores.items()}

    def save(
        self, state: TrainState, step: int, scores: dict[str, float], meter: Meter, *, pending_eval: bool = False
    ) -> None:
        """Save a step; `pending_eval`: a run that resumes from it does its evaluations first."""
        meter.flush()
        self.check_finite(meter)
        with self.phases.enter(SAVE):
            self.corruption.before_save(step, state)
            meta = self.meta(step, meter) | ({PENDING_EVAL: True} if pending_eval else {})
            tree = adapters.checkpoint_tree(state, self.stage, self.index, self.untrained.params)
            self.checkpoint_bytes = num_bytes(param_paths.flatten(tree))
            self.checkpoints.save(step, tree, meta, scores)
            self.save_timer.saved(step)
            meter.pause()
        self.callbacks.call("on_save", step, self.checkpoints.folder / str(step))

    def meta(self, step: int, meter: Meter) -> dict[str, Any]:
        """The meta data of a step's checkpoint."""
        about = self.plan.checkpoint_facts(self.untrained, self.base, self.pretrained)
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
        self.event(step, "stage_end", scores=self.scores, **early)
        if early and (rule := self.stop_rule.rule):
            said = f"{rule.metric} has not improved in {rule.patience} evaluations"
            self.tracker.note(f"{self.name}: stopped early at step {step} of {self.program.steps}: {said}")
        self.callbacks.call("on_stage_end", self.name, self.scores)

    def should_stop(self, step: int) -> bool:
        """Whether to save and exit after this step; the same on all processes."""
        return self.stop.poll()

    def event(self, step: int, event: str, **fields: Any) -> None:
        self.tracker.event(self.name, step, event, **fields)
