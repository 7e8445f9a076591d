"""Dropout with counter-based random bits."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bertjax.models.compute_options import ComputeOptions
from bertjax.parallel.sharding import shard_index


def lowbias32(h: jax.Array) -> jax.Array:
    """lowbias32 of Chris Wellons' hash-prospector: each input bit flips each output bit with probability near 1/2."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


def mix_column(row: jax.Array, column: jax.Array, seed: jax.Array) -> jax.Array:
    """Random uint32 from a row's number and a column's, which broadcast: the last step of `hash_bits`."""
    return lowbias32(lowbias32(row) ^ (column * np.uint32(0x9E3779B9) + seed))


def hash_seeds(key: jax.Array) -> jax.Array:
    """The two seeds of `hash_bits`, uint32 [2]."""
    return jax.random.bits(key, (2,), jnp.uint32)


def drop_threshold(rate: float) -> int:
    """An element is kept if its random bits are at least this."""
    return round(rate * 2**32)


def hash_bits(key: jax.Array, shape: tuple[int, ...], names: Sequence[str | None] = ("batch",)) -> jax.Array:
    """Random uint32 [*shape] from a key and each element's global coordinates: the same bits with any sharding.

    Elementwise, so that the compiler fuses it into its consumer and recomputes it in the backward pass. `names` are
    the logical axes of `shape`, by which a shard inside `jax.shard_map` knows its global coordinates.
    """
    seeds = hash_seeds(key)
    names = (*names, *(None,) * (len(shape) - len(names)))

    def coordinate(shape: tuple[int, ...], axis: int) -> tuple[int, jax.Array]:
        parts, part = shard_index(names[axis])
        place = lax.broadcasted_iota(jnp.uint32, shape, axis)
        if parts > 1:
            place = place + jnp.asarray(part, jnp.uint32) * jnp.uint32(shape[axis])
        return parts * shape[axis], place

    row = jnp.zeros(shape[:-1] + (1,), jnp.uint32) + seeds[0]
    for axis in range(len(shape) - 1):
        count, place = coordinate(row.shape, axis)
        row = row * jnp.uint32(count) + place
    _, column = coordinate(shape, len(shape) - 1)
    return mix_column(row, column, seeds[1])


def dropout(
    x: jax.Array, rate: float, key: jax.Array | None, compute: ComputeOptions, *, broadcast_length: bool = False,
    names: Sequence[str | None] = ("batch", "sequence"),
) -> jax.Array:  # fmt: skip
    """Inverted dropout (arXiv 1207.0580); the identity without a key. `names`: logical axes, as in `hash_bits`.

    broadcast_length: one mask for all positions (the axis before the last), as T5 (t5x network.py broadcast_dims).
    """
    if key is None or rate == 0.0:
        return x
    shape = (*x.shape[:-2], 1, x.shape[-1]) if broadcast_length else x.shape
    if broadcast_length:  # every shard has the same mask
        names = [None if axis == x.ndim - 2 else name for axis, name in enumerate(names)]
    if compute.dropout_rng == "threefry":
        keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    else:
        keep = hash_bits(key, shape, names) >= jnp.uint32(drop_threshold(rate))
    return jnp.where(keep, x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)
