"""Rows of a prepared task by (epoch, index), as a training step reads them: masked or corrupted at load time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertjax.config.schema.data import Task
from bertjax.data.preprocess.decoder_only import to_decoder_only_rows
from bertjax.data.preprocess.registry import Transform, record_of
from bertjax.data.store.reader import Store

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer

Fields = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class TaskData:
    """Rows of one task."""

    store: Store
    transform: Transform | None  # masks or corrupts rows by (seed, epoch, index), if the kind does so at load time
    seed: int
    decoder_only: bool = False  # whether inputs and targets are joined for a decoder without an encoder

    @property
    def length(self) -> int:
        """Rows in an epoch."""
        return len(self.store)

    @property
    def fields(self) -> Fields:
        """Name -> (shape, dtype) of every array of one row; a batch has an axis B in front."""
        return {name: (values.shape[1:], values.dtype) for name, values in self.rows([], []).items()}

    def rows(self, epochs: Sequence[int] | np.ndarray, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Rows [n] by `epochs` [n] and `indices` [n]: a dict of arrays [n, ...], in one read and one transform."""
        epochs, indices = np.asarray(epochs, np.int64), np.asarray(indices, np.int64)
        rows = self.store.columns(indices)
        if self.transform:
            rows = self.transform(rows, seed=self.seed, epoch=epochs, indices=indices)
        return to_decoder_only_rows(rows) if self.decoder_only else rows


def make_task_data(task: Task, store: Store, tokenizer: "Tokenizer", seed: int, decoder_only: bool = False) -> TaskData:
    """The rows of `task` from its `store`; only `seed` decides the noise of dynamic masking and of denoising.

    Raises UserError when the preprocess section does not fit the tokenizer.
    """
    kind = record_of(task.preprocess)
    transform = kind.transform(task.preprocess, tokenizer)
    return TaskData(store, transform, seed, decoder_only and kind.layout == "encoder_decoder")
