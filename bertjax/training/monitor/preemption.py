"""Stop a run on SIGTERM or Ctrl-C with exit code 75, in every phase, on all processes together.

While steps have been done that no checkpoint holds, the run goes on to the next place where it can save: the end of a
step, or the next batch of an evaluation. Where nothing can be lost (starting, preparing data, compiling the first step)
it leaves at once.

One process: a Python handler. Several: jax's own handler and its preemption service, which makes the processes agree on
the poll at which they stop; all of them poll at the same places in the same order. A second Ctrl-C leaves at once.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import jax

from bertjax import interrupts
from bertjax.errors import StoppedSafely
from bertjax.interrupts import StopRequested
from bertjax.parallel.multihost import kv_store

JAX_PREEMPTION_KEY = "RECEIVED_PREEMPTION_NOTICE"  # jax's key for: some process got SIGTERM
RERUN_HINT = "run the same command again"
STEPS_LOST = f"steps since the last checkpoint are lost; {RERUN_HINT}"
CTRL_C_MESSAGE = (
    "Ctrl-C: saving, then leaving; press it again to leave at once, without the steps since the last checkpoint"
)


class PreemptionHandler:
    """Knows whether the run was asked to stop. Made once for a run, in its main thread."""

    def __init__(self, heartbeat: Callable[[], None] | None = None) -> None:
        """heartbeat: called at each `check`; it is a sign of progress."""
        self._heartbeat = heartbeat or (lambda: None)
        self._requested = threading.Event()
        self._over = threading.Event()
        self._exit_activity: str | None = None  # what is being done, while nothing can be lost
        self._polls = 0
        self._multiprocess = False
        self._stopped_activity: str | None = None  # what was being done when it stopped

    # ---- asking ----

    def poll(self) -> bool:
        """Whether to stop here. Several processes call it at the same places, and get the same answer."""
        if not self._multiprocess:
            return self._requested.is_set()
        from jax.experimental import multihost_utils

        self._polls += 1
        if not self._requested.is_set() and multihost_utils.reached_preemption_sync_point(self._polls):
            self._requested.set()
        return self._requested.is_set()

    def check(self) -> None:
        """Raises StopRequested where `poll` says so."""
        self._heartbeat()
        if self.poll():
            raise StopRequested

    @contextmanager
    def may_exit(self, doing: str) -> Iterator[None]:
        """Inside the block nothing can be lost: the run may leave at once. `doing` is for the message."""
        before, self._exit_activity = self._exit_activity, doing
        try:
            if self._requested.is_set() and not self._multiprocess:
                self._stopped_activity = doing
                raise StopRequested
            yield
        finally:
            self._exit_activity = before

    # ---- signals ----

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Inside the block SIGTERM and Ctrl-C are handled; a StopRequested leaves it as StoppedSafely."""
        context = interrupts.exit_on_signal(
            self._exit_message,
            f"left at once; {STEPS_LOST}",
            should_raise=self._on_signal,
            on_ctrl_c=self._on_ctrl_c,
            restore_handler=lambda number: number == signal.SIGINT or not self._multiprocess,  # then SIGTERM's is jax's
        )
        try:
            with context:
                yield
        finally:
            self._over.set()

    def _exit_message(self) -> str | None:
        """The last line, where nothing can be lost or the run is on its way out; None where it has to save first."""
        self._stopped_activity = self._stopped_activity or self._exit_activity
        doing = self._stopped_activity
        return f"stopped while {doing}; nothing was lost; {RERUN_HINT}" if doing else None

    def _on_signal(self, number: int) -> bool:
        """Whether to leave here; runs in the main thread, between two of its instructions."""
        if number == signal.SIGINT and self._multiprocess:
            return False  # `_on_ctrl_c` sends a SIGTERM
        self._requested.set()
        self._stopped_activity = self._stopped_activity or self._exit_activity
        return self._exit_activity is not None

    def _on_ctrl_c(self) -> None:
        with suppress(OSError):
            os.write(2, f"{CTRL_C_MESSAGE}\n".encode())
        if self._multiprocess:  # jax's preemption service tells the other processes
            os.kill(os.getpid(), signal.SIGTERM)

    def after_distributed_init(self) -> None:
        """Called when the processes of the job are connected: from here on jax's handler takes the signal."""
        self._multiprocess = jax.distributed.is_initialized()
        if self._multiprocess:
            threading.Thread(target=self._watch_for_notice, name="stop_notice", daemon=True).start()

    def _watch_for_notice(self) -> None:
        """Leave at once when any process got the signal and nothing can be lost here; the primary process last."""
        delay = 3.0 if kv_store.process_index() == 0 else 0.0
        while not self._over.wait(1.0):
            if not self._exit_activity:
                continue
            try:
                notified = kv_store.try_get(JAX_PREEMPTION_KEY, prefix="")
            except jax.errors.JaxRuntimeError:  # the coordinator is gone: others see to that
                continue
            if notified and not self._over.wait(delay) and self._exit_activity and (line := self._exit_message()):
                interrupts.exit_now(StoppedSafely.exit_code, line)


current = PreemptionHandler()  # of the run in this process; without a run it never asks to stop


@contextmanager
def set_current(stop: PreemptionHandler) -> Iterator[None]:
    """Make `stop` the current one, for code that does not get it as an argument: the loops of evaluations."""
    global current
    before, current = current, stop
    try:
        yield
    finally:
        current = before


def check() -> None:
    """Raises StopRequested when the run in this process is asked to stop; between the batches of an evaluation."""
    current.check()
