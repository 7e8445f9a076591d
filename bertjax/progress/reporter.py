"""The reporter of a process: the tasks it works on, and the lines it says.

    with reporter.task("reading books.txt", total=size, unit="bytes"):
        ...
        reporter.advance(len(block), "bytes")

On a terminal the open tasks are one live display, and lines scroll above it. Elsewhere a task that lasts says a line
after FIRST_SECONDS, then one every NEXT_SECONDS (at first YOUNG_NEXT) or STEP_SHARE of its total. Progress goes to
standard error, `result` to standard output, and both to the log file if there is one. A thread writes the timed lines,
so that a task inside one long call (a compiler) is seen too; advancing a task is an addition.
"""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO, TypeVar

from bertjax.progress.log_file import LogFile
from bertjax.progress.text import compact, duration, size

FIRST_SECONDS = 5.0  # age of a task at its first line
NEXT_SECONDS = 30.0  # seconds between later lines; FIRST_SECONDS where it has advanced by STEP_SHARE
YOUNG_SECONDS, YOUNG_NEXT = 60.0, 10.0  # up to this age of a task, seconds between its lines
STEP_SHARE = 0.1
COMPILE_SECONDS = 1.0  # age of a compilation at its first line
TICK_SECONDS = 0.33  # between two refreshes of the display
MAX_BUFFERED_LINES = 2000  # kept until the log file is opened
_GONE = (errno.EPIPE, errno.EIO)  # errors of a pipe without a reader and of a closed terminal
T = TypeVar("T")
SharedCounts = tuple[tuple[str, ...], Any]  # units, and an integer for each worker and unit in shared memory


class Task:
    """Something that takes time; a context manager. Amounts are counted by unit: "bytes", "rows", "batches" ..."""

    def __init__(
        self, reporter: "Reporter", what: str, total: float | None, unit: str | None, *, first: float, finish: bool
    ) -> None:
        self.reporter, self.what, self.finish = reporter, what, finish
        self.first = first  # age at the first line
        self.counts: dict[str, float] = {unit: 0} if unit else {}
        self.totals: dict[str, float] = {unit: total} if unit and total else {}
        self.detail: Callable[[], str] = lambda: ""  # below the bar of the live display
        self.line: Callable[[], str] | None = None  # replaces the plain line
        self.remaining: Callable[[], float | None] | None = None  # replaces the time estimated here
        self.started = self.said = time.monotonic()
        self.counting: dict[str, float] = {}  # since when a unit is counted, if later than the start
        self.lines = 0
        self.min_age = 0.3  # seconds until the live display shows it
        self.has_own_lines = False  # something else says lines as it advances
        self.said_share = 0.0
        self._shared: SharedCounts | None = None

    def __enter__(self) -> "Task":
        self.reporter.push(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.reporter.pop(self)
        if kind is None and self.finish and (self.lines or self.elapsed > FIRST_SECONDS):
            self.reporter.say(self.finished_text())

    def advance(self, amount: float, unit: str) -> None:
        """Add to the amount done."""
        self.counts[unit] = self.counts.get(unit, 0) + amount

    def expect(self, total: float, unit: str) -> None:
        """State the total amount of a unit; the count starts again."""
        self.totals[unit], self.counts[unit], self.counting[unit] = total, 0, time.monotonic()

    def share_with_workers(self, *units: str, workers: int = 1) -> SharedCounts:
        """What the worker processes of this task count in these units: an argument of `forward_to` in each of them."""
        # A part for each worker instead of a lock, which a worker that is killed could hold.
        self._shared = units, get_context("spawn").RawArray("q", len(units) * workers)
        return self._shared

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def amounts(self) -> dict[str, float]:
        """The amount done of each unit, in this process and its workers."""
        found = dict(self.counts)
        if self._shared is not None:
            units, counts = self._shared
            for place, count in enumerate(counts):
                unit = units[place % len(units)]
                found[unit] = found.get(unit, 0) + count
        return {unit: count for unit, count in found.items() if count or unit in self.totals}

    def seconds_of(self, unit: str | None) -> float:
        """Seconds since this unit is counted."""
        return time.monotonic() - self.counting.get(unit or "", self.started)

    def share(self) -> float | None:
        """The share that is done, 0..1, where a total is known."""
        unit = self._counted()
        return None if unit is None else min(1.0, self.amounts().get(unit, 0) / self.totals[unit])

    def _counted(self) -> str | None:
        """The unit whose total is known."""
        return next((unit for unit, total in self.totals.items() if total), None)

    def seconds_left(self) -> float | None:
        if self.remaining is not None:
            return self.remaining()
        share = self.share()  # at 1 something follows that is not counted
        return self.seconds_of(self._counted()) * (1 - share) / share if share and share < 1 else None

    def amounts_text(self) -> str:
        """Such as `12 MB of 80 MB (3 MB/s), 1,204 documents`."""
        parts = []
        for number, (unit, count) in enumerate(self.amounts().items()):
            total = self.totals.get(unit)
            if unit == "bytes":
                text = size(count) + (f" of {size(total)}" if total else "")
            else:
                text = f"{count:,.0f}" + (f" of {total:,.0f}" if total else "") + f" {unit}"
            rate = count / max(self.seconds_of(unit), 1e-9)
            if not self.has_own_lines and number == 0 and count and self.elapsed > 1:
                text += f" ({size(rate)}/s)" if unit == "bytes" else f" ({compact(rate)}/s)" if rate >= 0.1 else ""
            parts.append(text)
        return ", ".join(parts)

    def plain_text(self) -> str:
        """The line of a task that lasts."""
        if self.line is not None:
            return self.line()
        left = self.seconds_left()
        times = [duration(self.elapsed)] if self.elapsed >= 1.5 else []
        times += [f"ETA {duration(left)}"] if left is not None else []
        amounts = self.amounts_text()
        head = f"{self.what}: {amounts}" if amounts else f"{self.what} ..."
        return " | ".join([head, *times])

    def finished_text(self) -> str:
        """The last line of a task."""
        parts = ((size(n) if unit == "bytes" else f"{n:,.0f} {unit}") for unit, n in self.amounts().items())
        amounts = ", ".join(parts)
        took = f"{self.elapsed:.1f} s" if self.elapsed < 100 else duration(self.elapsed)
        return f"{self.what}: " + (f"{amounts} in {took}" if amounts else f"done in {took}")


class Reporter:
    """Tasks and lines of one process. `results`, `lines`: streams, by default the present standard output and error.

    display: a function that gives the terminal for the live display, or None; default: standard error if it is one.
    """

    def __init__(
        self, *, results: TextIO | None = None, lines: TextIO | None = None,
        display: Callable[[], TextIO | None] | None = None,
    ) -> None:  # fmt: skip
        self._results, self._lines = results, lines
        self._choose_display = display or (lambda: terminal(sys.stderr))
        self.quiet = False  # tasks are not shown: another process shows them
        self.outlives_streams = False  # goes on with the log alone when the reader of a stream is gone
        self.tasks: list[Task] = []
        self._last_line = 0.0
        self._lock = threading.RLock()
        self._live: Any = None
        self._ticker: threading.Thread | None = None
        self._wake = threading.Event()  # ends this ticker
        self._log: LogFile | None = None
        self._buffer: list[tuple[float, str]] | None = []

    @property
    def is_live(self) -> bool:
        """Whether tasks are shown on a terminal."""
        return self._live is not None or (not self.quiet and self._choose_display() is not None)

    # ---- lines -------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Write a line to standard error and the log."""
        self._write(text, self._lines if self._lines is not None else sys.stderr)

    def result(self, text: str) -> None:
        """Write a line to standard output and the log."""
        self._write(text, self._results if self._results is not None else sys.stdout)

    def try_say(self, text: str, seconds: float = 0.5) -> bool:
        """`say`, unless another thread keeps the lock this long -> whether it was said."""
        if not self._lock.acquire(timeout=seconds):
            return False
        try:
            self.say(text)
            return True
        finally:
            self._lock.release()

    def _write(self, text: str, stream: TextIO | None) -> None:
        with self._lock:
            self.log(text)
            self._last_line = time.monotonic()
            if stream is None:  # closed by the caller; print would take standard output
                return
            try:
                if self._live is not None and self._live.covers(stream):
                    self._live.print(text)
                else:
                    print(text, file=stream, flush=True)
            except OSError as error:
                if not self.outlives_streams or error.errno not in _GONE:
                    raise
                self._live = None
                discard(stream)
                self.log("note: the reader of the output is gone; it goes on here")

    def log(self, text: str) -> None:
        """Write a line to the log only."""
        with self._lock:
            if self._log is not None:
                self._log.write(text, time.time())
            elif self._buffer is not None and len(self._buffer) < MAX_BUFFERED_LINES:
                self._buffer.append((time.time(), text))

    def forget(self) -> None:
        """Leave what has been said so far out of the log."""
        with self._lock:
            self._buffer = []

    def open_log(self, path: Path) -> None:
        """Append to this file from now on, beginning with what has been said before."""
        with self._lock:
            self._log, before, self._buffer = LogFile(path), self._buffer or [], None
            for when, text in before:
                self._log.write(text, when)

    # ---- tasks -------------------------------------------------------------------------------------------------------

    def task(
        self, what: str, total: float | None = None, unit: str | None = None, *, first: float | None = None,
        finish: bool = True,
    ) -> Task:  # fmt: skip
        """A task for a `with` block. `first`: age at its first line; `finish`: say how long it took if it was shown."""
        return Task(self, what, total, unit, first=FIRST_SECONDS if first is None else first, finish=finish)

    def push(self, task: Task) -> None:
        with self._lock:
            self.tasks.append(task)
            if self._ticker is None or not self._ticker.is_alive():
                self._wake = threading.Event()
                self._ticker = threading.Thread(target=self._tick, args=(self._wake,), name="progress", daemon=True)
                self._ticker.start()

    def pop(self, task: Task) -> None:
        """Close a task and those opened inside it."""
        with self._lock:
            if task in self.tasks:
                del self.tasks[self.tasks.index(task) :]
            if not self.tasks:
                self._stop_display()

    def amounts(self) -> list[tuple[str, dict[str, float]]]:
        """What is open and how far it is; equal at two times if nothing has advanced between them."""
        return [(task.what, task.amounts()) for task in list(self.tasks)]

    def refresh(self) -> None:
        """Draw the live display now, if this is a terminal."""
        with self._lock:
            if not self.tasks or self.quiet:
                return
            if self._live is None and (stream := self._choose_display()) is not None:
                from bertjax.progress.live import LiveDisplay

                self._live = LiveDisplay(stream, lambda: list(self.tasks))
            if self._live is not None:
                self._live.refresh()

    def close(self) -> None:
        """Close all tasks and restore the terminal; may be called more than once."""
        with self._lock:
            self.tasks.clear()
            self._stop_display()
            self._ticker = None
            self._wake.set()

    def _stop_display(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError):  # the terminal is closed
                live.close()

    def _tick(self, wake: threading.Event) -> None:
        """Refresh the display and say the lines that are due, until there is no task."""
        with suppress(OSError, ValueError):  # the terminal or the pipe is gone
            while not wake.wait(TICK_SECONDS):
                with self._lock:
                    if not self.tasks and not wake.is_set():
                        self._ticker = None
                    if not self.tasks or wake.is_set():
                        return
                    self.refresh()
                    self._say_due(time.monotonic())

    def _say_due(self, now: float) -> None:
        task, share = self.tasks[-1], self.tasks[-1].share() or 0.0
        since = now - max(task.said, self._last_line)
        far = share - task.said_share >= STEP_SHARE and not task.has_own_lines
        between = YOUNG_NEXT if now - task.started < YOUNG_SECONDS else NEXT_SECONDS
        due = since >= between or (far and since >= FIRST_SECONDS)
        if not self.quiet and (due or (task.lines == 0 and since >= task.first)):
            text = task.plain_text()
            task.lines, task.said, task.said_share = task.lines + 1, now, share
            if self._live is not None:
                self.log(text)
            else:
                self.say(text)


def discard(stream: TextIO) -> None:
    """Send what is written to a stream from now on, and what it still holds, nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def terminal(stream: Any) -> TextIO | None:
    """The stream if it is a terminal that can move its cursor."""
    try:
        usable = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except (AttributeError, ValueError):  # closed, or replaced by something that is no file
        return None
    return stream if usable else None


current = Reporter()
_forward: tuple[SharedCounts, int] | None = None
_forward_lock = threading.Lock()


@contextmanager
def use(reporter: Reporter) -> Iterator[Reporter]:
    """Make this the reporter of the process inside the block, and close it at the end; closes the one before too."""
    global current
    before, current = current, reporter
    before.close()
    try:
        yield reporter
    finally:
        current = before
        reporter.close()


def say(text: str) -> None:
    """Write a line to standard error and the log."""
    current.say(text)


def result(text: str) -> None:
    """Write a line to standard output and the log."""
    current.result(text)


def task(what: str, total: float | None = None, unit: str | None = None, **options: Any) -> Task:
    """`Reporter.task` of the process's reporter."""
    return current.task(what, total, unit, **options)


def begin(what: str) -> None:
    """Open a task that lasts until the process's reporter is closed, unless one is open."""
    if not current.tasks:
        task = current.task(what, finish=False)
        task.min_age = 1.0
        current.push(task)


def advance(amount: float, unit: str) -> None:
    """Add to the amount done of the innermost task, in this process or in the one that started it as a worker."""
    if _forward is not None:
        (units, counts), worker = _forward
        if unit in units:
            with _forward_lock:
                counts[worker * len(units) + units.index(unit)] += int(amount)
    elif current.tasks:
        current.tasks[-1].advance(amount, unit)


def expect(total: float, unit: str) -> None:
    """State the total amount of the innermost task."""
    if current.tasks:
        current.tasks[-1].expect(total, unit)


def track(items: Iterable[T], total: float | None, unit: str) -> Iterator[T]:
    """The items; each counts as one `unit` of the innermost task once it has been used."""
    if total is not None:
        expect(total, unit)
    for item in items:
        yield item
        advance(1, unit)


def ensure_task(what: str, total: float | None = None, unit: str | None = None) -> AbstractContextManager[Any]:
    """A task, unless one is open that counts what happens here."""
    return nullcontext() if current.tasks else current.task(what, total, unit, finish=False)


def share_with_workers(*units: str, workers: int = 1) -> SharedCounts | None:
    """`Task.share_with_workers` of the innermost task; None without one."""
    return current.tasks[-1].share_with_workers(*units, workers=workers) if current.tasks else None


def forward_to(counts: SharedCounts | None, worker: int = 0) -> None:
    """In a worker process: count there what this process does; `worker`: its number."""
    global _forward
    _forward = (counts, worker) if counts else None


def last_words(text: str) -> None:
    """Write a line to standard error and the log, and restore the terminal, in any thread of a process that ends now.

    Nothing here waits long: the main thread may be inside a line.
    """
    with suppress(OSError):
        if current._live is not None:
            current._live.restore()
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
    if current._lock.acquire(timeout=0.5):
        current.log(text)
        current._lock.release()


def say_in_thread(text: str) -> None:
    """`say` from a thread that must not wait for the main one, which may be inside a line."""
    if not current.try_say(text):
        with suppress(OSError):
            os.write(2, f"{text}\n".encode())
