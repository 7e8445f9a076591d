"""Searches of arrays whose rows, and whose vocabulary, are split over devices: what travels is candidates, not logits."""

from math import prod

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from bertjax.parallel.mesh import constrain, fitted, free_axes, gathered, split_axes


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of the word embeddings [V, D] at int ids [B, S] -> [B, S, D], in the table's dtype.

    Where V is split, each device reads what it has and the parts are summed, so that no table travels. Where positions
    are split too, straight into their pieces.
    """
    table = gathered(table, "vocab", "embed")  # first: a look-up in a table split along D would replicate all of it
    pieces, parts = split_axes("sequence", ids.shape[1]), split_axes("vocab", table.shape[0])
    if not pieces:
        return jnp.take(table, ids, axis=0)
    if pieces != parts:
        return constrain(jnp.take(table, ids, axis=0), "batch", None, None)

    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        places = ids - lax.axis_index(parts) * len(table)
        here = (places >= 0) & (places < len(table))
        found = jnp.where(here[..., None], jnp.take(table, places, axis=0, mode="clip"), 0)
        return lax.psum_scatter(found, parts, scatter_dimension=1, tiled=True)

    mesh = jax.sharding.get_abstract_mesh()
    free, rows = free_axes(mesh), fitted(mesh, ("batch", None), ids.shape)
    read = jax.shard_map(
        local, in_specs=(P(parts, None), rows), out_specs=P(*rows[:1], parts, None), axis_names=set(free),
        check_vma=False,
    )  # fmt: skip
    return read(table, ids)


def top_k(x: jax.Array, k: int, along: str | None = None) -> tuple[jax.Array, jax.Array]:
    """lax.top_k of [B, ..., N] -> (values, int32 indices), each [B, ..., k]; of equal values the lowest index first.

    `along` is the logical name of the last axis, `vocab` for logits. The partitioner would bring the rows of all
    devices to each; here every device searches its own rows and its part of the last axis, and the best of the parts
    are searched again.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        values, index = lax.top_k(x, k)
        return values, index
    spec = fitted(mesh, ("batch", *(None,) * (x.ndim - 2), along), x.shape)
    split = tuple(jax.tree.leaves(spec[-1]))
    found = P(*spec[:-1], None)

    def local(part: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, index = lax.top_k(part, min(k, part.shape[-1]))
        if prod(mesh.shape[axis] for axis in split) == 1:
            return values, index
        index = index.astype(jnp.int32) + lax.axis_index(split) * part.shape[-1]
        values, index = (lax.all_gather(a, split, axis=a.ndim - 1, tiled=True) for a in (values, index))
        values, best = lax.top_k(values, k)  # the parts stand in order, so that the lowest index still comes first
        return values, jnp.take_along_axis(index, best, axis=-1)

    search = jax.shard_map(
        local, in_specs=spec, out_specs=(found, found), axis_names=set(free_axes(mesh)), check_vma=False
    )
    return search(x)
