"""Profile a window of steps, at `run.profile` and when the primary process gets SIGUSR1; traces go to RUN/profile/."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from bertjax.config.schema.run import ProfilerConfig
from bertjax.interrupts import note_signal, profile_requested


class Profiler:
    """Starts and ends traces at step boundaries, on the primary process only; `log` gets a line about each trace."""

    def __init__(
        self, folder: Path, window: ProfilerConfig | None, *, is_primary: bool, log: Callable[[str], None]
    ) -> None:
        self.folder, self.is_primary, self.log = folder, is_primary, log
        self._window = window
        self._steps = (window or ProfilerConfig()).steps
        self._steps_left = 0  # steps of the running trace

    def before_step(self, step: int) -> None:
        """Start a trace if it is due; called before a step with its number in the stage."""
        due = self._window is not None and step == self._window.start_step
        if not self.is_primary or self._steps_left or not (due or profile_requested.is_set()):
            return
        self._window = None if due else self._window
        profile_requested.clear()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self.folder))
        except (OSError, RuntimeError) as error:  # the run continues without
            self.log(f"no profile: {str(error)[:160]}")
            return
        self._steps_left = self._steps

    def after_step(self, wait_for: Any) -> None:
        """Count a step, and end the trace after its last one, whose array `wait_for` is waited for."""
        if self._steps_left:
            self._steps_left -= 1
            if not self._steps_left:
                jax.block_until_ready(wait_for)
                self._end()

    def _end(self) -> None:
        try:
            jax.profiler.stop_trace()
            self.log(f"profile of {self._steps} steps in {self.folder}")
        except (OSError, RuntimeError) as error:
            self.log(f"no profile: {str(error)[:160]}")

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Start a trace on SIGUSR1 inside the block; every process handles it, since launchers send it to all."""
        try:
            with note_signal(signal.SIGUSR1, profile_requested):
                yield
        finally:
            if self._steps_left:
                self._steps_left = 0
                self._end()
            elif self.is_primary and profile_requested.is_set():
                profile_requested.clear()
                self.log("no profile: no step came after SIGUSR1")
