"""Show the progress of a run: a live display on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bertjax.progress.reporter import Reporter, Task
from bertjax.progress.text import compact, duration, memory, number, percent, seconds, size


class Console:
    """What a run shows of its steps. `stages`: stage names in order, each with its number of steps."""

    def __init__(self, stages: Mapping[str, int], reporter: Reporter) -> None:
        self.stages, self.reporter = dict(stages), reporter
        self._task: Task | None = None
        self._step = 0
        self._pace: tuple[float, int] | None = None  # the time and step from which the remaining time is estimated
        self._eta: tuple[float, float] | None = None  # seconds that were left, and when
        self._numbers = ""

    @contextmanager
    def stage(self, stage: str, step: int) -> Iterator[None]:
        """Show the steps of a stage inside the block, which begins after `step`."""
        total, order = self.stages.get(stage, 0), list(self.stages)
        title = f"{stage} ({order.index(stage) + 1}/{len(order)})" if len(order) > 1 and stage in order else stage
        self._pace = self._eta = None
        self._numbers, self._step = "", step
        with self.reporter.task(title, total, "steps", finish=False) as task:
            self._task = task
            task.counts["steps"] = step
            task.detail, task.line, task.remaining = lambda: self._numbers, self._line, self._seconds_left
            task.has_own_lines = True
            self._name = stage
            try:
                yield
            finally:
                self._task = None

    def step(self, step: int) -> None:
        """Count a step that was started. Called for each step: no output, no waiting for the device."""
        self._step = step
        if self._task is not None:
            self._task.counts["steps"] = step
        if self._pace is None:  # it compiled
            self._pace = (time.monotonic(), step)

    def leave_out(self, took: float) -> None:
        """Leave a time, in seconds, that ended just now out of the pace."""
        if self._pace is not None:  # the pace may have begun inside that time
            self._pace = (min(self._pace[0] + took, time.monotonic()), self._pace[1])

    def train(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the numbers of a training step."""
        total, now = self.stages.get(stage, 0), time.monotonic()
        left = self._remaining(now, step, total, metrics.get("step_seconds"))
        self._eta = None if left is None else (left, now)
        parts = [*status_parts(metrics)]
        self._numbers = "  ".join(parts)
        line = " | ".join([f"{stage} {step}/{total}", *parts, *([f"ETA {duration(left)}"] if left else [])])
        if self._task is None or not self.reporter.is_live:
            self.reporter.result(line)
        else:
            self.reporter.log(line)

    def evaluation(self, stage: str, step: int, name: str, scores: Mapping[str, Any]) -> None:
        """Show the scores of an evaluation."""
        text = " | ".join(f"{key} {number(value)}" for key, value in scores.items() if not isinstance(value, Mapping))
        self.reporter.result(f"{stage} {step} | {name}: {text}")

    def event(self, stage: str, step: int, event: str, fields: Mapping[str, Any]) -> None:
        """Show an event."""
        self.reporter.result(f"{stage} {step} | {event_text(event, fields)}")

    def note(self, text: str) -> None:
        """Show one line about the run itself."""
        self.reporter.result(f"note: {text}")

    def _line(self) -> str:
        """The line between two log lines that are far apart in time."""
        left = self._seconds_left()
        head = f"{self._name} {self._step}/{self.stages.get(self._name, 0)}"
        return f"{head} | ETA {duration(left)}" if left is not None else f"{head} ..."

    def _seconds_left(self) -> float | None:
        """The time left at the last log line less the time since; before it, at the pace so far."""
        now = time.monotonic()
        if self._eta is not None:
            left, when = self._eta
            return max(0.0, left - (now - when))
        if self._task is None:
            return None
        return self._remaining(now, self._step, self.stages.get(self._name, 0), None)

    def _remaining(self, now: float, step: int, total: int, step_seconds: Any) -> float | None:
        """Seconds to the end of the stage at its pace, evaluations and checkpoints so far included.

        The first step, which compiles, does not count; before there is a pace: `step_seconds`.
        """
        if self._pace is None:
            self._pace = (now, step)
        began, first = self._pace
        if step <= first:
            return (total - step) * step_seconds if isinstance(step_seconds, (int, float)) else None
        return (total - step) * (now - began) / (step - first)


def event_text(event: str, fields: Mapping[str, Any]) -> str:
    """An event in words; fields that hold lists or mappings are left out of those without words of their own."""
    match event:
        case "start":
            return f"starts with {fields['init']}" if fields.get("init") else "starts"
        case "resume":
            return "resumed"
        case "episode":
            groups = fields.get("groups")
            where = f" in {len(groups)} group{'s' if len(groups) > 1 else ''}" if groups else ""
            return f"training {number(fields.get('trainable_parameters'))} parameters{where}"
        case "features" if {"rows", "bytes", "seconds"} <= fields.keys():
            kept = f"{number(fields['rows'])} rows ({size(fields['bytes'])})"
            took = f"cached in {seconds(fields['seconds'])}"
            if layers := fields.get("layers"):
                return f"frozen layers' outputs of {kept} {took}; steps leave out {layers} layer{'s' * (layers > 1)}"
            return f"features of {kept} {took}; steps train the head alone"
        case "checkpoint" if "seconds" in fields:
            written = f"{size(fields['bytes'])} " if fields.get("bytes") else ""
            return f"checkpoint saved ({written}in {seconds(fields['seconds'])})"
    plain = {key: value for key, value in fields.items() if not isinstance(value, (list, tuple, Mapping))}
    return " ".join([event.replace("_", " "), *(f"{key}={number(value)}" for key, value in plain.items())])


def status_parts(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The parts of a status line: losses, accuracies, rates, times; unknown ones are left out."""
    if "loss" in metrics:
        yield f"loss {number(metrics['loss'])}"
    accuracies = {key: value for key, value in metrics.items() if key.endswith("accuracy") and value is not None}
    for key, value in accuracies.items():
        yield f"{key.removesuffix('accuracy').rstrip('_/') or 'accuracy'} {percent(value)}"
    if "learning_rate" in metrics:
        yield f"lr {metrics['learning_rate']:.3g}"
    if metrics.get("tokens_per_second") is not None:
        yield f"{compact(metrics['tokens_per_second'])} tok/s"
    if metrics.get("step_seconds") is not None:
        yield f"step {seconds(metrics['step_seconds'])}"
    if metrics.get("data_wait") is not None:
        yield f"wait {percent(metrics['data_wait'])}"
    if metrics.get("mfu") is not None:
        yield f"MFU {percent(metrics['mfu'])}"
    if metrics.get("memory_bytes") is not None:
        yield f"mem {memory(metrics['memory_bytes'])}"
    elif resident := resident_bytes():
        yield f"RSS {memory(resident)}"
    if metrics.get("episode"):  # the only one, or the first, goes without saying
        yield f"episode {metrics['episode']}"


def resident_bytes() -> int | None:
    """Memory of this process, where the system says so (Linux)."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return None
