"""Dropout with counter-based random bits."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bertjax.models.compute_options import ComputeOptions
from bertjax.parallel.sharding import shard_index


def _lowbias32(h: jax.Array) -> jax.Array:
    """lowbias32 (Chris Wellons' hash-prospector): every input bit flips each output bit with probability near 1/2."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


def hash_bits(key: jax.Array, shape: tuple[int, ...], names: Sequence[str | None] = ("batch",)) -> jax.Array:
    """Random uint32 [*shape] from a key and the element's global coordinates: the same bits under any sharding.

    Purely elementwise, so the compiler fuses it into its consumer and recomputes it in the backward pass. `names` are
    the logical axes, None for those left out: inside `jax.shard_map` they tell which part of the whole this is.
    """
    seeds = jax.random.bits(key, (2,), jnp.uint32)
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
    return _lowbias32(_lowbias32(row) ^ (column * jnp.uint32(0x9E3779B9) + seeds[1]))


def dropout(
    x: jax.Array, rate: float, key: jax.Array | None, compute: ComputeOptions, *, broadcast_length: bool = False,
    names: Sequence[str | None] = ("batch", "sequence"),
) -> jax.Array:  # fmt: skip
    """Inverted dropout (arXiv 1207.0580); no key means evaluation. `names` are logical axes, as of `hash_bits`.

    `broadcast_length` draws one mask for the whole next to last axis, as T5 does (t5x network.py: broadcast_dims=(-2,)).
    """
    if key is None or rate == 0.0:
        return x
    shape = (*x.shape[:-2], 1, x.shape[-1]) if broadcast_length else x.shape
    if broadcast_length:  # the one mask is that of every part
        names = [None if axis == x.ndim - 2 else name for axis, name in enumerate(names)]
    if compute.dropout_rng == "threefry":
        keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    else:
        keep = hash_bits(key, shape, names) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)
