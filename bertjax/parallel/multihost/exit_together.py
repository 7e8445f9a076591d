"""End of multi-process runs: find out whether another process is gone, and leave with the exit code that says so."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from bertjax.errors import BertjaxError, StoppedSafely, StorageError, brief, exit_code
from bertjax.parallel.multihost import peer_monitor, sigabrt
from bertjax.parallel.multihost.initialize import JAX_TIMEOUTS
from bertjax.progress import reporter

# Status codes that a broken connection never has.
_LOCAL_ERRORS = ("INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE")
_TRANSPORT = re.compile(r"\bgloo\b|\bnccl", re.IGNORECASE)
DEPARTURE_SECONDS = 5.0  # that process 0 waits for the others to end before it does


@contextmanager
def exit_together() -> Iterator[None]:
    """In a multi-process run, exit at once with code 75 when the exception of this block is due to a lost process.

    Whatever the exception is: a lost process surfaces as errors of JAX, of files and of anything that waits for others.
    The other processes are asked whether they are there; one that does not answer within the limit of JAX's heartbeats
    is gone. If all are there, the exception leaves the block, and the others get to know its exit code.
    """
    try:
        yield
        peer_monitor.current.leave(0)
    except BaseException as error:
        monitor = peer_monitor.current
        if not monitor.others and not jax.distributed.is_initialized():
            raise
        what = f"{type(error).__name__}: {brief(error, peer_monitor.MAX_WHY_CHARS)}"
        if isinstance(error, Exception) and (reason := restartable_reason(error, what)):
            reporter.current.log("".join(traceback.format_exception(error)))
            sigabrt.exit_restartable(reason)
        code = exit_code(error)
        sigabrt.keep_exit_code(code)
        monitor.leave(code, what)
        raise


def restartable_reason(error: Exception, what: str) -> str | None:
    """Which other process has caused this error by its end, if any; `what`: the error in words, to compare with theirs.

    An error that all processes have is not due to the first one that leaves with it.
    """
    if isinstance(error, StoppedSafely):
        return None
    monitor = peer_monitor.current
    if lost := monitor.find_lost(float(JAX_TIMEOUTS["heartbeat_timeout_seconds"])):
        return lost
    if isinstance(error, BertjaxError) and not isinstance(error, StorageError):  # a save fails for many reasons
        return None
    ended = (departure for departure in monitor.left.values() if departure.code and departure.why != what)
    if departure := next(ended, None):
        return f"{departure.who} ended with exit code {departure.code}"
    text = brief(error, 160)
    is_jax = isinstance(error, jax.errors.JaxRuntimeError) and not text.startswith(_LOCAL_ERRORS)
    return text if is_jax or _TRANSPORT.search(text) else None


def wait_for_others() -> None:
    """Before process 0 ends at once after an error: let the others end, which need its answers for that."""
    peer_monitor.current.wait_for_departures(DEPARTURE_SECONDS)
