"""Handle Ctrl-C, SIGTERM and SIGHUP at once, even while the main thread is inside a long C call.

A thread reads the signals. A handler whose exception the interpreter ignored (in a __del__, a GC callback) runs again.
Blocks with `polled` raise nothing in the handler: their loops call `check`.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NoReturn

from bertjax.errors import StoppedSafely
from bertjax.progress import reporter

GRACE_SECONDS = 5.0  # seconds that the main thread has for cleaning up, before the process ends
DEBOUNCE_SECONDS = 0.5  # seconds: a terminal and a wrapper both pass on one Ctrl-C
INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT
KEPT_MESSAGE = "what is finished is kept: run the same command again"
RETRY_SECONDS = 0.02  # seconds until a handler whose exception was lost runs again


class StopRequested(BaseException):
    """Raised in the main thread where a command must stop; not an Exception, so that no handler catches it."""


class Flag:
    """A flag that a signal handler may set. An Event has a lock, for which a handler inside a handler waits forever."""

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False


profile_requested = Flag()  # by SIGUSR1, which may come before there is a profiler
_stop = Flag()  # of the innermost block
_was_stopped = Flag()  # a signal ended a block of this process


class CtrlCCounter:
    """Tells the first Ctrl-C from later ones; used by one thread."""

    def __init__(self) -> None:
        self._first: float | None = None

    def is_repeated(self) -> bool:
        """Record a Ctrl-C -> whether it is not the first one."""
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        return now - self._first > DEBOUNCE_SECONDS


def exit_now(code: int, line: str) -> NoReturn:
    """End the process at once, with its worker processes."""
    kill_children()
    reporter.last_words(line)  # not print: the main thread may be inside one
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


def kill_children() -> None:
    """Kill the worker processes, which would outlive this one, and do not wait for them."""
    from multiprocessing import active_children

    for child in active_children():
        child.kill()


def check() -> None:
    """Raise StopRequested if a signal asks the innermost block of `exit_on_signal` to stop; for loops that last."""
    if _stop.is_set():
        raise StopRequested


@contextmanager
def note_signal(number: int, flag: Flag) -> Iterator[None]:
    """Set `flag` when the signal arrives inside the block, which it does not interrupt; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda *_: flag.set())
    try:
        yield
    finally:
        signal.signal(number, before)


def install_process_handlers() -> None:
    """Handle signals from the start of the process to its end, where no block of this module does.

    `train` and `prepare` leave with 75 on SIGTERM and SIGHUP, other commands end as usual; on the way out of a block
    that a signal has ended, they are ignored. SIGUSR1 is noted for the profiler.
    """
    numbers = [number for number in stop_signals() if number != signal.SIGINT]

    def on_stop(number: int, _: object) -> None:
        if _was_stopped.is_set():
            return
        if sys.argv[1:2] in (["train"], ["prepare"]):
            exit_now(StoppedSafely.exit_code, "stopped; run the same command again")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in numbers:
        signal.signal(number, on_stop)
    signal.signal(signal.SIGUSR1, lambda *_: profile_requested.set())
    # The interpreter's last clean-up, which can take long, restores the defaults of all but ignored signals.
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in (*numbers, signal.SIGUSR1)])


def stop_signals() -> list[int]:
    """The signals that ask a command to stop: SIGHUP, of a terminal that is closed, unless `nohup` ignores it."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


@contextmanager
def exit_on_signal(
    exit_message: Callable[[], str | None],
    second_message: str,
    *,
    numbers: Collection[int] | None = None,
    error: type[BaseException] = StopRequested,
    should_raise: Callable[[int], bool] = lambda number: True,
    on_ctrl_c: Callable[[], None] = lambda: None,
    on_hangup: Callable[[], None] = lambda: None,
    restore_handler: Callable[[int], bool] = lambda number: True,
    ends_process: bool = True,
    polled: bool = False,
    grace: float = GRACE_SECONDS,
) -> Iterator[None]:
    """Raise `error` in the main thread on a signal inside the block; a StopRequested leaves it as StoppedSafely.

    numbers: of the signals; default: `stop_signals`.

    If the main thread is still in the block after `grace` seconds, the process ends with the line `exit_message()`,
    unless that is None. A second Ctrl-C ends it at once with `second_message`. `should_raise` is asked in the main
    thread; if it says no, the block polls. `on_ctrl_c` is called in a thread at the first Ctrl-C, `on_hangup` there at
    SIGHUP. `restore_handler` says for which signals the previous handler is restored. Only the main thread handles
    signals. Without `ends_process` nothing ends the process, and a second Ctrl-C is a KeyboardInterrupt in the main
    thread.

    `polled`: the handler raises nothing, since libraries may drop or convert what it raises in their callbacks; the
    block calls `check` instead, and a second SIGTERM ends the process at once. Any exception that leaves the block
    after a signal asked it to stop counts as a StopRequested.
    """
    global _stop
    presses, over, raised = CtrlCCounter(), threading.Event(), Flag()
    handled, terms = CtrlCCounter(), CtrlCCounter()  # in the main thread; of SIGTERM
    before, _stop, received_here = _stop, (stop := Flag()), Flag()
    if error is StopRequested:  # the command goes on, whatever ended a block before
        _was_stopped.clear()
    code = StoppedSafely.exit_code if error is StopRequested else INTERRUPTED_EXIT_CODE

    def handler(number: int) -> None:
        if not ends_process and number == signal.SIGINT and handled.is_repeated():
            raise KeyboardInterrupt
        if error is StopRequested:
            if _was_stopped.is_set() and not received_here.is_set():
                return  # an inner block was stopped: its exception is on the way
            _was_stopped.set()
            received_here.set()
        if not should_raise(number):
            return
        if error is StopRequested:
            stop.set()
        if not polled and not raised.is_set():  # a second exception would interrupt the cleanup
            raised.set()
            raise error

    def exit_after_grace() -> None:
        if not over.wait(grace) and (line := exit_message()) is not None:
            exit_now(code, line)

    def on_signal(received: bytes) -> None:
        if signal.SIGINT in received:
            if presses.is_repeated():
                if not ends_process:
                    return
                exit_now(INTERRUPTED_EXIT_CODE, second_message)
            on_ctrl_c()
        if signal.SIGHUP in received:
            on_hangup()
        if polled and signal.SIGTERM in received and terms.is_repeated() and (line := exit_message()) is not None:
            exit_now(code, line)
        if ends_process:
            threading.Thread(target=exit_after_grace, name="exit_after_grace", daemon=True).start()

    try:
        with _handle_signals(
            stop_signals() if numbers is None else numbers, handler, on_signal, error, raised.clear, restore_handler
        ):
            yield
    except BaseException as caught:
        if isinstance(caught, StopRequested) or (stop.is_set() and isinstance(caught, Exception)):
            raise StoppedSafely(exit_message() or "stopped; run the same command again") from None
        raise
    finally:
        over.set()
        _stop = before


def interruptible() -> AbstractContextManager[None]:
    """Turn the first Ctrl-C into a KeyboardInterrupt that is never lost; a second one ends the process at once."""
    return exit_on_signal(lambda: "interrupted", "interrupted", numbers=[signal.SIGINT], error=KeyboardInterrupt)


@contextmanager
def _handle_signals(
    numbers: Collection[int],
    handler: Callable[[int], None],
    on_signal: Callable[[bytes], None],
    error: type[BaseException],
    on_retry: Callable[[], None],
    restore_handler: Callable[[int], bool],
) -> Iterator[None]:
    """Run `handler` in the main thread, between two bytecodes, and `on_signal` in another thread at once.

    `handler` may raise `error`; if the interpreter ignored that, `on_retry` and then `handler` run again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers and receives signals
        return
    latest, again, over = [0], list[int](), threading.Event()

    def handle(number: int, _: object) -> None:
        latest[0] = number
        handler(number)

    def on_unraisable(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, error):
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
