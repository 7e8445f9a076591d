"""Exit with code 75 instead of SIGABRT when jax's coordination service aborts because a process is lost.

A launcher cannot distinguish that SIGABRT from a bug. A C handler (through ctypes: a Python handler runs too late)
asks whether the other processes are there and the service answers: if so, the abort has another cause and continues;
else the process exits.
"""

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

import jax

from bertjax.errors import StoppedSafely
from bertjax.interrupts import kill_children
from bertjax.parallel.multihost import kv_store, peer_monitor
from bertjax.progress import reporter

RESPONSE_TIMEOUT = 3.0  # seconds for the other processes and the service to answer
ALARM_SECONDS = 15  # after which the kernel ends a process whose handler hangs

_exit_lock = threading.Lock()  # of several threads the first one exits
_handler_refs: list[Any] = []  # a collected handler would still be called
_exit_code: list[int] = []  # with which this process is about to exit


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
    if _exit_code:
        os._exit(_exit_code[0])
    if lost := peer_monitor.current.find_lost(RESPONSE_TIMEOUT):
        exit_restartable(lost)
    if not coordinator_responds():  # else abort() continues
        exit_restartable("jax's coordination service ended this process")


def keep_exit_code(code: int) -> None:
    """Exit with this code from now on, also when the others are gone before this process is."""
    _exit_code[:] = [code]


def exit_restartable(reason: str) -> NoReturn:
    """Exit with code 75 at once, without the barriers of a normal exit. reason: which process is gone."""
    with _exit_lock:
        with suppress(Exception):
            kill_children()
        reporter.last_words(f"another process is gone ({reason}); run the same command again")
        with suppress(Exception):  # a closed pipe
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
