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
from bertjax.parallel import keys

NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # jax's key for: some process got SIGTERM
GRACE = interrupts.GRACE
WORD = "run the same command again"
LOST = f"steps since the last checkpoint are lost; {WORD}"
TOLD = "Ctrl-C: saving, then leaving; press it again to leave at once, without the steps since the last checkpoint"


class Stopped(BaseException):
    """Raised in the main thread where a run must stop; no Exception, or something on the way takes it for a failure."""


class Stop:
    """Whether the run was asked to stop. Made once for a run, in its main thread."""

    def __init__(self, beat: Callable[[], None] | None = None) -> None:
        """beat: called at each `check`; it is a sign of progress."""
        self._beat = beat or (lambda: None)
        self._asked = threading.Event()
        self._over = threading.Event()
        self._raised = threading.Event()  # Stopped is on its way up in the main thread
        self._presses = interrupts.Presses()
        self._free: str | None = None  # what is being done, while nothing can be lost
        self._polls = 0
        self._several = False
        self._left: str | None = None  # what was being done when it stopped

    # ---- asking ----

    def poll(self) -> bool:
        """Whether to stop here. Several processes call it at the same places, and get the same answer."""
        if not self._several:
            return self._asked.is_set()
        from jax.experimental import multihost_utils

        self._polls += 1
        if not self._asked.is_set() and multihost_utils.reached_preemption_sync_point(self._polls):
            self._asked.set()
        return self._asked.is_set()

    def check(self) -> None:
        """Raises Stopped where `poll` says so."""
        self._beat()
        if self.poll():
            raise Stopped

    @contextmanager
    def free(self, doing: str) -> Iterator[None]:
        """Inside the block nothing can be lost: the run may leave at once. `doing` is for the message."""
        before, self._free = self._free, doing
        try:
            if self._asked.is_set() and not self._several:
                self._left = doing
                raise Stopped
            yield
        finally:
            self._free = before

    # ---- listening ----

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block SIGTERM and Ctrl-C are heard; a Stopped that reaches its end becomes StoppedSafely."""
        try:
            with self._handler():
                yield
        except Stopped:
            raise StoppedSafely(self._farewell()) from None
        finally:
            self._over.set()

    def _farewell(self) -> str:
        return f"stopped while {self._left or 'running'}; nothing was lost; {WORD}"

    def _handler(self) -> AbstractContextManager[None]:
        return interrupts.listening(
            [signal.SIGTERM, signal.SIGINT],
            self._heard,
            self._heard_at_once,
            lost=(Stopped,),
            on_lost=self._raised.clear,
            restore=lambda number: number == signal.SIGINT or not self._several,  # then SIGTERM's is jax's
        )

    def _heard(self, number: int) -> None:
        """Runs in the main thread, between two of its instructions."""
        if number == signal.SIGINT and self._several:
            return  # `_heard_at_once` makes a SIGTERM of it
        self._asked.set()
        if self._free and not self._raised.is_set():
            self._raised.set()
            self._left = self._free
            raise Stopped

    def _heard_at_once(self, received: bytes) -> None:
        """Runs in a thread, also while the main thread is inside a long call of C, such as compiling."""
        if signal.SIGINT in received:
            if self._presses.is_another():
                interrupts.leave(interrupts.INTERRUPTED, f"left at once; {LOST}")
            with suppress(OSError):
                os.write(2, f"{TOLD}\n".encode())
            if self._several:  # jax's preemption service tells the other processes
                os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=self._leave_soon, name="stop_soon", daemon=True).start()

    def _leave_soon(self) -> None:
        """Ends the process if it is still where nothing can be lost, or still on its way out from there."""
        if not self._over.wait(GRACE) and (what := self._left or self._free):
            self._left = what
            self._leave()

    def _leave(self) -> None:
        interrupts.leave(StoppedSafely.exit_code, self._farewell())

    def joined(self) -> None:
        """To be called when the processes of the job have met: from here on jax's handler takes the signal."""
        self._several = jax.distributed.is_initialized()
        if self._several:
            threading.Thread(target=self._watch_for_notice, name="stop_notice", daemon=True).start()

    def _watch_for_notice(self) -> None:
        """Leaves at once when any process got the signal and nothing can be lost here; the lead as the last."""
        patience = 3.0 if keys.index() == 0 else 0.0
        while not self._over.wait(1.0):
            if not self._free:
                continue
            try:
                told = keys.peek(NOTICE, prefix="")
            except jax.errors.JaxRuntimeError:  # the coordinator is gone: others see to that
                continue
            if told and not self._over.wait(patience) and self._free:
                self._left = self._free
                self._leave()


current = Stop()  # of the run in this process; without a run it never asks to stop


@contextmanager
def running(stop: Stop) -> Iterator[None]:
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
