"""A pool of worker processes that are killed, never waited for.

`concurrent.futures` can wait forever for its own processes: where one is killed while it holds a lock of a queue or
while something long is written to it (python/cpython issue 94777), and where they ignore SIGTERM. Here each process has
a pipe and a thread of its own, so that its death is the end of its pipe.
"""

import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

from bertjax import interrupts
from bertjax.errors import BertjaxError, known_error
from bertjax.progress import reporter

POLL_SECONDS = 0.2  # seconds between looks at the flag of a signal while a result is awaited
JOIN_SECONDS = 1.0  # seconds for the kernel to end a killed process
Initializer = Callable[..., None]  # module-level
Function = Callable[..., Any]  # module-level
Task = tuple[Future[Any], Function, tuple[Any, ...]]


class WorkerDied(Exception):
    """A process of a pool ended without its result."""


class WorkerPool:
    """Processes that run functions. They are started as work comes, by the main thread, up to `size` of them.

    `initialize(*arguments)` runs in each process before its first task. `counts`: of `reporter.share_with_workers`.
    """

    def __init__(
        self, size: int, counts: reporter.SharedCounts | None, initialize: Initializer, *arguments: Any
    ) -> None:
        self.size, self._counts = size, counts
        self._setup = pickle.dumps((initialize, arguments))
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._processes: list[Any] = []
        self._died = threading.Event()

    def submit(self, function: Function, *arguments: Any) -> Future[Any]:
        """Call function(*arguments) in one of the processes."""
        if len(self._processes) < self.size:
            self._start()
        future: Future[Any] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def result(self, future: Future[Any]) -> Any:
        """The result, or the exception of the function; WorkerDied; StopRequested after a signal."""
        while not future.done():
            wait_for([future], POLL_SECONDS)
            interrupts.check()
            if self._died.is_set():  # the others may still be busy for long
                raise WorkerDied
        return future.result()

    def close(self) -> None:
        """Kill the processes."""
        for process in self._processes:
            process.kill()
            self._tasks.put(None)
        for process in self._processes:
            process.join(JOIN_SECONDS)

    def _start(self) -> None:
        ours, theirs = get_context("spawn").Pipe()
        # spawn: this process may hold threads (the tokenizer's, XLA's), and a fork would copy their locks as they are.
        process = get_context("spawn").Process(target=_serve, args=(theirs, self._counts, len(self._processes)))
        with safe_path():
            resource_tracker.ensure_running()  # its start, which is part of the first process's, unblocks signals
        with signals_blocked(), safe_path():
            self._processes.append(process)
            try:
                process.start()
            except BaseException:
                self._processes.remove(process)
                raise
        theirs.close()  # now its death is an end of file
        threading.Thread(target=self._feed, args=(ours,), name="worker", daemon=True).start()

    def _feed(self, connection: Connection) -> None:
        """Pass tasks to one process, and its results to those who wait."""
        with connection:
            try:
                connection.send_bytes(self._setup)
            except OSError:
                self._died.set()
                return
            while (task := self._tasks.get()) is not None:
                future, function, arguments = task
                try:
                    connection.send((function, arguments))
                    is_result, value = connection.recv()
                except (EOFError, OSError):
                    future.set_exception(WorkerDied())
                    self._died.set()
                    return
                except Exception as error:  # what cannot be pickled
                    future.set_exception(error)
                    continue
                if is_result:
                    future.set_result(value)
                else:
                    future.set_exception(value)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """A process started inside the block never gets signals that are sent to all of a terminal or a job."""
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def safe_path() -> Iterator[None]:
    """A Python started inside the block does not import modules from the current directory (`python -P`)."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _serve(connection: Connection, counts: reporter.SharedCounts | None, worker: int) -> None:
    """The main function of a worker process."""
    reporter.forward_to(counts, worker)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    failed: BaseException | None = None
    with suppress(EOFError, OSError):  # the parent is gone
        setup = connection.recv_bytes()
        try:
            initialize, arguments = pickle.loads(setup)
            initialize(*arguments)
        except BaseException as error:  # every task reports it
            failed = _for_parent(error)
        while True:
            try:
                function, arguments = connection.recv()
                answer = (False, failed) if failed else (True, function(*arguments))
            except EOFError:
                return
            except BaseException as error:
                answer = (False, _for_parent(error))
            try:
                connection.send(answer)
            except OSError:
                raise
            except Exception as error:  # what cannot be pickled
                connection.send((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]} ({error})")))


def _for_parent(error: BaseException) -> Exception:
    """A bug's traceback, which does not travel between processes, as a note; a panic of a Rust library as UserError."""
    if not isinstance(error, Exception):
        known = known_error(error)
        if known is None:
            raise error
        return known
    if not isinstance(error, BertjaxError):
        error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    return error


def _exit_with_parent() -> None:
    """End this process with its parent, also while it works."""
    parent = parent_process()
    if parent:
        wait([parent.sentinel])
        os._exit(1)
