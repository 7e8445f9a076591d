"""Place the batches of a stage on the devices one step ahead."""

import time
from collections.abc import Iterator

import jax
from jax.sharding import NamedSharding

from bertjax.data.pipeline.loader import Batch
from bertjax.parallel.batches import place
from bertjax.training.monitor.meter import non_padding_tokens


def prefetch_to_device(
    source: Iterator[Batch], sharding: NamedSharding, batch_size: int
) -> Iterator[tuple[dict[str, jax.Array], int, float]]:
    """Place batches one step ahead -> (batch on devices, its non-padding tokens, seconds waited since the last)."""
    ahead, waited = None, 0.0
    while True:
        began = time.perf_counter()
        batch = next(source, None)
        waited += time.perf_counter() - began
        upcoming = None
        if batch is not None:
            tokens = non_padding_tokens(batch) * jax.process_count()
            upcoming = place(batch, sharding, batch_size), tokens
        if ahead is not None:
            yield *ahead, waited
            waited = 0.0
        if upcoming is None:
            return
        ahead = upcoming
