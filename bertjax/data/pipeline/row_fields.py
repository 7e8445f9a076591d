"""Names, shapes and types of the batches of a stage or an evaluation, computed by the data code without data."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from bertjax.config.schema.data import Task
from bertjax.config.schema.run import Config, Stage
from bertjax.data.pipeline.loader import Batches, is_decoder_only
from bertjax.data.pipeline.task_rows import Fields, TaskData, make_task_data
from bertjax.data.preprocess.registry import record_of
from bertjax.data.sources.class_names import ClassSpec
from bertjax.data.store.row_format import field_list, packed_dtype
from bertjax.errors import UserError


@dataclass(frozen=True)
class EmptyStore:
    """A store of rows of this type, never read; its length is a placeholder."""

    dtype: np.dtype
    meta: dict[str, Any]

    def __len__(self) -> int:
        return 1

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.empty((len(indices), *shape), kind) for name, kind, shape in field_list(self.dtype)}


def dummy_tokenizer(config: Config) -> Any:
    """Placeholder ids for masking, denoising and decoding, in a vocabulary of the model's size."""
    size = config.model.vocab_size
    found: dict[str, Any] = {"vocab_size": size, "pad_id": 0, "cls_id": 1, "sep_id": 2, "mask_id": 3, "sha256": ""}
    found["is_continuation"] = np.zeros(size, bool)
    if config.model.tokenizer == "sentencepiece":
        sentinels = config.tokenizer.extra_ids
        found |= {"eos_id": 1, "unk_id": -1, "extra_ids": sentinels, "sentinel_id": lambda number: size - 1 - number}
        found["encode_batch"] = lambda texts: [[2]] * len(texts)  # of prefixes, on which no shape depends
    return SimpleNamespace(**found)


def stage_fields(config: Config, stage: Stage) -> Fields:
    """{name: (shape, dtype)} of one row of the stage's batches.

    Raises UserError where a section does not fit the model's vocabulary, or rows of mixed tasks differ.
    """
    classes = ClassSpec.of_objective(stage.objective)
    tasks = {name: _task_data(config, task, classes) for name, task in config.stage_tasks(stage).items()}
    return Batches(tasks, dict.fromkeys(tasks, 1.0), stage.batch_size).fields


def find_mixing_problem(config: Config, stage: Stage) -> str | None:
    """Why the rows of a stage's tasks cannot be in one batch; None if they can, or if only a tokenizer could tell."""
    try:
        classes = ClassSpec.of_objective(stage.objective)
        tasks = {name: _task_data(config, task, classes) for name, task in config.stage_tasks(stage).items()}
    except UserError:  # its real tokenizer may have the ids that are missing
        return None
    try:
        Batches(tasks, dict.fromkeys(tasks, 1.0), stage.batch_size)
    except UserError as error:
        return str(error)
    return None


def task_fields(config: Config, task: Task, classes: ClassSpec | None = None) -> Fields:
    """The same for the task of an evaluation; `classes` of a classification."""
    return _task_data(config, task, classes or ClassSpec()).fields


def _task_data(config: Config, task: Task, classes: ClassSpec) -> TaskData:
    tokenizer = dummy_tokenizer(config)
    rows: Any = EmptyStore(stored_dtype(task, tokenizer, classes), {})
    return make_task_data(task, rows, tokenizer, 0, is_decoder_only(config))


def stored_dtype(task: Task, tokenizer: Any, classes: ClassSpec) -> np.dtype:
    """The rows that `prepare` stores for this task; `classes` decide the type of their labels."""
    options = task.preprocess
    kind = record_of(options)
    masker = kind.masker(options, tokenizer, 0)
    dtype = kind.dtype(options, classes)
    if getattr(options, "pack", False):
        dtype = packed_dtype(dtype, options.max_segments)
    return masker.with_fields(dtype) if masker else dtype


def tokens_per_row(fields: Fields) -> int:
    """Tokens of a row, padding included: of its inputs and of its targets."""
    return sum(shape[0] for name, (shape, _) in fields.items() if name in ("input_ids", "target_ids"))
