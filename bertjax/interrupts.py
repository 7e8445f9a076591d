"""Handle Ctrl-C and SIGTERM immediately, also while the main thread is inside a long C call, and never lose one.

A thread reads the signals. Where the interpreter ignores exceptions (callbacks of the garbage collector, __del__), the
exception of a handler is lost; then the handler runs again.
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

GRACE_SECONDS = 5.0  # time for the main thread to exit in an orderly way
DEBOUNCE_SECONDS = 0.5  # a terminal and a wrapper may both deliver one Ctrl-C
INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT
RETRY_SECONDS = 0.02  # until a handler whose exception was lost runs again


class CtrlCCounter:
    """Counts Ctrl-C; for use by one thread."""

    def __init__(self) -> None:
        self._last: float | None = None

    def is_repeated(self) -> bool:
        """Whether the current Ctrl-C is not the first one."""
        now, last = time.monotonic(), self._last
        self._last = now if last is None else last
        return last is not None and now - last > DEBOUNCE_SECONDS


def exit_now(code: int, line: str) -> NoReturn:
    """End the process and its worker processes immediately."""
    from multiprocessing import active_children

    for child in active_children():  # they would outlive this process
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
    """Handle signals inside the block; does nothing in threads other than the main one.

    Args:
        handler: called in the main thread, between two of its instructions; may raise.
        on_signal: called in another thread as soon as signals arrive, with their numbers as bytes.
        retry_on: exceptions of `handler`. If one is ignored, `on_retry` and then the handler are called again.
        restore_handler: whether to restore the previous handler of a signal afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers and receives signals
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
    """Turn the first Ctrl-C inside the block into a KeyboardInterrupt that is never lost; the second one exits."""
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
