"""A prepared task as a training step sees it: rows by (epoch, index), masked anew in every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertjax.config.data_schema import BertPairs, Task
from bertjax.data.masking import MaskingRules, mask_rows
from bertjax.data.store import Store

if TYPE_CHECKING:
    from bertjax.data.tokenizers import Tokenizer

Fields = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class TaskData:
    """Rows of one task. `rules` is set when masks are drawn at load time, from (seed, epoch, index)."""

    store: Store
    rules: MaskingRules | None
    seed: int

    @property
    def length(self) -> int:
        """Rows in an epoch."""
        return len(self.store)

    @property
    def fields(self) -> Fields:
        """Name -> (shape, dtype) of every array of one row; a batch has an axis B in front."""
        stored = self.store.dtype
        fields: Fields = {name: (stored[name].shape, stored[name].base) for name in stored.names or ()}
        if self.rules is not None:
            shape = (self.rules.row_predictions,)
            fields["masked_positions"] = fields["masked_ids"] = (shape, np.dtype(np.int32))
            fields["masked_weights"] = (shape, np.dtype(np.float32))
        return fields

    def row(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        """One row, without a batch axis."""
        return {name: values[0] for name, values in self.rows([epoch], [index]).items()}

    def rows(self, epochs: Sequence[int] | np.ndarray, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Rows [n] by `epochs` [n] and `indices` [n]: a dict of arrays [n, ...], one read and one masking call."""
        epochs, indices = np.asarray(epochs, np.int64), np.asarray(indices, np.int64)
        stored = self.store.rows(indices)
        rows = {name: np.ascontiguousarray(stored[name]) for name in stored.dtype.names or ()}
        if self.rules is None:
            return rows
        masked: dict[str, np.ndarray] = {}
        # Two epochs at most, except where a short task is repeated often. No rows still have their fields.
        for epoch in np.unique(epochs).tolist() or [0]:
            where = np.flatnonzero(epochs == epoch)
            part = {name: rows[name][where] for name in ("input_ids", "segment_ids")}
            drawn = mask_rows(part, self.rules, seed=self.seed, epoch=epoch, indices=indices[where])
            for name, values in drawn.items():
                masked.setdefault(name, np.empty((len(indices), *values.shape[1:]), values.dtype))[where] = values
        return rows | masked


def dataset(task: Task, store: Store, tokenizer: "Tokenizer", seed: int) -> TaskData:
    """The rows of `task` out of its `store`; `seed` alone decides the masks of dynamic masking."""
    dynamic = isinstance(task.preprocess, BertPairs) and task.preprocess.masking == "dynamic"
    return TaskData(store, MaskingRules.of(task.preprocess, tokenizer) if dynamic else None, seed)
