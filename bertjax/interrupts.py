"""Ctrl-C and SIGTERM: heard at once, also while the main thread is inside a long call of C, and never lost.

A thread reads the signals as they come. An exception raised by a handler is lost where the interpreter ignores
exceptions (a callback of the garbage collector, a __del__): then the handler runs again.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

GRACE_SECONDS = 5.0  # seconds in which the main thread may leave in good order, before it is left behind
DEBOUNCE_SECONDS = 0.5  # seconds: a terminal and a wrapper both pass on one Ctrl-C
INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT
RETRY_SECONDS = 0.02  # seconds until a handler whose exception was lost runs again


class CtrlCCounter:
    """Counts Ctrl-C; to be asked by one thread."""

    def __init__(self) -> None:
        self._last: float | None = None

    def is_repeated(self) -> bool:
        """Whether this Ctrl-C, which has just come, is not the first one."""
        now, last = time.monotonic(), self._last
        self._last = now if last is None else last
        return last is not None and now - last > DEBOUNCE_SECONDS


def exit_now(code: int, line: str) -> NoReturn:
    """Ends the process at once, its worker processes too."""
    from multiprocessing import active_children

    for child in active_children():  # or they would outlive this process
        child.kill()
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())  # not print: the main thread may be inside one
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


@contextmanager
def handle_signals(
    numbers: Collection[int],
    handler: Callable[[int], None],
    on_signal: Callable[[bytes], None],
    *,
    retry_on: tuple[type[BaseException], ...] = (),
    on_retry: Callable[[], None] = lambda: None,
    restore_handler: Callable[[int], bool] = lambda number: True,
) -> Iterator[None]:
    """Inside the block signals are handled; in a thread other than the main one it does nothing.

    Args:
        handler: runs in the main thread, between two of its instructions, and may raise.
        on_signal: runs in a thread of its own as soon as signals come, with their numbers as bytes.
        retry_on: what `handler` raises. Where that is ignored, the handler runs again, after `on_retry`.
        restore_handler: whether the handler from before is put back for a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is told
        return
    latest, again, over = [0], list[int](), threading.Event()

    def handle(number: int, _: object) -> None:
        latest[0] = number
        handler(number)

    def on_unraisable(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, retry_on):
            hook(unraisable)
            return
        on_retry()
        again.append(latest[0])
        threading.Timer(RETRY_SECONDS, resend, (latest[0],)).start()

    def resend(number: int) -> None:
        if not over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, handle) for number in numbers}
    hook, sys.unraisablehook = sys.unraisablehook, on_unraisable
    threading.Thread(target=_read, args=(receiver, numbers, again, on_signal), name="signals", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup)
        for number, handler_before in before.items():
            if restore_handler(number):
                signal.signal(number, handler_before)
        sender.close()


def _read(
    signals: socket.socket, numbers: Collection[int], again: list[int], on_signal: Callable[[bytes], None]
) -> None:
    with suppress(OSError), signals:
        while received := signals.recv(64):
            own = []
            for number in received:
                if number in again:  # not a new signal: its handler runs again
                    again.remove(number)
                elif number in numbers:
                    own.append(number)
            if own:
                on_signal(bytes(own))


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block the first Ctrl-C is a KeyboardInterrupt that is never lost; a second one leaves at once."""
    presses, over = CtrlCCounter(), threading.Event()

    def interrupted(number: int) -> None:
        raise KeyboardInterrupt

    def wait() -> None:
        if not over.wait(GRACE_SECONDS):
            exit_now(INTERRUPTED_EXIT_CODE, "interrupted")

    def on_signal(received: bytes) -> None:
        if signal.SIGINT in received:
            if presses.is_repeated():
                exit_now(INTERRUPTED_EXIT_CODE, "interrupted")
            threading.Thread(target=wait, name="interrupted", daemon=True).start()

    with handle_signals([signal.SIGINT], interrupted, on_signal, retry_on=(KeyboardInterrupt,)):
        try:
            yield
        finally:
            over.set()
