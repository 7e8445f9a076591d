"""Exit with code 75 instead of SIGABRT when jax's coordination service aborts because a process is lost.

A launcher cannot distinguish that SIGABRT from a bug. A C handler (through ctypes: a Python handler runs too late)
checks whether the service still answers: if so, the abort has another cause and continues; else the process exits.
"""

import ctypes
import os
import signal
import sys
import threading
from typing import Any

import jax

from bertjax.errors import StoppedSafely
from bertjax.parallel.multihost import kv_store
from bertjax.progress import reporter

RESPONSE_TIMEOUT = 3.0  # seconds for the service to answer
ALARM_SECONDS = 15  # after which the kernel ends a process whose handler hangs

_exit_lock = threading.Lock()  # of several threads the first one exits
_handler_refs: list[Any] = []  # a collected handler would still be called


def install_handler() -> None:
    """Install the handler once, in a multi-process run."""
    if _handler_refs:
        return
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    libc = ctypes.CDLL(None)
    handler = kind(lambda _: _on_sigabrt(libc))
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, kind], ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), handler)
    _handler_refs.extend([handler, libc])


def _on_sigabrt(libc: Any) -> None:
    libc.alarm(ALARM_SECONDS)
    if not coordinator_responds():  # else abort() continues
        exit_restartable("jax's coordination service ended this process")


def exit_restartable(reason: str) -> None:
    """Exit with code 75 at once, without the barriers of a normal exit."""
    with _exit_lock:
        reporter.last_words(f"another process is gone ({reason}); run the same command again")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(StoppedSafely.exit_code)


def coordinator_responds() -> bool:
    """Whether the coordinator answers within RESPONSE_TIMEOUT."""
    found: list[bool] = []

    def ask() -> None:
        try:
            kv_store.try_get("is anyone there")
            found.append(True)
        except (jax.errors.JaxRuntimeError, AttributeError):  # AttributeError: no client yet
            found.append(False)

    asking = threading.Thread(target=ask, name="abort_question", daemon=True)
    asking.start()
    asking.join(RESPONSE_TIMEOUT)
    return found == [True]
