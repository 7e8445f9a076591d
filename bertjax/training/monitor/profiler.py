"""Profile a window of steps, at `run.profile` and when the primary process gets SIGUSR1; traces go to RUN/profile/."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from bertjax.config.schema.run import ProfilerConfig


class Profiler:
    """Starts and ends traces at step boundaries, on the primary process only; `log` gets a line about each trace."""

    def __init__(
        self, folder: Path, window: ProfilerConfig | None, *, is_primary: bool, log: Callable[[str], None]
    ) -> None:
        self.folder, self.is_primary, self.log = folder, is_primary, log
        self._window = window
        self._steps = (window or ProfilerConfig()).steps
        self._requested = False  # by a signal
        self._steps_left = 0  # steps of the running trace

    def before_step(self, step: int) -> None:
        """Start a trace if it is due; called before a step with its number in the stage."""
        due = self._window is not None and step == self._window.start_step
        if not self.is_primary or self._steps_left or not (due or self._requested):
            return
        self._window = None if due else self._window
        self._requested = False
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
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(*_: object) -> None:
            self._requested = True

        before = signal.signal(signal.SIGUSR1, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)
            if self._steps_left:
                self._steps_left = 0
                self._end()
