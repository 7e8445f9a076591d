"""A window of steps seen by jax's profiler: where `run.profile` says, and whenever the primary process gets SIGUSR1.

The trace is in profile/ of the run folder, for TensorBoard's profile plugin, XProf or Perfetto.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from bertjax.config.schema.run import ProfilerConfig


class Profiler:
    """Starts and ends traces at step boundaries. On a process other than the primary it does nothing."""

    def __init__(
        self, folder: Path, window: ProfilerConfig | None, *, is_primary: bool, log: Callable[[str], None]
    ) -> None:
        """log: gets a line that says where a trace is, or why there is none."""
        self.folder, self.is_primary, self.log = folder, is_primary, log
        self._window = window
        self._steps = (window or ProfilerConfig()).steps
        self._requested = False  # by a signal
        self._steps_left = 0  # steps of the running trace

    def before_step(self, step: int) -> None:
        """To be called before a step is done, with its number in the stage."""
        due = self._window is not None and step == self._window.start_step
        if not self.is_primary or self._steps_left or not (due or self._requested):
            return
        self._window = None if due else self._window
        self._requested = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self.folder))
        except (OSError, RuntimeError) as error:  # a trace is not worth a run
            self.log(f"no profile: {str(error)[:160]}")
            return
        self._steps_left = self._steps

    def after_step(self, wait_for: Any) -> None:
        """To be called after it. wait_for: an array the step makes; the last one is waited for."""
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
        """Inside the block SIGUSR1 asks for a trace; it is heard on every process, as launchers send it to all."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGUSR1, lambda *_: self._request())
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)
            if self._steps_left:
                self._steps_left = 0
                self._end()

    def _request(self) -> None:
        self._requested = True
