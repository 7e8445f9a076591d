"""Show the progress of a run: a progress bar on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO


class Console:
    """Console output of one process. `stages`: stage names in order, each with its number of steps."""

    def __init__(self, stages: Mapping[str, int], stream: TextIO, is_tty: bool) -> None:
        self.stages, self.stream, self.is_tty = dict(stages), stream, is_tty
        self._stage = ""
        self._pace: tuple[float, int] | None = None  # the time and step from which the remaining time is estimated
        self._bar: _Bar | None = None

    def train(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Show a training step."""
        if stage != self._stage:
            self.close()
            self._stage, self._pace = stage, None
        total = self.stages.get(stage, 0)
        eta = duration(self._remaining(step, total, metrics.get("step_seconds")))
        shown = [*status_parts(metrics), f"ETA {eta}"]
        if not self.is_tty:
            self._print(f"{stage} {step}/{total} | " + " | ".join(shown))
            return
        if self._bar is None:
            order = list(self.stages).index(stage) + 1 if stage in self.stages else 0
            title = f"{stage} ({order}/{len(self.stages)})" if len(self.stages) > 1 else stage
            self._bar = _Bar(self.stream, title, total)
        self._bar.update(step, "  ".join(shown))

    def evaluation(self, stage: str, step: int, name: str, scores: Mapping[str, Any]) -> None:
        """Show the scores of an evaluation."""
        text = " | ".join(f"{key} {number(value)}" for key, value in scores.items() if not isinstance(value, Mapping))
        self._print(f"{stage} {step} | {name}: {text}")

    def event(self, stage: str, step: int, event: str, fields: Mapping[str, Any]) -> None:
        """Show an event without its fields that hold lists or mappings."""
        plain = {key: value for key, value in fields.items() if not isinstance(value, (list, tuple, Mapping))}
        text = " ".join(f"{key}={number(value)}" for key, value in plain.items())
        self._print(f"{stage} {step} | {event.replace('_', ' ')} {text}".rstrip())

    def note(self, text: str) -> None:
        """Show one line about the run itself."""
        self._print(f"note: {text}")

    def close(self) -> None:
        """End the progress bar, which restores the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.print(text)
        else:
            print(text, file=self.stream, flush=True)

    def _remaining(self, step: int, total: int, step_seconds: Any) -> float | None:
        """Seconds to the end of the stage, at the pace since its first line (which compiled), else `step_seconds`."""
        now = time.monotonic()
        if self._pace is None or step <= self._pace[1]:
            self._pace = (now, step)
            return (total - step) * step_seconds if isinstance(step_seconds, (int, float)) else None
        began, first = self._pace
        return (total - step) * (now - began) / (step - first)


class _Bar:
    """A rich progress bar with the numbers on a line below it; printed lines scroll above."""

    def __init__(self, stream: TextIO, title: str, total: int) -> None:
        from rich.console import Console as RichConsole
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.text import Text

        console = RichConsole(file=stream, force_terminal=True, highlight=False)
        title_column = TextColumn("[bold]{task.description}", markup=True)
        self._progress = Progress(
            title_column, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, auto_refresh=False
        )
        self._task = self._progress.add_task(title, total=total or None)
        self._numbers, self._console, self._text = "", console, Text
        render = lambda: Group(self._progress, Text(self._numbers, style="dim"))  # noqa: E731
        self._live = Live(get_renderable=render, console=console, refresh_per_second=2)
        self._live.start()

    def update(self, step: int, numbers: str) -> None:
        self._numbers = numbers
        self._progress.update(self._task, completed=step)
        self._live.refresh()

    def print(self, text: str) -> None:
        self._console.print(self._text(text))

    def close(self) -> None:
        self._live.stop()


def status_parts(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The parts of a status line: losses, accuracies, rates, times; "n/a" for unknown ones."""
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
    yield f"MFU {percent(metrics.get('mfu'))}"
    yield f"mem {memory(metrics.get('memory_bytes'))}"
    if metrics.get("episode") is not None:
        yield f"episode {metrics['episode']}"


def number(value: Any) -> str:
    """Format a number with four significant digits, an integer with thousands separators, anything else as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "n/a"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    try:
        value = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if 1e-2 <= abs(value) < 10 else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def percent(share: Any) -> str:
    """Format a share (0..1) as a percentage."""
    return "n/a" if share is None else f"{100 * float(share):.1f}%"


def compact(value: float) -> str:
    """Format a large number with three digits and a letter: 12.3k, 4.56M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    """Format a short time: 850 us, 12.3 ms, 1.25 s."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= size or unit == "us":
            return f"{value / size:.3g} {unit}"
    raise AssertionError("unreachable")


def memory(value: float | None) -> str:
    """Format bytes in GiB, or in MiB below 1 GiB."""
    if value is None:
        return "n/a"
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def duration(value: float | None) -> str:
    """Format a long time: 42s, 3m05s, 1h02m, 2d03h."""
    if value is None or not math.isfinite(value):
        return "n/a"
    total = max(0, round(value))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600:02d}h"
