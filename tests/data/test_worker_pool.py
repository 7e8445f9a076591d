"""The pool of preparations: a process that dies, in any state, is an error at once; none is waited for."""

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertjax import interrupts
from bertjax.data.jobs.jobs import JobOutput, Jobs, LocalRunner, WorkerDiedError
from bertjax.data.jobs.worker_pool import WorkerDied, WorkerPool
from bertjax.errors import StoppedSafely, UserError
from bertjax.progress import reporter

SECONDS = 30  # a limit that only a hang reaches


def set_up(value: int) -> None:
    global state
    state = value


def add(number: int) -> tuple[int, int]:
    return state + number, os.getpid()


def fail(kind: str) -> Any:
    if kind == "user":
        raise UserError("x.txt: line 3: bad")
    if kind == "bug":
        return [][1]
    return lambda: None  # cannot be pickled


def facts() -> tuple[set[signal.Signals], bool]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, []), sys.flags.safe_path


def count(rows: int) -> None:
    for _ in range(rows):
        reporter.advance(1, "rows")
        reporter.advance(1, "bytes")


def sleep_long(shared: Any, argument: bytes, index: int, folder: Path) -> JobOutput:
    time.sleep(60 if argument else 0)
    (folder / f"{index}.txt").write_text("x")
    return JobOutput([f"{index}.txt"], {}, np.zeros(1))


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(2, None, set_up, 100)
    yield made
    made.close()
    assert not active_children()


def test_results_errors_and_what_a_worker_inherits(pool):
    results = [pool.result(future) for future in [pool.submit(add, n) for n in range(20)]]
    assert [value for value, _ in results] == list(range(100, 120)) and len({pid for _, pid in results}) <= 2
    with pytest.raises(UserError, match=r"x.txt: line 3: bad"):
        pool.result(pool.submit(fail, "user"))
    with pytest.raises(IndexError) as caught:
        pool.result(pool.submit(fail, "bug"))
    assert "in a worker process" in caught.value.__notes__[0] and "return [][1]" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="function"):
        pool.result(pool.submit(fail, "lambda"))
    with pytest.raises(Exception, match="pickle"):
        pool.result(pool.submit(add, lambda: None))
    blocked, safe_path = pool.result(pool.submit(facts))
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} <= blocked and safe_path
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, [])  # here as before
    assert "PYTHONSAFEPATH" not in os.environ
    assert pool.result(pool.submit(add, 1))[0] == 101


@pytest.mark.parametrize("size", [0, 3 << 20])
def test_a_worker_killed_at_work(tmp_path, size):
    """3 MiB do not fit into a pipe: the thread that writes them to a killed process must not wait for it either."""
    jobs = Jobs(sleep_long, None, tmp_path / "files", tmp_path / "records")

    def arguments() -> Iterator[bytes]:
        for number in range(100):
            if number == 3:
                time.sleep(1.0)
                active_children()[0].kill()
            yield bytes(size + 1)

    began = time.monotonic()
    with pytest.raises(WorkerDiedError, match="one of 2 worker processes died"):
        list(LocalRunner().run(jobs, arguments(), workers=2))
    assert time.monotonic() - began < SECONDS and not active_children()
    assert len(list(LocalRunner().run(jobs, [b""] * 3, workers=2))) == 3  # the control: nothing else ended it


def test_what_workers_count_is_added_up_also_after_their_death():
    """Without a lock: one that is killed while it counts would hold it forever, and progress would wait for it."""
    with reporter.use(reporter.Reporter()), reporter.task("counting", 100, "rows") as task:
        pool = WorkerPool(2, task.share_with_workers("documents", "rows", workers=2), set_up, 0)
        for future in [pool.submit(count, 1000 + n) for n in range(6)]:
            pool.result(future)
        waiting = pool.submit(count, 10**12)
        time.sleep(0.05)
        pool.close()
        with pytest.raises(WorkerDied):
            pool.result(waiting)
        assert task.amounts()["rows"] >= 6015 and set(task.amounts()) == {"rows"}


def test_a_signal_ends_the_wait_for_a_result(pool):
    began = time.monotonic()
    with pytest.raises(StoppedSafely), interrupts.exit_on_signal(lambda: "stopped", "interrupted", polled=True):
        future = pool.submit(time.sleep, 60)
        os.kill(os.getpid(), signal.SIGTERM)
        pool.result(future)
    assert time.monotonic() - began < SECONDS


def lose() -> list[str]:
    """Get SIGTERM inside a callback of the garbage collector, as jax has one -> exceptions that were dropped there."""
    dropped: list[str] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda given: dropped.append(given.exc_type.__name__)

    def callback(phase: str, _: object) -> None:
        if phase == "start":
            gc.callbacks.remove(callback)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
    return dropped


def test_nothing_is_raised_where_it_would_be_dropped():
    def raises(*_: object) -> None:
        raise interrupts.StopRequested

    before = signal.signal(signal.SIGTERM, raises)
    try:
        assert lose() == ["StopRequested"]  # the control: a handler that raises has no effect there
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(StoppedSafely), interrupts.exit_on_signal(lambda: "stopped", "interrupted", polled=True):
        assert lose() == []
        interrupts.check()
    interrupts.check()  # over


def test_an_exception_that_a_library_made_of_the_stop_is_the_stop():
    with (
        pytest.raises(StoppedSafely, match="stopped"),
        interrupts.exit_on_signal(lambda: "stopped", "interrupted", polled=True),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        raise ValueError("a generator in Rust failed")
    with pytest.raises(ValueError), interrupts.exit_on_signal(lambda: "stopped", "interrupted", polled=True):
        raise ValueError("without a signal")
