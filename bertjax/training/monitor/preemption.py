"""Stop a run on SIGTERM, SIGHUP or Ctrl-C with exit code 75, in every phase, on all processes together.

A run with unsaved steps continues to the end of the step, or the next batch of an evaluation, and saves; a second
Ctrl-C ends it at once. Where nothing can be lost (starting, preparing data, compiling the first step) it ends at once.
With several processes jax's preemption service chooses the poll at which all stop; all poll in the same order.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from bertjax import interrupts
from bertjax.errors import StoppedSafely
from bertjax.interrupts import StopRequested
from bertjax.parallel.multihost import kv_store
from bertjax.progress import reporter

JAX_PREEMPTION_KEY = "RECEIVED_PREEMPTION_NOTICE"  # set by jax when a process gets SIGTERM
RERUN_HINT = "run the same command again"
STEPS_LOST = f"steps since the last checkpoint are lost; {RERUN_HINT}"
CTRL_C_MESSAGE = (
    "Ctrl-C: saving, then leaving; press it again to leave at once, without the steps since the last checkpoint"
)


class PreemptionHandler:
    """Whether a run was asked to stop; made once for a run, in its main thread."""

    def __init__(self, heartbeat: Callable[[], None] | None = None, *, ends_process: bool = True) -> None:
        """heartbeat: called at each `check`, to report progress. ends_process: whether a signal may end the process."""
        self._heartbeat = heartbeat or (lambda: None)
        self.ends_process = ends_process
        self._requested, self._over = interrupts.Flag(), threading.Event()
        self._exit_activity: str | None = None  # what is being done, while nothing can be lost
        self._stopped_activity: str | None = None  # what was being done when it stopped
        self._polls = 0
        self._multiprocess = False

    def poll(self) -> bool:
        """Whether to stop here. All processes call it at the same places and get the same answer."""
        if not self._multiprocess:
            return self._requested.is_set()
        from jax.experimental import multihost_utils

        self._polls += 1
        if not self._requested.is_set() and multihost_utils.reached_preemption_sync_point(self._polls):
            self._requested.set()
        return self._requested.is_set()

    def request(self) -> None:
        """Ask the run to stop, as a signal does."""
        if self._multiprocess:  # jax's preemption service tells the other processes
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._requested.set()

    def check(self) -> None:
        """Raise StopRequested if `poll` is true."""
        self._heartbeat()
        if self.poll():
            raise StopRequested

    @contextmanager
    def may_exit(self, doing: str) -> Iterator[None]:
        """Let the run end at once inside the block, where nothing can be lost; `doing` is for the message."""
        before, self._exit_activity = self._exit_activity, doing
        try:
            if self._requested.is_set() and not self._multiprocess:
                self._stopped_activity = doing
                raise StopRequested
            yield
        finally:
            self._exit_activity = before

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle SIGTERM, SIGHUP and Ctrl-C inside the block; a StopRequested leaves it as StoppedSafely."""
        context = interrupts.exit_on_signal(
            self._exit_message,
            f"left at once; {STEPS_LOST}",
            should_raise=self._on_signal,
            on_ctrl_c=self._on_ctrl_c,
            on_hangup=self._tell_others,
            restore_handler=lambda number: (
                number != signal.SIGTERM or not self._multiprocess
            ),  # then SIGTERM's is jax's
            ends_process=self.ends_process,
        )
        try:
            with context:
                yield
        finally:
            self._over.set()

    def _exit_message(self) -> str | None:
        """The last line, if nothing can be lost or the run is ending; None if it has to save first."""
        self._stopped_activity = self._stopped_activity or self._exit_activity
        doing = self._stopped_activity
        return f"stopped while {doing}; nothing was lost; {RERUN_HINT}" if doing else None

    def _on_signal(self, number: int) -> bool:
        """Whether to stop here; runs in the main thread, between two bytecodes."""
        if number != signal.SIGTERM and self._multiprocess:
            return False  # `_tell_others` sends a SIGTERM
        self._requested.set()
        self._stopped_activity = self._stopped_activity or self._exit_activity
        return self._exit_activity is not None

    def _on_ctrl_c(self) -> None:
        if not (self._stopped_activity or self._exit_activity):  # else it leaves at once, and says so
            reporter.say_in_thread(CTRL_C_MESSAGE)
        self._tell_others()

    def _tell_others(self) -> None:
        if self._multiprocess:  # jax's preemption service tells the other processes
            os.kill(os.getpid(), signal.SIGTERM)

    def after_distributed_init(self) -> None:
        """Leave SIGTERM to jax's handler once the processes of the job are connected."""
        self._multiprocess = jax.distributed.is_initialized()
        if self._multiprocess:
            threading.Thread(target=self._watch_for_notice, name="stop_notice", daemon=True).start()

    def _watch_for_notice(self) -> None:
        """End the process when any process got the signal and nothing can be lost here; the primary process last."""
        delay = 3.0 if kv_store.process_index() == 0 else 0.0
        while not self._over.wait(1.0):
            if not self._exit_activity:
                continue
            try:
                notified = kv_store.try_get(JAX_PREEMPTION_KEY, prefix="")
            except jax.errors.JaxRuntimeError:  # the coordinator is gone, which others handle
                continue
            if notified and not self._over.wait(delay) and self._exit_activity and (line := self._exit_message()):
                interrupts.exit_now(StoppedSafely.exit_code, line)


current = PreemptionHandler()  # of the run in this process; without a run it never stops


@contextmanager
def set_current(stop: PreemptionHandler) -> Iterator[None]:
    """Make `stop` the current one for the loops of evaluations, which do not get it as an argument."""
    global current
    before, current = current, stop
    try:
        yield
    finally:
        current = before


def check() -> None:
    """Raise StopRequested when the run in this process is asked to stop; called between batches of an evaluation."""
    current.check()
