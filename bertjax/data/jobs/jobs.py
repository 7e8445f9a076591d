"""Jobs that make files: each a pure function of its argument, run here, in a pool of processes or by another runner.

A finished job has a record: sizes and hashes of its files, and facts. Run again, it only makes files that differ.
"""

import base64
import json
import os
import pickle
import secrets
import shutil
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from bertjax import interrupts
from bertjax.config.loading import plugins
from bertjax.config.schema.data import PREPROCESS
from bertjax.config.schema.sources import SOURCES
from bertjax.data.jobs.worker_pool import WorkerDied, WorkerPool
from bertjax.errors import StorageError, UserError
from bertjax.progress import reporter
from bertjax.storage import remote, staging
from bertjax.storage.atomic import write_bytes_atomic


class JobOutput(NamedTuple):
    """The result of a job: names of files in its folder, facts (JSON), and counts (integers of any shape)."""

    files: list[str]
    facts: dict[str, Any]
    counts: np.ndarray


class JobRecord(NamedTuple):
    """The record of a finished job. `files` has {file, bytes, sha256} each; `reused`: an earlier run made them."""

    files: list[dict[str, Any]]
    facts: dict[str, Any]
    counts: np.ndarray
    reused: bool = False


JobFn = Callable[[Any, Any, int, Path], JobOutput]  # (shared value, a job's argument, its number, a local folder)


@dataclass(frozen=True)
class Jobs:
    """Jobs of one kind. `make`, a module-level function, and `shared` are sent to each process once."""

    make: JobFn
    shared: Any
    folder: Path  # of the finished files
    records: Path  # a folder with a record of each finished job

    def record_path(self, index: int) -> Path:
        return self.records / f"{index:05d}.json"


class Shuffle(Protocol):
    """Sends pieces of the parts of a corpus to the jobs that need them, for runners with a shuffle."""

    @property
    def num_parts(self) -> int: ...

    def pieces(self, part: int) -> Iterator[tuple[int, Any]]:
        """(number of the job, piece) for each piece of a part."""

    def shared_for_job(self, shared: Any, job: int, pieces: Iterable[Any]) -> Any:
        """A job's replacement for `shared`, from its pieces in any order."""


class Runner(Protocol):
    """Runs jobs and yields their records in order. `is_distributed`: its processes share only the scratch folder."""

    is_distributed: bool

    def run(
        self, jobs: Jobs, arguments: Iterable[Any], *, workers: int, shuffle: Shuffle | None = None
    ) -> Iterator[JobRecord]:
        """`shuffle`: how the jobs get what they would otherwise read from the shared value at random."""


class WorkerDiedError(UserError):
    """An error that the data did not cause; finished parts remain valid."""


def run_job(jobs: Jobs, index: int, argument: Any) -> JobRecord:
    """Makes the files of one job, unless they match its record; idempotent, and safe to kill."""
    if found := load_finished(jobs, index):
        return found
    with _job_folder(jobs) as folder:
        made = jobs.make(jobs.shared, argument, index, folder)
        files = [{"file": name, **remote.move_verified(folder / name, jobs.folder / name)} for name in made.files]
    counts = np.ascontiguousarray(made.counts)
    packed = base64.b64encode(zlib.compress(counts.tobytes(), 1)).decode()
    record = {"files": files, "facts": made.facts, "counts": [counts.dtype.str, list(counts.shape), packed]}
    write_bytes_atomic(jobs.record_path(index), json.dumps(record).encode(), parents=True)
    return JobRecord(files, made.facts, made.counts)


def load_finished(jobs: Jobs, index: int) -> JobRecord | None:
    """The record of a job whose files are all there with their sizes and hashes."""
    record = read_record(jobs, index)
    for entry in record.files if record else ():
        path = jobs.folder / entry["file"]
        if remote.file_size(path) != entry["bytes"] or remote.sha256_file(path) != entry["sha256"]:
            return None
    return record


def read_record(jobs: Jobs, index: int) -> JobRecord | None:
    """The record of a job that was finished once; its files are not checked."""
    path = jobs.record_path(index)
    if remote.file_size(path) is None:
        return None
    try:
        with remote.remote_errors(path):
            found = json.loads(path.read_bytes())
        kind, shape, packed = found["counts"]
        counts = np.frombuffer(zlib.decompress(base64.b64decode(packed)), kind).reshape(shape)
        return JobRecord(found["files"], found["facts"], counts, reused=True)
    except (OSError, ValueError, KeyError, TypeError, zlib.error, RecursionError):
        return None  # an incomplete record counts as none


@contextmanager
def _job_folder(jobs: Jobs) -> Iterator[Path]:
    """A folder for one job, beside local records so that files can be renamed."""
    above = (staging.staging_dir() if remote.is_remote(jobs.records) else jobs.records.parent) / "making"
    folder = above / secrets.token_hex(8)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"{folder.parent}: no folder can be made here ({error.strerror})") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class LocalRunner:
    """This process, or a pool of processes on this machine."""

    is_distributed = False

    def run(
        self, jobs: Jobs, arguments: Iterable[Any], *, workers: int, shuffle: Shuffle | None = None
    ) -> Iterator[JobRecord]:
        """In order; with more than one worker some jobs are ahead of the reader."""
        if workers > 1 and not _defined_in_notebook():
            yield from _in_pool(jobs, arguments, workers)
            return
        for index, argument in enumerate(arguments):
            interrupts.check()
            yield run_job(jobs, index, argument)


def _defined_in_notebook() -> bool:
    """Whether a kind is defined in a notebook or an interactive session, which other processes cannot import."""
    if hasattr(sys.modules["__main__"], "__file__"):
        return False
    return any(section.__module__ == "__main__" for section in (*SOURCES.values(), *PREPROCESS.values()))


def _in_pool(jobs: Jobs, arguments: Iterable[Any], workers: int) -> Iterator[JobRecord]:
    # Jobs may contain classes of plugins, which a process imports before it unpickles the jobs.
    places = tuple(plugin.place for plugin in plugins.loaded())
    counts = reporter.share_with_workers("bytes", "rows", "documents", workers=workers)
    pool = WorkerPool(workers, counts, _init_worker, pickle.dumps(jobs), places)
    waiting: deque[Future[JobRecord]] = deque()
    try:
        for index, argument in enumerate(arguments):
            waiting.append(pool.submit(_run_in_worker, index, argument))
            if len(waiting) >= 2 * workers:  # bounded: arguments may be a stream of records
                yield pool.result(waiting.popleft())
        while waiting:
            yield pool.result(waiting.popleft())
    except WorkerDied:
        raise WorkerDiedError(
            f"preparing data: one of {workers} worker processes died, for want of memory (set run.prepare_workers to "
            "less) or because the program that started it has no `if __name__ == '__main__':`"
        ) from None
    finally:
        pool.close()


_state: Jobs  # of a worker process, set once when it starts


def _init_worker(jobs: bytes, places: Sequence[str]) -> None:
    global _state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    plugins.load_plugins(*places)
    _state = pickle.loads(jobs)


def _run_in_worker(index: int, argument: Any) -> JobRecord:
    return run_job(_state, index, argument)
