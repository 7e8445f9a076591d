"""Batches by number: batch k is a pure function of (data, seed, k).

The stream is endless: `RowOrder` maps positions k * batch_size + row to (task, epoch, index), so the last batch of an
epoch continues in the next one. A batch is the unit of work: its order, its rows and their masks are made at once.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.config.limits import MAX_COUNT
from bertjax.config.schema.data import Task
from bertjax.config.schema.run import Config, Stage
from bertjax.data.jobs.jobs import Runner
from bertjax.data.pipeline import mixing
from bertjax.data.pipeline.prepare import ReportFn, prepare
from bertjax.data.pipeline.row_order import RowOrder
from bertjax.data.pipeline.task_rows import Fields, TaskData, make_task_data
from bertjax.data.sources.class_names import ClassSpec
from bertjax.data.store.reader import Store
from bertjax.errors import UserError

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer

Batch = dict[str, np.ndarray]
ALL_ROWS = slice(None)
RowSelection = slice | np.ndarray  # part of a batch: a range of its rows, or their numbers in order
MoreFields = Callable[[np.ndarray], Batch]  # numbers [n] of stored rows, see `Batches.batch` -> other fields
PREFETCH_THREADS = 2  # reading and masking mostly hold the interpreter's lock; more threads would only wait for it


class BatchIterator(AbstractContextManager["BatchIterator"]):
    """Batches prefetched by background threads, in order. An error in a thread is raised here."""

    def __init__(self, make: Callable[[int], Batch], start: int, stop: int, prefetch: int):
        self._make, self._next, self._stop = make, start, stop
        self.total = stop - start
        self._pool = ThreadPoolExecutor(min(PREFETCH_THREADS, prefetch), "batches") if prefetch else None
        self._ahead: deque[Future[Batch]] = deque()
        self._prefetch = prefetch
        self._fill()

    def _fill(self) -> None:
        while self._pool and len(self._ahead) < self._prefetch and self._next < self._stop:
            self._ahead.append(self._pool.submit(self._make, self._next))
            self._next += 1

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._ahead:
            try:
                batch = self._ahead.popleft().result()
            except BaseException:
                self.close()
                raise
            self._fill()
            return batch
        if self._next >= self._stop:
            self.close()
            raise StopIteration
        self._next += 1
        return self._make(self._next - 1)

    def close(self) -> None:
        """Drops prefetched batches and waits for the threads to end."""
        self._next = self._stop
        self._ahead.clear()
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __exit__(self, *_: object) -> None:
        self.close()


class Batches:
    """The batches of a stage or of an evaluation. `task_names` are by task id; several give `task_ids` int32 [B]."""

    def __init__(self, tasks: dict[str, TaskData], shares: dict[str, float], batch_size: int, pad_id: int = 0):
        self.task_names, self._tasks, self._by_name = list(tasks), list(tasks.values()), tasks
        self.batch_size = batch_size  # global B, in rows
        self.rates = shares  # of each task in the rows of the stream
        self.row_counts = {name: data.length for name, data in tasks.items()}  # in one epoch of each task
        self.rows_per_epoch = sum(self.row_counts.values())
        self.batches_per_epoch = -(-self.rows_per_epoch // batch_size)
        self.fields = _common_fields(tasks)  # name -> (shape, dtype) of one row; a batch has an axis B in front
        if len(tasks) > 1:
            self.fields["task_ids"] = ((), np.dtype(np.int32))
        self._pad_id = pad_id
        self._starts = np.cumsum([0, *self.row_counts.values()])  # the first stored row of each task, and their number
        seeds = [data.seed for data in self._tasks]
        self._order = RowOrder(list(self.row_counts.values()), [shares[name] for name in tasks], seeds)

    def steps(self, stage: Stage) -> int:
        """The steps of `stage`: its `steps`, or what its epochs of this data take."""
        steps = stage.steps or max(1, ceil((stage.epochs or 1) * self.rows_per_epoch / stage.batch_size))
        if steps > MAX_COUNT:
            raise UserError(f"stages.{stage.name}.epochs: {steps:,} steps; give at most {MAX_COUNT:,}")
        return steps

    @property
    def are_fixed(self) -> bool:
        """Whether a stored row is the same in every epoch: nothing is masked or corrupted when it is read."""
        return all(data.transform is None for data in self._tasks)

    @property
    def example_counts(self) -> dict[str, int]:
        """Examples in one epoch of each task; more than its rows where these are packed."""
        return {name: data.store.meta["examples"] for name, data in self._by_name.items()}

    @property
    def stores(self) -> dict[str, Store]:
        return {name: data.store for name, data in self._by_name.items()}

    @property
    def tokens_per_row(self) -> dict[str, float]:
        """Non-padding tokens in a row of each task, on average."""
        return {name: data.store.meta["tokens_in_rows"] / data.length for name, data in self._by_name.items()}

    @property
    def source_fingerprints(self) -> dict[str, list[str]]:
        """The fingerprints of each task's sources: equal ones give the same rows."""
        return {name: data.store.meta["made_from"]["sources"] for name, data in self._by_name.items()}

    @property
    def labels(self) -> list[str] | None:
        """Label names by id; None for numbers or data without labels. Raises UserError when tasks differ."""
        found = [data.store.meta.get("labels") for data in self._tasks]
        for name, labels in zip(self.task_names, found, strict=True):
            if labels != found[0]:
                first, how = self.task_names[0], "give all the same names in one order: preprocess.labels: [...]"
                raise UserError(f"tasks '{first}' and '{name}' cannot be mixed: their labels differ; {how}")
        return found[0]

    @property
    def unanswerable(self) -> int | None:
        """The number of questions without an answer; None for other data."""
        found = [data.store.meta.get("unanswerable") for data in self._tasks]
        known = [count for count in found if count is not None]
        return sum(known) if known else None

    def batch(self, k: int, rows: RowSelection = ALL_ROWS, more: MoreFields | None = None) -> Batch:
        """Rows `rows` (default: all) of global batch k >= 0, in order; the same bits in every process.

        `more` adds fields by the numbers of the stored rows, counted task after task as `epoch_batch` reads them.
        """
        tasks, epochs, indices = self._order.at(_numbers(k, rows, self.batch_size))
        batch = self._gather(tasks, epochs, indices)
        return batch if more is None else batch | more(self._starts[tasks] + indices)

    def iterate(
        self,
        start: int,
        stop: int,
        rows: RowSelection = ALL_ROWS,
        prefetch: int = 4,
        more: MoreFields | None = None,
        position: Callable[[int], int] = lambda k: k,
    ) -> BatchIterator:
        """Batches start..stop-1 as `batch`; background threads prefetch up to `prefetch` of them (0: none).

        position: the number in the data of the batch of a step.
        """
        return BatchIterator(lambda k: self.batch(position(k), rows, more), start, stop, prefetch)

    def epoch_batch(self, k: int, rows: RowSelection = ALL_ROWS) -> Batch:
        """Batch k < batches_per_epoch of one finite pass in stored order, task after task, with epoch 0's masks.

        Rows after the last example are padding: every weight and segment id is 0.
        """
        wanted = _numbers(k, rows, self.batch_size)
        real = wanted[wanted < self.rows_per_epoch]
        task = np.searchsorted(self._starts[1:], real, side="right")
        batch = self._gather(task, np.zeros_like(real), real - self._starts[task])
        missing = len(wanted) - len(real)
        if not missing:
            return batch
        for name, values in batch.items():
            fill = self._pad_id if name == "input_ids" else 0
            batch[name] = np.concatenate([values, np.full((missing, *values.shape[1:]), fill, values.dtype)])
        return batch

    def epoch_batches(
        self, rows: RowSelection = ALL_ROWS, prefetch: int = 2, limit: int | None = None
    ) -> BatchIterator:
        """Every example exactly once, in `batches_per_epoch` batches (at most `limit`); see `epoch_batch`."""
        stop = min(self.batches_per_epoch, limit or self.batches_per_epoch)
        return BatchIterator(lambda k: self.epoch_batch(k, rows), 0, stop, prefetch)

    def _gather(self, tasks: np.ndarray, epochs: np.ndarray, indices: np.ndarray) -> Batch:
        if len(self._tasks) == 1:
            return self._tasks[0].rows(epochs, indices)
        batch = {name: np.zeros((len(tasks), *shape), dtype) for name, (shape, dtype) in self.fields.items()}
        batch["task_ids"][:] = tasks
        for task in np.unique(tasks).tolist():
            where = np.flatnonzero(tasks == task)
            for name, values in self._tasks[task].rows(epochs[where], indices[where]).items():
                batch[name][where] = values
        return batch


def open_batches(
    config: Config,
    stage: Stage,
    tokenizer: "Tokenizer",
    *,
    base: Path,
    cache: Path,
    report: ReportFn | None = None,
    runner: Runner | None = None,
    fetch: bool = True,
    classes: ClassSpec | None = None,
    fingerprint: Callable[[Any], str] | None = None,
) -> Batches:
    """The training batches of `stage`: prepares data missing in `cache` and mixes the tasks at their rates.

    `fetch` copies rows in an object store to this machine now, not when first read. `classes` of a classification
    are by default the stage's, without names; later tasks must have the labels of the first.
    Raises UserError when a task is empty or the rows of mixed tasks differ.
    """
    workers = config.run.prepare_workers or os.cpu_count() or 1
    classes = classes or ClassSpec.of_objective(stage.objective)
    decoder_only = is_decoder_only(config)
    tasks = {}
    for name, task in config.stage_tasks(stage).items():
        store = prepare(
            task, name, tokenizer, seed=config.run.seed, base=base, cache=cache, workers=workers, report=report,
            runner=runner, classes=classes, fingerprint=fingerprint,
        )  # fmt: skip
        if names := store.meta.get("labels"):
            classes = replace(classes, names=tuple(names), required=True)
        if fetch:
            store.fetch()
        seed = mixing.task_seed(config.run.seed, stage.name, name)
        tasks[name] = make_task_data(task, store, tokenizer, seed, decoder_only)
    shares = dict.fromkeys(tasks, 1.0)
    if mixture := config.stage_mixture(stage):
        examples = {name: data.store.meta["examples"] for name, data in tasks.items()}
        shares = mixing.rates(examples, mixture, config.mixtures)
        shares = mixing.to_row_rates(shares, examples, {name: data.length for name, data in tasks.items()})
    return Batches(tasks, shares, stage.batch_size, tokenizer.pad_id)


def is_decoder_only(config: Config) -> bool:
    """Whether the model is a decoder without an encoder, so that inputs and targets share a sequence."""
    return getattr(config.model, "architecture", None) == "decoder_only"


def open_task(
    task: Task,
    name: str,
    tokenizer: "Tokenizer",
    *,
    batch_size: int,
    seed: int,
    base: Path,
    cache: Path,
    workers: int = 1,
    classes: ClassSpec | None = None,
    decoder_only: bool = False,
    report: ReportFn | None = None,
    fingerprint: Callable[[Any], str] | None = None,
) -> Batches:
    """The batches of a single task, for an evaluation: read them with `epoch_batches`.

    `classes` of a classification have the names of the checkpoint, so that ids agree.
    """
    store = prepare(
        task, name, tokenizer, seed=seed, base=base, cache=cache, workers=workers, classes=classes, report=report,
        fingerprint=fingerprint,
    )  # fmt: skip
    data = make_task_data(task, store, tokenizer, mixing.task_seed(seed, "evaluation", name), decoder_only)
    return Batches({name: data}, {name: 1.0}, batch_size, tokenizer.pad_id)


def _common_fields(tasks: dict[str, TaskData]) -> Fields:
    (first, data), *others = tasks.items()
    fields = dict(data.fields)
    for name, found in ((name, other.fields) for name, other in others):
        for field in sorted(fields.keys() | found.keys()):
            one, two = fields.get(field), found.get(field)
            if one != two:
                raise UserError(
                    f"tasks '{first}' and '{name}' cannot be mixed: {field} is {_format_field(one)} in the first and "
                    f"{_format_field(two)} in the second; give both the same preprocess"
                )
    return fields


def _format_field(field: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "missing" if field is None else f"{field[1].name}{list(field[0])}"


def _numbers(k: int, rows: RowSelection, batch_size: int) -> np.ndarray:
    """Where the rows of batch k are in the stream: int64 [n]."""
    return k * batch_size + np.arange(batch_size, dtype=np.int64)[rows]
