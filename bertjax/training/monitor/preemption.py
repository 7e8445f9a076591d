"""SIGTERM and Ctrl-C: leave with exit code 75, in every phase, on all processes alike.

While steps have been done that no checkpoint holds, the run goes on to the next place where it can save: the end of a
step, or the next batch of an evaluation. Where nothing can be lost (starting, preparing data, compiling the first step)
it leaves at once, in the midst of whatever it does.

One process: a Python handler. Several: jax's own handler and its preemption service, which makes the processes agree on
the poll at which they stop; all of them poll at the same places in the same order. A second Ctrl-C leaves at once.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import jax

from bertjax import interrupts
from bertjax.errors import StoppedSafely
from bertjax.parallel.multihost import kv_store

JAX_PREEMPTION_KEY = "RECEIVED_PREEMPTION_NOTICE"  # jax's key for: some process got SIGTERM
GRACE_SECONDS = interrupts.GRACE_SECONDS
RERUN_HINT = "run the same command again"
STEPS_LOST = f"steps since the last checkpoint are lost; {RERUN_HINT}"
CTRL_C_MESSAGE = (
    "Ctrl-C: saving, then leaving; press it again to leave at once, without the steps since the last checkpoint"
)


class StopRequested(BaseException):
    """Raised in the main thread where a run must stop; no Exception, or something on the way takes it for a failure."""


class PreemptionHandler:
    """Whether the run was asked to stop. Made once for a run, in its main thread."""

    def __init__(self, heartbeat: Callable[[], None] | None = None) -> None:
        """heartbeat: called at each `check`; it is a sign of progress."""
        self._heartbeat = heartbeat or (lambda: None)
        self._requested = threading.Event()
        self._over = threading.Event()
        self._raised = threading.Event()  # Stopped is on its way up in the main thread
        self._presses = interrupts.CtrlCCounter()
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
        """Raises Stopped where `poll` says so."""
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

    # ---- listening ----

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Inside the block SIGTERM and Ctrl-C are heard; a Stopped that reaches its end becomes StoppedSafely."""
        try:
            with self._handler():
                yield
        except StopRequested:
            raise StoppedSafely(self._exit_message()) from None
        finally:
            self._over.set()

    def _exit_message(self) -> str:
        return f"stopped while {self._stopped_activity or 'running'}; nothing was lost; {RERUN_HINT}"

    def _handler(self) -> AbstractContextManager[None]:
        return interrupts.handle_signals(
            [signal.SIGTERM, signal.SIGINT],
            self._on_signal,
            self._on_signal_thread,
            retry_on=(StopRequested,),
            on_retry=self._raised.clear,
            restore_handler=lambda number: number == signal.SIGINT or not self._multiprocess,  # then SIGTERM's is jax's
        )

    def _on_signal(self, number: int) -> None:
        """Runs in the main thread, between two of its instructions."""
        if number == signal.SIGINT and self._multiprocess:
            return  # `_on_signal_thread` makes a SIGTERM of it
        self._requested.set()
        if self._exit_activity and not self._raised.is_set():
            self._raised.set()
            self._stopped_activity = self._exit_activity
            raise StopRequested

    def _on_signal_thread(self, received: bytes) -> None:
        """Runs in a thread, also while the main thread is inside a long call of C, such as compiling."""
        if signal.SIGINT in received:
            if self._presses.is_repeated():
                interrupts.exit_now(interrupts.INTERRUPTED_EXIT_CODE, f"left at once; {STEPS_LOST}")
            with suppress(OSError):
                os.write(2, f"{CTRL_C_MESSAGE}\n".encode())
            if self._multiprocess:  # jax's preemption service tells the other processes
                os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=self._exit_after_grace, name="stop_soon", daemon=True).start()

    def _exit_after_grace(self) -> None:
        """Ends the process if it is still where nothing can be lost, or still on its way out from there."""
        if not self._over.wait(GRACE_SECONDS) and (what := self._stopped_activity or self._exit_activity):
            self._stopped_activity = what
            self._exit()

    def _exit(self) -> None:
        interrupts.exit_now(StoppedSafely.exit_code, self._exit_message())

    def after_distributed_init(self) -> None:
        """To be called when the processes of the job have met: from here on jax's handler takes the signal."""
        self._multiprocess = jax.distributed.is_initialized()
        if self._multiprocess:
            threading.Thread(target=self._watch_for_notice, name="stop_notice", daemon=True).start()

    def _watch_for_notice(self) -> None:
        """Leaves at once when any process got the signal and nothing can be lost here; the lead as the last."""
        delay = 3.0 if kv_store.process_index() == 0 else 0.0
        while not self._over.wait(1.0):
            if not self._exit_activity:
                continue
            try:
                notified = kv_store.try_get(JAX_PREEMPTION_KEY, prefix="")
            except jax.errors.JaxRuntimeError:  # the coordinator is gone: others see to that
                continue
            if notified and not self._over.wait(delay) and self._exit_activity:
                self._stopped_activity = self._exit_activity
                self._exit()


current = PreemptionHandler()  # of the run in this process; without a run it never asks to stop


@contextmanager
def set_current(stop: PreemptionHandler) -> Iterator[None]:
    """Makes `stop` the current one, for what does not get it handed down: the loops of evaluations."""
    global current
    before, current = current, stop
    try:
        yield
    finally:
        current = before


def check() -> None:
    """Raises Stopped when the run in this process is asked to stop; between the batches of an evaluation."""
    current.check()
