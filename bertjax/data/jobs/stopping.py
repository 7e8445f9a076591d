"""Ctrl-C and SIGTERM while data are prepared: leave with exit code 75; what is finished is kept by `scratch_dir`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bertjax.data.jobs.scratch_dir import KEPT_MESSAGE
from bertjax.errors import StoppedSafely
from bertjax.interrupts import GRACE_SECONDS, INTERRUPTED_EXIT_CODE, CtrlCCounter, exit_now, handle_signals


class _Stop(BaseException):
    """Not an Exception, which something on the way might take for a failure of its own."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Inside the block SIGTERM or Ctrl-C ends the command, with StoppedSafely; a second Ctrl-C leaves at once."""
    presses, over, raised = CtrlCCounter(), threading.Event(), list[int]()

    def stop(number: int) -> None:
        if not raised:  # a second one would interrupt the tidying up
            raised.append(number)
            raise _Stop

    def again() -> None:
        raised.clear()

    def wait() -> None:
        if not over.wait(GRACE_SECONDS):
            exit_now(StoppedSafely.exit_code, f"stopped; {KEPT_MESSAGE}")

    def on_signal(received: bytes) -> None:
        if signal.SIGINT in received and presses.is_repeated():
            exit_now(INTERRUPTED_EXIT_CODE, f"interrupted; {KEPT_MESSAGE}")
        threading.Thread(target=wait, name="stopped", daemon=True).start()

    try:
        with handle_signals([signal.SIGTERM, signal.SIGINT], stop, on_signal, retry_on=(_Stop,), on_retry=again):
            yield
    except _Stop:
        raise StoppedSafely(f"stopped; {KEPT_MESSAGE}") from None
    finally:
        over.set()
