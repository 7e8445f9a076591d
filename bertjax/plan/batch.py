"""The batches a stage or an evaluation will read, from the data code itself and without any data."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bertjax.config.schema.data import BertPairs, Classify, SpanQa, Task, TextToText
from bertjax.config.schema.run import Config, Stage
from bertjax.data.pipeline.loader import Batches, is_decoder_only
from bertjax.data.pipeline.task_rows import Fields, TaskData, make_task_data
from bertjax.data.preprocess import bert_pairs, masking, span_qa, text_to_text
from bertjax.data.preprocess.denoising.chunks import chunk_dtype
from bertjax.data.preprocess.denoising.rules import tokens_length
from bertjax.data.preprocess.masking import MaskingRules
from bertjax.data.store import row_format


@dataclass(frozen=True)
class EmptyStore:
    """A store of rows of this type of which none is read; its length only says that there are some."""

    dtype: np.dtype
    meta: dict[str, Any]

    def __len__(self) -> int:
        return 1

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return np.empty(len(indices), self.dtype)


def dummy_tokenizer(config: Config) -> Any:
    """What masking, denoising and decoding ask of a tokenizer as large as the model's table; its ids mean nothing."""
    size = config.model.vocab_size
    found: dict[str, Any] = {"vocab_size": size, "pad_id": 0, "cls_id": 1, "sep_id": 2, "mask_id": 3, "sha256": ""}
    found["is_continuation"] = np.zeros(size, bool)
    if config.tokenizer.kind == "sentencepiece":
        sentinels = config.tokenizer.extra_ids
        found |= {"eos_id": 1, "extra_ids": sentinels, "sentinel_id": lambda number: size - 1 - number}
    return SimpleNamespace(**found)


def stage_fields(config: Config, stage: Stage) -> Fields:
    """{name: (shape, dtype)} of one row of the stage's batches.

    Raises UserError where a section does not fit the model's vocabulary, or mixed tasks have different rows.
    """
    regression = stage.objective.kind == "classification" and stage.objective.num_labels == 1
    tasks = {name: _task_data(config, task, regression) for name, task in config.stage_tasks(stage).items()}
    return Batches(tasks, dict.fromkeys(tasks, 1.0), stage.batch_size).fields


def task_fields(config: Config, task: Task, regression: bool = False) -> Fields:
    """The same for the task of an evaluation."""
    return _task_data(config, task, regression).fields


def _task_data(config: Config, task: Task, regression: bool) -> TaskData:
    tokenizer = dummy_tokenizer(config)
    rows: Any = EmptyStore(stored_dtype(task, tokenizer, regression), {})
    return make_task_data(task, rows, tokenizer, 0, is_decoder_only(config))


def stored_dtype(task: Task, tokenizer: Any, regression: bool = False) -> np.dtype:
    """Of the rows that `prepare` keeps of this task; labels are fractions for `regression` and numbers otherwise."""
    options = task.preprocess
    masks = None
    if isinstance(options, BertPairs):
        dtype = bert_pairs.pairs_dtype(options)
        masks = MaskingRules.from_options(options, tokenizer) if options.masking == "static" else None
    elif isinstance(options, SpanQa):
        dtype = span_qa.row_dtype(options.sequence_length)
    elif isinstance(options, Classify):
        kind = "f4" if regression else "i4"
        dtype = row_format.row_dtype(options.sequence_length, cls_positions="i4", labels=kind, label_weights="f4")
    elif isinstance(options, TextToText):
        dtype = text_to_text.row_dtype(options.sequence_length, options.target_length)
    else:
        return chunk_dtype(tokens_length(options))
    segments = options.max_segments if getattr(options, "pack", False) else 1
    return masking.with_mask_fields(row_format.packed_dtype(dtype, segments), masks)


def tokens_per_row(fields: Fields) -> int:
    """Tokens of a row, padding counted: of its inputs and of its targets."""
    return sum(shape[0] for name, (shape, _) in fields.items() if name in ("input_ids", "target_ids"))


NO_DATA_DIR = Path()  # for what wants a folder of data and will not open it
