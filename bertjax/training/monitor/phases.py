"""Track the phase that a run is in and the time spent in each; read by watchdog and goodput."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STARTUP, PREPARE, COMPILE, STEP, EVALUATION, SAVE = PHASES = (
    "startup", "prepare", "compile", "step", "evaluation", "save",
)  # fmt: skip
_first = True  # the first run of a process starts with the process


class Phases:
    """The current phase. Only the main thread writes it; other threads read `name` and `heartbeats`."""

    def __init__(self, started: float | None = None) -> None:
        """started: seconds since the epoch; default: now, or the start of the process for its first run."""
        now = time.time()
        self.started = now - _process_age() if started is None else started
        self.name = STARTUP
        self.heartbeats = 0
        self._seconds = dict.fromkeys(PHASES, 0.0) | {STARTUP: now - self.started}
        self._mark = time.monotonic()

    def heartbeat(self) -> None:
        """Report progress: a step, or a batch of an evaluation."""
        self.heartbeats += 1

    @contextmanager
    def enter(self, name: str) -> Iterator[None]:
        """Change the phase inside the block."""
        before = self.name
        self.change(name)
        try:
            yield
        finally:
            self.change(before)

    def change(self, name: str) -> None:
        self._seconds[self.name] += self._lap()
        self.name = name
        self.heartbeats += 1

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase so far; they add up to the time since `started`."""
        self._seconds[self.name] += self._lap()
        return dict(self._seconds)

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self._mark = now - self._mark, now
        return lap


def _process_age() -> float:
    """Seconds since this process began, for its first run; 0 for later ones."""
    global _first
    if not _first:
        return 0.0
    _first = False
    try:  # Linux: field 22, after the command in brackets, is the start in ticks since boot
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
