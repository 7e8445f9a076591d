"""Compute digests of arrays on the devices that hold them.

The digest of an array is sum_i mix(word_i) * (mix(i) | 1) modulo 2^32 over its 32-bit words, i being the word's index.
It does not depend on the sharding. `mix` is a bijection and the factor is odd, so a change of a single word always
changes the digest; other damage goes unnoticed with probability about 2^-32.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


@dataclass(frozen=True)
class ArrayDigest:
    """The digest of one array, and how many of its elements are NaN or infinite (0 for integers)."""

    shape: tuple[int, ...]
    dtype: str
    digest: int
    nonfinite: int


def is_prng_key(leaf: Any) -> bool:
    """Whether an array, or abstract array, holds typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def compute_digests(leaves: Mapping[str, Any]) -> dict[str, ArrayDigest]:
    """Digests of {path: array} for any real dtype and typed PRNG keys; a collective, with equal results everywhere.

    Each combination of shape, dtype and sharding is compiled once.
    """
    pending = [_measure(jax.random.key_data(leaf) if is_prng_key(leaf) else leaf) for leaf in leaves.values()]
    for sums in pending:
        sums.copy_to_host_async()
    totals = np.asarray([_local_sums(sums) for sums in pending], np.uint32).reshape(-1, 2)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        totals = np.sum(multihost_utils.process_allgather(totals), axis=0, dtype=np.uint32)
    return {
        path: ArrayDigest(tuple(leaf.shape), str(leaf.dtype), int(digest), int(nonfinite))
        for (path, leaf), (digest, nonfinite) in zip(leaves.items(), totals, strict=True)
    }


def find_differing_replicas(leaves: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    """Compare the digests of copies of the same block on different devices; a collective, with equal results.

    -> [(path, ids of the devices whose copy is not the most frequent one)] of the arrays with differing copies.
    """
    pending = [_measure(jax.random.key_data(leaf) if is_prng_key(leaf) else leaf) for leaf in leaves.values()]
    for sums in pending:
        sums.copy_to_host_async()
    devices = jax.local_devices()
    place = {device.id: row for row, device in enumerate(devices)}
    found = np.zeros((len(devices), len(pending), 2), np.int64)  # block (-1: none here) and digest by device and array
    found[:, :, 0] = -1
    for column, sums in enumerate(pending):
        for shard in sums.addressable_shards:
            block = shard.index[0].start or 0
            found[place[shard.device.id], column] = block, int(np.asarray(shard.data)[0, 0])
    ids = np.asarray([device.id for device in devices])
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        ids, found = multihost_utils.process_allgather((ids, found.astype(np.uint32)), tiled=True)
    return _differing(list(leaves), ids.tolist(), found.astype(np.uint32))


def _differing(paths: list[str], ids: list[int], found: np.ndarray) -> list[tuple[str, list[int]]]:
    """found: uint32 [devices, arrays, 2], the block and its digest."""
    differing = []
    for column, path in enumerate(paths):
        odd: list[int] = []
        blocks, digests = found[:, column, 0], found[:, column, 1]
        for block in np.unique(blocks[blocks != np.uint32(2**32 - 1)]):
            here = np.flatnonzero(blocks == block)
            values, counts = np.unique(digests[here], return_counts=True)
            usual = values[counts.argmax()]
            odd += [ids[device] for device in here if digests[device] != usual]
        if odd:
            differing.append((path, odd))
    return differing


def _local_sums(sums: jax.Array) -> np.ndarray:
    """This process's share of an array's two sums: replicas count once, process-local arrays only on process 0."""
    if sums.is_fully_addressable and jax.process_index() > 0:
        return np.zeros(2, np.uint32)
    blocks = [np.asarray(shard.data) for shard in sums.addressable_shards if shard.replica_id == 0]
    return np.concatenate([np.zeros((1, 2), np.uint32), *blocks]).sum(axis=0, dtype=np.uint32)


def _measure(x: Any) -> jax.Array:
    """The digest and the number of non-finite elements of each block of x, uint32 [blocks, 2]."""
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.num_devices > 1:
        return _measure_shards(sharding.mesh, sharding.spec)(x)
    return _measure_single(x)


@jax.jit
def _measure_single(x: jax.Array) -> jax.Array:
    return _measure_block(x, x.shape, (0,) * x.ndim)


@functools.cache
def _measure_shards(mesh: jax.sharding.Mesh, spec: P) -> Callable[[jax.Array], jax.Array]:
    """A function by which each device digests its own block; a collective reduction would gather the array first."""
    axes_of = [() if names is None else (names,) if isinstance(names, str) else tuple(names) for names in spec]
    used = tuple(axis for axes in axes_of for axis in axes)

    def local(x: jax.Array) -> jax.Array:
        axes = axes_of + [()] * (x.ndim - len(axes_of))
        shape = tuple(n * math.prod(mesh.shape[a] for a in names) for n, names in zip(x.shape, axes, strict=True))
        start = tuple(lax.axis_index(names) * n if names else 0 for n, names in zip(x.shape, axes, strict=True))
        return _measure_block(x, shape, start)

    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=P(used) if used else P()))


def _measure_block(x: jax.Array, shape: tuple[int, ...], start: tuple[Any, ...]) -> jax.Array:
    """The digest and number of non-finite elements of a block of an array of the given shape, uint32 [1, 2]."""
    words = _words(x)
    inner = words.shape[x.ndim :]  # more than one word an element
    place = _places(words.shape, (*shape, *inner), (*start, *(0,) * len(inner)))
    terms = _mix(words + jnp.uint32(0x9E3779B9)) * (_mix(place) | jnp.uint32(1))
    nonfinite_mask = jnp.zeros(words.shape, jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.floating):
        nonfinite_mask += (~jnp.isfinite(x)).astype(jnp.uint32).reshape(*x.shape, *(1,) * len(inner))
    # Both sums in one reduction: on a CPU three to six times as fast as two reductions.
    digest, nonfinite = lax.reduce(
        (terms, nonfinite_mask),
        (jnp.uint32(0), jnp.uint32(0)),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        range(words.ndim),
    )
    return jnp.stack([digest, nonfinite // jnp.uint32(max(math.prod(inner), 1))])[None]


def _words(x: jax.Array) -> jax.Array:
    """The bits of x as uint32: narrow elements are widened, 64-bit ones become two words on a last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = jax.dtypes.itemsize_bits(x.dtype)
    if bits >= 32:
        return lax.bitcast_convert_type(x, jnp.uint32)
    if bits < 8:  # int4 and similar: the value determines the bits
        return x.astype(jnp.int8).astype(jnp.uint32)
    return lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)


def _places(block: tuple[int, ...], shape: tuple[int, ...], start: tuple[Any, ...]) -> jax.Array:
    """Row-major indices, modulo 2^32, of a block's elements in an array of the given shape."""
    place = jnp.zeros(block, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(block))):
        along = lax.broadcasted_iota(jnp.uint32, block, axis) + jnp.asarray(start[axis], jnp.uint32)
        place += along * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return place


def _mix(x: jax.Array) -> jax.Array:
    """The 32-bit finalizer of MurmurHash3 (Appleby): a bijection that spreads every bit over the word."""
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
