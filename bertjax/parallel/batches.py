"""Rows of a global batch on this process, and their placement on devices."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from bertjax.errors import UserError
from bertjax.parallel.mesh_shape import batch_shards


def local_rows(sharding: NamedSharding, batch_size: int) -> slice | np.ndarray:
    """The rows of a global batch on this process's devices, in order: a slice, or int [b] if not contiguous.

    (A host's chips may be a block of the torus whose rings the mesh follows.) Raises UserError if they do not divide.
    """
    shards = batch_shards(sharding.mesh.shape, sharding.spec[0])
    if batch_size % shards:
        raise UserError(f"batch_size: {batch_size} rows do not divide over {shards} devices; make it a multiple")
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def place(batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """This process's rows [b, ...] -> global arrays [B, ...] on the devices."""
    make = jax.make_array_from_process_local_data
    return {name: make(sharding, x, (batch_size, *x.shape[1:])) for name, x in batch.items()}
