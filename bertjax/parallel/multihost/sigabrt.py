"""An abort that jax's coordination service makes of a lost process, turned into exit code 75.

When the coordinator or another process is gone, jax ends this one from a thread of its own by SIGABRT, which a
launcher cannot tell from a bug. A handler in C (through ctypes: Python's own would run too late) looks whether the
service still answers: if it does, the abort goes on, since something else is broken; if not, the process leaves.
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

RESPONSE_TIMEOUT = 3.0  # seconds the service has to answer
ALARM_SECONDS = 15  # seconds after which the kernel ends the process, should the handler itself be stuck

_exit_lock = threading.Lock()  # several threads may find out at once: the first one speaks and leaves
_handler_refs: list[Any] = []  # a handler that is collected would be called all the same


def install_handler() -> None:
    """Installs the handler, once; for processes of a job of several."""
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
    if coordinator_responds():
        return  # abort() goes on and ends the process as it would have
    exit_restartable("jax's coordination service ended this process")


def exit_restartable(reason: str) -> None:
    """Ends this process with 75, at once, without the barriers on the ordinary way out."""
    with _exit_lock:
        print(f"another process is gone ({reason}); run the same command again", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(StoppedSafely.exit_code)


def coordinator_responds() -> bool:
    """Whether the coordinator answers a question within a few seconds."""
    found: list[bool] = []

    def ask() -> None:
        try:
            kv_store.try_get("is anyone there")
            found.append(True)
        except (jax.errors.JaxRuntimeError, AttributeError):  # AttributeError: there is no client yet
            found.append(False)

    asking = threading.Thread(target=ask, name="abort_question", daemon=True)
    asking.start()
    asking.join(RESPONSE_TIMEOUT)
    return found == [True]
