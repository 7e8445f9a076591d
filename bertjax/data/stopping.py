"""SIGTERM while data are prepared: leave with exit code 75; what is finished is kept by `workplace`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bertjax.data.workplace import KEPT
from bertjax.errors import StoppedSafely


class _Stop(BaseException):
    """Not an Exception, which something on the way might take for a failure of its own."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside the block SIGTERM ends the command at once, with StoppedSafely; in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the tidying up
        raise _Stop

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Stop:
        raise StoppedSafely(f"stopped; {KEPT}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
