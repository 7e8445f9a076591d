"""Evaluation batches: sizes rounded to the mesh, and placement on devices."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bertjax.data.pipeline.loader import Batches
from bertjax.parallel.batches import local_rows, place
from bertjax.progress import reporter
from bertjax.training.monitor import preemption
from bertjax.training.program import TrainProgram


def round_up_batch(batch_size: int, program: TrainProgram) -> int:
    """`batch_size` rounded up to a multiple of the shards a batch is split over."""
    shards = program.batch_shards
    return -(-batch_size // shards) * shards


def local_batch_rows(program: TrainProgram, batches: Batches) -> slice | np.ndarray:
    return local_rows(program.batch_sharding(), batches.batch_size)


def device_batches(source: Any, program: TrainProgram, batches: Batches) -> Iterator[dict[str, jax.Array]]:
    with source:
        for batch in reporter.track(source, source.total, "batches"):
            preemption.check()
            yield place(batch, program.batch_sharding(), batches.batch_size)
