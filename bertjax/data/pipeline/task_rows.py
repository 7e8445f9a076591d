"""A prepared task as a training step sees it: rows by (epoch, index), masked or corrupted anew in every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertjax.config.schema.data import BertPairs, CausalLm, Task, TextToText
from bertjax.data.preprocess.decoder_only import to_decoder_only_rows
from bertjax.data.preprocess.denoising.batch import denoise_rows
from bertjax.data.preprocess.denoising.rules import Denoising, DenoisingRules
from bertjax.data.preprocess.masking import MaskingRules, mask_rows
from bertjax.data.store.reader import Store

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer

Fields = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class TaskData:
    """Rows of one task. `rules` is set when masks or corruption are drawn at load time, from (seed, epoch, index);
    `decoder_only` when inputs and targets are to stand side by side, for a decoder alone."""

    store: Store
    rules: MaskingRules | DenoisingRules | None
    seed: int
    decoder_only: bool = False

    @property
    def length(self) -> int:
        """Rows in an epoch."""
        return len(self.store)

    @property
    def fields(self) -> Fields:
        """Name -> (shape, dtype) of every array of one row; a batch has an axis B in front."""
        return {name: (values.shape[1:], values.dtype) for name, values in self.rows([], []).items()}

    def row(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        """One row, without a batch axis."""
        return {name: values[0] for name, values in self.rows([epoch], [index]).items()}

    def rows(self, epochs: Sequence[int] | np.ndarray, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Rows [n] by `epochs` [n] and `indices` [n]: a dict of arrays [n, ...], one read, one call that
        masks or corrupts."""
        epochs, indices = np.asarray(epochs, np.int64), np.asarray(indices, np.int64)
        stored = self.store.rows(indices)
        if isinstance(self.rules, DenoisingRules):
            rows = denoise_rows(stored, self.rules, seed=self.seed, epoch=epochs, indices=indices)
        else:
            rows = {name: np.ascontiguousarray(stored[name]) for name in stored.dtype.names or ()}
        if isinstance(self.rules, MaskingRules):
            rows |= self._masked(self.rules, rows, epochs, indices)
        return to_decoder_only_rows(rows) if self.decoder_only else rows

    def _masked(
        self, rules: MaskingRules, rows: dict[str, np.ndarray], epochs: np.ndarray, indices: np.ndarray
    ) -> dict[str, np.ndarray]:
        masked: dict[str, np.ndarray] = {}
        # Two epochs at most, except where a short task is repeated often. No rows still have their fields.
        for epoch in np.unique(epochs).tolist() or [0]:
            where = np.flatnonzero(epochs == epoch)
            part = {name: rows[name][where] for name in ("input_ids", "segment_ids")}
            drawn = mask_rows(part, rules, seed=self.seed, epoch=epoch, indices=indices[where])
            for name, values in drawn.items():
                masked.setdefault(name, np.empty((len(indices), *values.shape[1:]), values.dtype))[where] = values
        return masked


def make_task_data(task: Task, store: Store, tokenizer: "Tokenizer", seed: int, decoder_only: bool = False) -> TaskData:
    """The rows of `task` out of its `store`; `seed` alone decides the masks of dynamic masking and the corruption of
    text. `decoder_only`: the rows of an encoder and a decoder become those of a decoder alone.

    Raises UserError when the preprocess section does not fit the tokenizer.
    """
    options = task.preprocess
    rules: MaskingRules | DenoisingRules | None = None
    if isinstance(options, BertPairs) and options.masking == "dynamic":
        rules = MaskingRules.from_options(options, tokenizer)
    elif isinstance(options, Denoising):
        rules = DenoisingRules.from_options(options, tokenizer)  # type: ignore[arg-type]
    both = isinstance(options, TextToText) or isinstance(rules, DenoisingRules)
    return TaskData(store, rules, seed, decoder_only and both and not isinstance(options, CausalLm))
