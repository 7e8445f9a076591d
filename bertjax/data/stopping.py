"""Ctrl-C and SIGTERM while data are prepared: leave with exit code 75; what is finished is kept by `workplace`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bertjax.data.workplace import KEPT
from bertjax.errors import StoppedSafely
from bertjax.interrupts import GRACE, INTERRUPTED, Presses, leave, listening


class _Stop(BaseException):
    """Not an Exception, which something on the way might take for a failure of its own."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside the block SIGTERM or Ctrl-C ends the command, with StoppedSafely; a second Ctrl-C leaves at once."""
    presses, over, raised = Presses(), threading.Event(), list[int]()

    def stop(number: int) -> None:
        if not raised:  # a second one would interrupt the tidying up
            raised.append(number)
            raise _Stop

    def again() -> None:
        raised.clear()

    def wait() -> None:
        if not over.wait(GRACE):
            leave(StoppedSafely.exit_code, f"stopped; {KEPT}")

    def heard(received: bytes) -> None:
        if signal.SIGINT in received and presses.is_another():
            leave(INTERRUPTED, f"interrupted; {KEPT}")
        threading.Thread(target=wait, name="stopped", daemon=True).start()

    try:
        with listening([signal.SIGTERM, signal.SIGINT], stop, heard, lost=(_Stop,), on_lost=again):
            yield
    except _Stop:
        raise StoppedSafely(f"stopped; {KEPT}") from None
    finally:
        over.set()
