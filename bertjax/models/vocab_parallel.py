"""Embedding look-up and top-k with sharded rows and vocabulary, without gathering tables or logits."""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from bertjax.parallel.sharding import all_gather_fsdp, auto_axes, divisible_spec, sharded_axes, with_logical_constraint


def embedding_lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of the word embeddings [V, D] at int ids [B, S] -> [B, S, D], in the table's dtype.

    With V sharded, each device reads its rows and the results are summed (reduce-scattered to sharded positions).
    """
    table = all_gather_fsdp(table, "vocab", "embed")  # a look-up in a table sharded along D would replicate the table
    pieces, parts = sharded_axes("sequence", ids.shape[1]), sharded_axes("vocab", table.shape[0])
    if not pieces:
        return jnp.take(table, ids, axis=0)
    if pieces != parts:  # every device reads all rows: the gradient needs no sum then
        return with_logical_constraint(jnp.take(table, ids, axis=0), "batch", None, None)

    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        places = ids - lax.axis_index(parts) * len(table)
        here = (places >= 0) & (places < len(table))
        found = jnp.where(here[..., None], jnp.take(table, places, axis=0, mode="clip"), 0)
        return lax.psum_scatter(found, parts, scatter_dimension=1, tiled=True)

    return _shard_map_lookup(local, table, P(parts, None), ids, ("batch", None))


def replicated_lookup(read: Callable[[jax.Array, jax.Array], jax.Array], table: jax.Array, ids: jax.Array) -> jax.Array:
    """read(table [N, D], int ids [B, S]) -> [B, S, D] for a small, replicated table.

    With sharded positions, each device reads its own, and the gradients of the table are summed.
    """
    if not sharded_axes("sequence", ids.shape[1]):
        return read(table, ids)
    return _shard_map_lookup(read, table, P(None, None), ids, ("batch", "sequence"))


def _shard_map_lookup(
    local: Callable[[jax.Array, jax.Array], jax.Array], table: jax.Array, table_spec: P, ids: jax.Array,
    names: tuple[str | None, ...],
) -> jax.Array:  # fmt: skip
    """local(shard of the table, ids) on every device, with position-sharded results."""
    mesh = jax.sharding.get_abstract_mesh()
    rows, out = divisible_spec(mesh, names, ids.shape), divisible_spec(mesh, ("batch", "sequence"), ids.shape)
    axes, specs = set(auto_axes(mesh)), (table_spec, rows)
    run = jax.shard_map(local, in_specs=specs, out_specs=P(*out, None), axis_names=axes, check_vma=False)
    return run(table, ids)


BLOCK, FEW_BLOCKS = 128, 4  # the search by blocks pays from FEW_BLOCKS * k blocks on


def top_k(x: jax.Array, k: int, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """lax.top_k of [B, ..., N] -> (values, int32 indices), each [B, ..., k]; of equal values the lowest index first.

    `axis_name` is the logical name of the last axis, `vocab` for logits. The partitioner would gather all rows; here
    each device searches its rows and its shard of the last axis, and then the candidates of all shards.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _local_top_k(x, k)
    spec = divisible_spec(mesh, ("batch", *(None,) * (x.ndim - 2), axis_name), x.shape)
    split = tuple(jax.tree.leaves(spec[-1]))
    found = P(*spec[:-1], None)

    def local(part: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, index = _local_top_k(part, min(k, part.shape[-1]))
        if prod(mesh.shape[axis] for axis in split) == 1:
            return values, index
        index = index.astype(jnp.int32) + lax.axis_index(split) * part.shape[-1]
        values, index = (lax.all_gather(a, split, axis=a.ndim - 1, tiled=True) for a in (values, index))
        values, best = lax.top_k(values, k)  # shards are in order: the lowest index is still first
        return values, jnp.take_along_axis(index, best, axis=-1)

    axes = set(auto_axes(mesh))
    return jax.shard_map(local, in_specs=spec, out_specs=(found, found), axis_names=axes, check_vma=False)(x)


def _local_top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    if x.shape[-1] < FEW_BLOCKS * k * BLOCK:
        values, index = lax.top_k(x, k)
        return values, index
    return lax.platform_dependent(x, cpu=lambda x: _top_k_by_blocks(x, k), default=lambda x: tuple(lax.top_k(x, k)))


def _top_k_by_blocks(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """lax.top_k of float [..., N], whose scalar search on the CPU reads only the k blocks with the highest maxima.

    Each block before that of a value, by maximum and then by index, has an element before it: a value in none of the
    first k blocks is not among the first k.
    """
    blocks = -(-x.shape[-1] // BLOCK)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, blocks * BLOCK - x.shape[-1])]
    cut = jnp.pad(x, padding, constant_values=-jnp.inf).reshape(*x.shape[:-1], blocks, BLOCK)
    best = jnp.sort(lax.top_k(cut.max(-1), k)[1], axis=-1)  # in order: of equal values the lowest index stays first
    values, index = lax.top_k(jnp.take_along_axis(cut, best[..., None], axis=-2).reshape(*x.shape[:-1], -1), k)
    return values, jnp.take_along_axis(best, index // BLOCK, axis=-1) * BLOCK + index % BLOCK
