"""Writing the shards of a store, one job each, here or in a pool of processes.

What a shard holds depends on its job alone, never on which process runs it or how many there are, so a store is the
same to the byte for any number of workers.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.packing import SEGMENTS
from bertjax.data.store import StoreWriter, shard_name, write_shard
from bertjax.errors import UserError

Blocks = Iterator[np.ndarray]
Make = Callable[[Any, Any], Blocks]  # (what all jobs share, one job's argument) -> blocks of rows
Result = tuple[dict[str, Any], np.ndarray]  # manifest entry, tokens of each row

BLOCK_ROWS = 1024


def write_shards(
    make: Make,
    shared: Any,
    arguments: Iterable[Any],
    writer: StoreWriter,
    *,
    workers: int,
    enough: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Runs `make(shared, argument)` for each argument and adds one shard for each to `writer`, in order.

    Args:
        make: a module-level function; it and `shared` are sent to each process once.
        workers: processes; 1 works in this one.
        enough: no more jobs once this many rows are there.
        progress: told the rows so far after every shard.

    Returns: the number of tokens of each row, int32 [rows]; with targets of inputs and targets, int32 [rows, 2].
    """
    lengths: list[np.ndarray] = []
    rows = 0
    run = _in_pool if workers > 1 else _in_process
    with closing(run(make, shared, arguments, writer.temporary, workers)) as results:  # type: ignore[type-var]
        for entry, part in results:
            if entry["records"]:
                writer.add(entry)
            else:
                (writer.temporary / entry["file"]).unlink()
            lengths.append(part)
            rows += len(part)
            progress(rows)
            if enough is not None and rows >= enough:
                break
    return _joined(lengths)


def _in_process(make: Make, shared: Any, arguments: Iterable[Any], folder: Path, workers: int) -> Iterator[Result]:
    for index, argument in enumerate(arguments):
        yield _shard(make, shared, folder, index, argument)


def _in_pool(make: Make, shared: Any, arguments: Iterable[Any], folder: Path, workers: int) -> Iterator[Result]:
    # spawn: this process may hold threads (the tokenizer's, XLA's), and a fork would copy their locks as they are.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (make, shared, folder))
    waiting: deque[Future[Result]] = deque()
    try:
        for index, argument in enumerate(arguments):
            waiting.append(pool.submit(_work, index, argument))
            if len(waiting) >= 2 * workers:  # bounded: arguments may be a stream of records
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"preparing data: one of {workers} worker processes died, for want of memory (set run.prepare_workers to "
            "less) or because the program that started it has no `if __name__ == '__main__':`"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_state: tuple[Make, Any, Path]  # of a worker process, set once when it starts


def _start(make: Make, shared: Any, folder: Path) -> None:
    global _state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _state = (make, shared, folder)


def _work(index: int, argument: Any) -> Result:
    return _shard(*_state, index, argument)


def _shard(make: Make, shared: Any, folder: Path, index: int, argument: Any) -> Result:
    lengths: list[np.ndarray] = []

    def counted() -> Blocks:
        for block in make(shared, argument):
            lengths.append(_tokens(block))
            yield block

    entry = write_shard(folder / shard_name(index), counted())
    return entry, _joined(lengths)


def _tokens(rows: np.ndarray) -> np.ndarray:
    if "length" in (rows.dtype.names or ()):  # chunks of text
        return rows["length"][:, 0]
    counts = [np.count_nonzero(rows[name], axis=1) for name in SEGMENTS if name in (rows.dtype.names or ())]
    return (np.stack(counts, axis=1) if len(counts) > 1 else counts[0]).astype(np.int32)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    filled = [part for part in parts if len(part)]
    return np.concatenate(filled) if filled else np.zeros(0, np.int32)
