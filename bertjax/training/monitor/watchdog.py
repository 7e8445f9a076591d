"""Detect a run without progress: a thread writes the stacks of all threads and ends the process with exit code 75."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from bertjax.config.schema.run import WatchdogTimeouts as Limits
from bertjax.errors import StoppedSafely
from bertjax.interrupts import kill_children
from bertjax.progress import reporter
from bertjax.storage.atomic import open_append
from bertjax.training.monitor.phases import PREPARE, Phases

POLL_SECONDS = 1.0  # seconds between polls; shorter if a limit is short


class Watchdog:
    """A watchdog for a block; without limits it does nothing. Stacks go to hang-PROCESS.txt in `folder`, if given."""

    def __init__(
        self, phases: Phases, limits: Limits | None, folder: Path | None, process: int, on_hang: Callable[[], None]
    ) -> None:
        self.phases, self.folder, self.process, self.on_hang = phases, folder, process, on_hang
        self.limits: dict[str, float | None] = limits.model_dump() if limits else {}
        shortest = min((limit for limit in self.limits.values() if limit), default=None)
        self.tick = min(POLL_SECONDS, shortest / 10) if shortest else None
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.tick:
            threading.Thread(target=self._watch, args=(self.tick,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self, tick: float) -> None:
        """Count polls instead of reading the clock: a process that was suspended (SIGSTOP) does not hang."""
        beats: object = None
        silent, looked = 0.0, time.monotonic()
        while not self._over.wait(tick):
            now = time.monotonic()
            lap, looked = min(now - looked, 2 * tick), now
            phase = self.phases.name
            seen = (self.phases.heartbeats, reporter.current.amounts() if phase == PREPARE else None)
            silent = silent + lap if seen == beats else 0.0
            beats = seen
            limit = self.limits.get(phase)
            if limit and silent > limit:
                self._report_hang(phase, silent)

    def _report_hang(self, phase: str, silent: float) -> None:
        line = f"process {self.process}: no progress for {silent:.0f} s in phase '{phase}' (run.watchdog.{phase})"
        where = self._write_stacks(line, self.folder / f"hang-{self.process}.txt") if self.folder else ""
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
        reporter.last_words(f"{line}{where}; run the same command again")
        try:
            self.on_hang()
        finally:
            kill_children()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(StoppedSafely.exit_code)

    def _write_stacks(self, line: str, path: Path) -> str:
        """Append the stack of every thread -> what to say about the file."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_append(path) as out:
                out.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n".encode())
                out.flush()
                faulthandler.dump_traceback(out)
            return f"; stacks in {path}"
        except OSError as error:  # the disk may be the cause
            return f"; {path} could not be written ({error.strerror})"


def watch_preparation(phases: Phases, limits: Limits | None, *, is_here: bool) -> AbstractContextManager[object]:
    """A watchdog for preparing data, before there is a run folder. `is_here`: this process does it, not another one."""
    if not limits or not is_here:
        return nullcontext()
    only = limits.model_copy(update=dict.fromkeys(type(limits).model_fields, None) | {PREPARE: limits.prepare})
    return Watchdog(phases, only, None, 0, lambda: None)
