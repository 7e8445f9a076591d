"""Measure the steps between two log lines: means of losses, rates, waiting, MFU and memory."""

import math
import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bertjax.config.schema.run import RunConfig
from bertjax.data.pipeline.loader import Batches
from bertjax.parallel.hardware import utilization
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.program import TrainProgram
from bertjax.training.step import Metrics


def non_padding_tokens(batch: Mapping[str, np.ndarray]) -> int:
    """Count tokens that are not padding, of inputs and targets."""
    return sum(int((ids > 0).sum()) for name, ids in batch.items() if name.endswith("segment_ids"))


class _Pending(NamedTuple):
    """A step whose metrics have not been read yet."""

    step: int
    metrics: Metrics
    tokens: int
    timed: bool  # not compiled for


class Meter:
    """Reads each step's metrics one step late, so that the device never waits for the host.

    The time of a step is from the end of the previous step to its own end on the device, without evaluations and
    checkpoints. The first step of an episode, which compiles, is not timed. `unlogged` comes from the checkpoint that
    the run resumes from.
    """

    def __init__(
        self,
        program: TrainProgram,
        batches: Batches,
        tracker: Tracker,
        stage: str,
        run: RunConfig,
        unlogged: Mapping[str, Any] | None = None,
    ):
        self.program, self.tracker, self.stage, self.log_every = program, tracker, stage, run.log_every
        self.fields, self.rows = batches.fields, batches.batch_size
        self.tasks, self.planned = batches.task_names, batches.rates
        self.seen = dict.fromkeys(self.tasks, 0)  # rows of each task since the stage began
        self.pending: _Pending | None = None
        self.nonfinite_steps = 0  # in a row, up to the last step read
        self.first_nonfinite = 0  # the first of them
        self.spikes: list[int] = list(unlogged.get("spikes", [])) if unlogged else []  # skipped, in the last window
        self.extra: dict[str, Any] = {}
        self.other_rates: dict[str, float] = {}  # factor of the learning rate by pattern or group
        self._clear(unlogged)
        self._mark: float | None = None  # end of the previous step; None: the next one compiles and is not timed
        self._waiting = 0.0  # seconds waited for batches since `_mark`
        if unlogged:
            self.seen |= {task: int(rows) for task, rows in unlogged["seen"].items() if task in self.seen}

    def unlogged(self) -> dict[str, Any]:
        """The sums since the last log line (non-finite: as text) and the rows seen, as JSON; call `flush` before."""
        exact = lambda sums: {k: x if math.isfinite(x) else str(x) for k, x in sums.items()}  # noqa: E731
        return {"sums": exact(self.sums), "weights": exact(self.weights), "steps": self.steps, "seen": self.seen} | (
            {"spikes": self.spikes} if self.spikes else {}
        )

    def start_episode(self, number: int, trained: int, groups: Collection[str]) -> None:
        """Start an episode in which these groups train; its first step compiles and is not timed."""
        self.flush()
        self.extra = {"episode": number, "trainable_parameters": trained}
        self.other_rates = self.program.named_rates(groups)
        self.flops = self.rows * self.program.row_flops(self.fields, groups)
        self._mark = None

    def pause(self) -> None:
        """Exclude the time up to now from the step time; call `flush` before the pause."""
        if self._mark is not None:
            self._mark, self._waiting = time.perf_counter(), 0.0

    def record_step(self, step: int, metrics: Metrics, tokens: int, waited: float) -> int:
        """Take a step's metrics and seconds waited for data; read the previous step -> non-finite steps in a row."""
        before, self.pending = self.pending, _Pending(step, metrics, tokens, timed=self._mark is not None)
        self._waiting += waited
        if before is not None:
            self._read(before)
        if self._mark is None:
            jax.block_until_ready(metrics["loss"])
            self._mark, self._waiting = time.perf_counter(), 0.0
        return self.nonfinite_steps

    def flush(self) -> int:
        """Read the last step's metrics, which waits for the device -> non-finite steps in a row."""
        before, self.pending = self.pending, None
        if before is not None:
            self._read(before)
        return self.nonfinite_steps

    def _clear(self, unlogged: Mapping[str, Any] | None = None) -> None:
        kept = unlogged or {"sums": {}, "weights": {}, "steps": 0}
        self.sums = {name: float(total) for name, total in kept["sums"].items()}
        self.weights = {name: float(total) for name, total in kept["weights"].items()}
        self.steps, self.timed, self.tokens = int(kept["steps"]), 0, 0
        self.seconds = self.waited = 0.0

    def _read(self, done: _Pending) -> None:
        step, values = done.step, self._named(jax.device_get(done.metrics))
        if done.timed and self._mark is not None:
            now = time.perf_counter()
            self.seconds += now - self._mark
            self.waited += self._waiting
            self.tokens += done.tokens
            self.timed += 1
            self._mark, self._waiting = now, 0.0
        self.nonfinite_steps = int(values.pop("bad_steps"))
        self.first_nonfinite = step - self.nonfinite_steps + 1
        if values.pop("spike", 0):
            about = {"loss": values["loss"], "grad_norm": values["grad_norm"]}
            self.tracker.event(self.stage, step, "spike_skipped", **about)
            rule = self.program.spike_rule
            self.spikes = [one for one in self.spikes if rule and one > step - rule.window] + [step]
        self.steps += 1
        for name, value in values.items():
            kind, slash, task = name.partition("/")
            if kind.endswith("_weight"):
                continue
            weight = values.get(f"{kind.rsplit('_', 1)[0]}_weight{slash}{task}", 1.0)
            self.sums[name] = self.sums.get(name, 0.0) + weight * value
            self.weights[name] = self.weights.get(name, 0.0) + weight
        if step % self.log_every == 0 or step == self.program.steps:
            self._report(step, values)

    def _named(self, metrics: Metrics) -> dict[str, float]:
        """Name the metrics: mlm_loss/tasks [T] becomes mlm_loss/books etc.; rows become shares of the batch."""
        values: dict[str, float] = {}
        for name, x in metrics.items():
            kind, per_task, _ = name.partition("/tasks")
            numbers = {f"{kind}/{task}": float(v) for task, v in zip(self.tasks, x, strict=True)} if per_task else {}
            if kind == "rows":
                for task in self.tasks:
                    self.seen[task] += int(numbers[f"rows/{task}"])
                numbers = {f"share/{task}": numbers[f"rows/{task}"] / self.rows for task in self.tasks}
            values |= numbers or {name: float(x)}
        return values

    def mixture(self) -> str:
        """Report planned and seen shares of tasks; empty for a single task."""
        total = sum(self.seen.values())
        if len(self.tasks) == 1 or not total:
            return ""
        return "; ".join(f"{t}: planned {self.planned[t]:.2%}, seen {self.seen[t] / total:.2%}" for t in self.tasks)

    def _report(self, step: int, values: dict[str, float]) -> None:
        known = {name: total for name, total in self.sums.items() if self.weights[name] > 0 or "/" not in name}
        numbers = {name: total / max(self.weights[name], 1e-9) for name, total in known.items()}
        if self.steps == 1:  # a single step's numbers are exact
            numbers = {name: values[name] for name in numbers}
        numbers["learning_rate"] = values["learning_rate"]
        seconds = self.seconds / self.timed if self.timed else None
        devices = list(self.program.mesh.devices.flat)
        memory = devices[0].memory_stats() if devices[0].platform != "cpu" else None
        self.tracker.train(
            self.stage,
            step,
            numbers
            | {
                "tokens_per_second": self.tokens / self.seconds if self.timed else None,
                "step_seconds": seconds,
                "data_wait": self.waited / self.seconds if self.timed else None,
                "mfu": utilization(self.flops, seconds, devices[0].device_kind, len(devices)) if seconds else None,
                "memory_bytes": memory["peak_bytes_in_use"] if memory else None,
            }
            | self.extra
            | {f"learning_rate/{name}": values["learning_rate"] * f for name, f in self.other_rates.items()}
            | ({"bad_steps": self.nonfinite_steps} if self.nonfinite_steps else {}),
        )
        self._clear()
