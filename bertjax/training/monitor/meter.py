"""The numbers of the steps between two log lines: means of losses, rates, waiting, MFU and memory."""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bertjax.config.schema.run import RunConfig
from bertjax.data.pipeline.loader import Batches
from bertjax.parallel.hardware import utilization
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.program import TrainProgram
from bertjax.training.step import Metrics


def non_padding_tokens(batch: Mapping[str, np.ndarray]) -> int:
    """Tokens that are not padding, of inputs and of targets where a batch has both."""
    return sum(int((ids > 0).sum()) for name, ids in batch.items() if name.endswith("segment_ids"))


@dataclass(frozen=True)
class _Pending:
    """A step whose metrics are not read yet. `timed`: its time counts, because nothing was compiled for it."""

    step: int
    metrics: Metrics
    tokens: int
    timed: bool


class Meter:
    """Reads each step's metrics one step late, so that the device never waits for the host.

    The time of a step is the time from the end of the step before to its own end on the device. It excludes evaluations
    and checkpoints. The first step of an episode, for which the program is compiled, is not timed at all.

    `unlogged`: what the Meter of an earlier process gave to the checkpoint that this run resumes from, so that a stop
    between two log lines changes no number.
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
        self.fields = batches.fields
        self.rows = batches.batch_size
        self.tasks, self.planned = batches.task_names, batches.rates
        self.seen = dict.fromkeys(self.tasks, 0)  # rows of each task since the stage began
        self.pending: _Pending | None = None
        self.nonfinite_steps = 0
        self.extra: dict[str, Any] = {}
        self._clear(unlogged)
        self._mark: float | None = None  # when the step before ended; None: the next one compiles and is not timed
        self._waiting = 0.0  # seconds waited for batches since `_mark`
        if unlogged:
            self.seen |= {task: int(rows) for task, rows in unlogged["seen"].items() if task in self.seen}

    def unlogged(self) -> dict[str, Any]:
        """What belongs to the position of the run, as JSON: the sums since the last log line and the rows seen.

        Call `flush` before. Python writes and reads finite numbers exactly; JSON has no others, so those become texts.
        """
        exact = lambda sums: {k: x if math.isfinite(x) else str(x) for k, x in sums.items()}  # noqa: E731
        return {"sums": exact(self.sums), "weights": exact(self.weights), "steps": self.steps, "seen": self.seen}

    def start_episode(self, number: int, trained: int, groups: Collection[str]) -> None:
        """A new episode, in which these groups train, compiles a new step: its first step is not timed."""
        self.flush()
        self.extra = {"episode": number, "trainable_parameters": trained}
        self.flops = self.rows * self.program.row_flops(self.fields, groups)
        self._mark = None

    def pause(self) -> None:
        """The time up to now was not step time. Call `flush` before what takes it."""
        if self._mark is not None:
            self._mark, self._waiting = time.perf_counter(), 0.0

    def record_step(self, step: int, metrics: Metrics, tokens: int, waited: float) -> int:
        """Takes step's metrics (still being computed) and reads those of the step before -> non-finite steps in a row.

        waited: seconds that passed without a batch since the last call.
        """
        before, self.pending = self.pending, _Pending(step, metrics, tokens, timed=self._mark is not None)
        self._waiting += waited
        if before is not None:
            self._read(before)
        if self._mark is None:
            jax.block_until_ready(metrics["loss"])
            self._mark, self._waiting = time.perf_counter(), 0.0
        return self.nonfinite_steps

    def flush(self) -> int:
        """Reads the last step's metrics too (waits for the device) -> non-finite steps in a row."""
        if self.pending is not None:
            before, self.pending = self.pending, None
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
        """Numbers by name: mlm_loss/tasks [T] becomes mlm_loss/books and so on; rows become shares of the batch."""
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
        """What was planned against what was seen; nothing for a single task."""
        total = sum(self.seen.values())
        if len(self.tasks) == 1 or not total:
            return ""
        return "; ".join(f"{t}: planned {self.planned[t]:.2%}, seen {self.seen[t] / total:.2%}" for t in self.tasks)

    def _report(self, step: int, values: dict[str, float]) -> None:
        known = {name: total for name, total in self.sums.items() if self.weights[name] > 0 or "/" not in name}
        numbers = {name: total / max(self.weights[name], 1e-9) for name, total in known.items()}
        if self.steps == 1:  # a single step is written as it is, to the last bit
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
            | ({"bad_steps": self.nonfinite_steps} if self.nonfinite_steps else {}),
        )
        self._clear()
