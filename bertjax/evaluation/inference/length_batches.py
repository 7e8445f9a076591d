"""Run a model on rows of many lengths: sorted by length, padded to a few widths; a program for each shape."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.evaluation.inference.token_rows import TokenRow
from bertjax.parallel.batches import local_rows, place
from bertjax.progress import reporter
from bertjax.training.monitor import preemption
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.state import Params

MIN_WIDTH = 16
MAX_ROWS = 64  # of a batch, unless a number is given
CPU_TOKENS = 512  # of a batch on a CPU: larger arrays leave its caches, and each token takes up to twice as long
MAX_TOKEN_PAIRS = 8 * 2048**2  # of a batch: attention needs this many numbers per head
Forward = Callable[[Any, Mapping[str, jax.Array]], Any]  # (module, batch) -> arrays with an axis B in front


class LengthBatches:
    """A function of the model, applied to token rows of any length in batches of at most `batch_size` rows.

    Without `batch_size` a batch has up to 64 rows, on a CPU up to 512 tokens.

    A row's result does not depend on the rows beside it, up to rounding: padding is masked, and rows are independent.
    Widths are 16, 32, 48, 64, 96, 128, 192, 256, ...; numbers of rows are powers of two below the most, so that few
    programs are compiled. Every process makes the same calls.
    """

    def __init__(self, program: TrainProgram, forward: Forward, *, batch_size: int | None, pad_id: int) -> None:
        self.program, self.batch_size, self.pad_id = program, batch_size, pad_id

        def run(params: Params, batch: dict[str, jax.Array]) -> Any:
            return forward(program.build_model(params), batch)

        replicated = NamedSharding(program.mesh, P())
        self._jitted = MeshJit(jax.jit(run, out_shardings=replicated), program.mesh, program.rules)

    def __call__(self, params: Params, rows: Sequence[TokenRow]) -> list[Any]:
        """-> the result of each row in order; an axis of the padded width keeps its padding."""
        found: dict[int, Any] = {}
        sharding = self.program.batch_sharding()
        with reporter.ensure_task("predicting", len(rows), "texts"):
            for picked, batch in self._batches(rows):
                preemption.check()
                size = len(batch["input_ids"])
                ours = local_rows(sharding, size)
                put = place({name: x[ours] for name, x in batch.items()}, sharding, size)
                out = jax.tree.map(np.asarray, jax.device_get(self._jitted(params, put)))
                found |= {index: jax.tree.map(lambda x, i=i: x[i], out) for i, index in enumerate(picked)}
                reporter.advance(len(picked), "texts")
        return [found[i] for i in range(len(rows))]

    def _batches(self, rows: Sequence[TokenRow]) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """(numbers of the rows, their padded batch), shortest rows first."""
        lengths = np.array([len(row) for row in rows], np.int64)
        order = np.argsort(lengths, kind="stable")
        while len(order):
            size = self._rows(lengths[order])
            picked, order = order[:size].tolist(), order[size:]
            yield picked, self._pad([rows[i] for i in picked], size)

    def _rows(self, lengths: np.ndarray) -> int:
        """Rows of the next batch, from lengths in ascending order; the last batch is filled up to a power of 2."""
        size = self.batch_size or MAX_ROWS
        on_cpu = self.program.compute.platform == "cpu"
        most_tokens = CPU_TOKENS if self.batch_size is None and on_cpu else MAX_TOKEN_PAIRS
        while size > 1:
            width = padded_width(int(lengths[:size].max()), self._max_length)
            if size * width <= most_tokens and size * width**2 <= MAX_TOKEN_PAIRS:
                break
            size //= 2
        if len(lengths) < size:
            size = min(size, 1 << (len(lengths) - 1).bit_length())
        return round_up_batch(size, self.program)

    @property
    def _max_length(self) -> int | None:
        return self.program.model.max_length

    def _pad(self, rows: list[TokenRow], size: int) -> dict[str, np.ndarray]:
        """int32 [size, width] of each field; rows after the last one repeat it."""
        width = padded_width(max(map(len, rows)), self._max_length)
        last = np.minimum(np.arange(size), len(rows) - 1)
        columns: dict[str, list[np.ndarray]] = {}
        for row in rows:
            for name, values in row.fields().items():
                fill = self.pad_id if name == "input_ids" else 0
                columns.setdefault(name, []).append(_padded(values, width, fill))
        for name in rows[0].extra or ():
            given = [np.asarray((row.extra or {})[name], np.int32) for row in rows]
            most = 1 << (max(map(len, given)) - 1).bit_length()
            columns[name] = [_padded(values, most, 0) for values in given]
        return {name: np.stack(values)[last] for name, values in columns.items()}


def padded_width(length: int, most: int | None = None) -> int:
    """The width that rows of this length are padded to, at most `most`: two to four widths per doubling."""
    step = max(MIN_WIDTH, 1 << (max(length, 1) - 1).bit_length() >> 2)
    width = -(-max(length, 1) // step) * step
    return width if most is None else min(width, max(most, length))


def _padded(values: np.ndarray, width: int, fill: int) -> np.ndarray:
    return np.concatenate([values, np.full(width - len(values), fill, np.int32)])
