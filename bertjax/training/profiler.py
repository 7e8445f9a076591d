"""A window of steps seen by jax's profiler: where `run.profile` says, and whenever the lead process gets SIGUSR1.

The trace lies in profile/ of the run folder, for TensorBoard's profile plugin, XProf or Perfetto.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from bertjax.config.schema import Profile


class Profiler:
    """Starts and ends traces at step boundaries. On a process that is not the lead it does nothing."""

    def __init__(self, folder: Path, window: Profile | None, *, lead: bool, say: Callable[[str], None]) -> None:
        """say: told where a trace lies, or why there is none."""
        self.folder, self.lead, self.say = folder, lead, say
        self._window = window
        self._steps = (window or Profile()).steps
        self._asked = False  # by a signal
        self._left = 0  # steps of the running trace

    def before(self, step: int) -> None:
        """To be called before a step is done, with its number in the stage."""
        due = self._window is not None and step == self._window.start_step
        if not self.lead or self._left or not (due or self._asked):
            return
        self._window = None if due else self._window
        self._asked = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self.folder))
        except (OSError, RuntimeError) as error:  # a trace is not worth a run
            self.say(f"no profile: {str(error)[:160]}")
            return
        self._left = self._steps

    def after(self, wait_for: Any) -> None:
        """To be called after it. wait_for: an array the step makes; the last one is waited for."""
        if self._left:
            self._left -= 1
            if not self._left:
                jax.block_until_ready(wait_for)
                self._end()

    def _end(self) -> None:
        try:
            jax.profiler.stop_trace()
            self.say(f"profile of {self._steps} steps in {self.folder}")
        except (OSError, RuntimeError) as error:
            self.say(f"no profile: {str(error)[:160]}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block SIGUSR1 asks for a trace; it is heard on every process, as launchers send it to all."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGUSR1, lambda *_: self._ask())
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)
            if self._left:
                self._left = 0
                self._end()

    def _ask(self) -> None:
        self._asked = True
