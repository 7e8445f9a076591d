"""Positions of the residual stream split over tensor (sequence parallelism, arXiv 2205.05198).

Where the rule `sequence: tensor` splits them, a whole stack of layers runs inside one `jax.shard_map` over tensor.
There norms, dropout and the stream itself are in pieces along the row; `all_gather_sequence` puts a row together before the matmuls
of a block, and `reduce_scatter_sequence` adds up what the devices' heads or columns gave, in pieces again. That is as many bytes as the
sums of whole rows would be, and the gradients of a block's matmuls are added up on the device before they travel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P

from bertjax.parallel.sharding import auto_axes, manual_axes, sharded_axes, with_logical_constraint

LogicalArray = tuple[Any, tuple[str | None, ...]]  # an array and its logical axes
_TENSOR_AXES = ("heads", "mlp", "sequence")


def manual_sequence_axes() -> tuple[str, ...]:
    """The mesh axes that cut positions by hand here."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else manual_axes(mesh, "sequence")


def all_gather_sequence(x: jax.Array) -> jax.Array:
    """Of a stream in pieces [B, S / n, D] the whole rows [B, S, D]; does nothing where they are whole."""
    return jax.lax.all_gather(x, axes, axis=1, tiled=True) if (axes := manual_sequence_axes()) else x


def reduce_scatter_sequence(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """The result [B, S, D] of a matmul with a weight of these logical axes, of which the first may be split by hand:
    parts of sums become pieces of whole sums, [B, S / n, D]."""
    axes = manual_sequence_axes()
    return jax.lax.psum_scatter(x, axes, scatter_dimension=1, tiled=True) if axes and names[0] in _TENSOR_AXES else x


def unshard_sequence(x: jax.Array) -> jax.Array:
    """The stream [B, S, D] with whole rows, for what comes after a stack."""
    return with_logical_constraint(x, "batch", None, None) if sharded_axes("sequence", x.shape[1]) else x


def map_shards(norm: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """norm(x), a module's, on pieces of x [B, S, D] where positions are split: its gradients take rows and positions
    as one axis, which the partitioner would put together."""
    if not (axes := sharded_axes("sequence", x.shape[1])):
        return norm(x)
    return shard_map_sequence(lambda x, norm: norm(x), axes, x, norm, ())


def stack_shard_axes(length: int, weights: Any, heads: int) -> tuple[str, ...]:
    """The mesh axes over which a stack can run in pieces: they divide the positions and all its heads and columns.

    Not the weights' columns alone: 3 heads of 8 are 24 columns, which 2 devices divide, but not the heads.
    """
    axes = sharded_axes("sequence", length)
    variables = jax.tree.leaves(weights, is_leaf=_is_variable)
    sizes = {(n, s) for v in variables for n, s in zip(_names(v), v.shape, strict=True) if n in _TENSOR_AXES}
    if any(name == "heads" for name, _ in sizes):
        sizes.add(("heads", heads))
    return axes if axes and all(sharded_axes(name, size) == axes for name, size in sizes) else ()


def shard_map_sequence(
    run: Callable[..., jax.Array], axes: tuple[str, ...], x: jax.Array, weights: Any, given: Sequence[LogicalArray]
) -> jax.Array:
    """run(x, weights, *given) on pieces of x [B, S, D] along S, cut over `axes`, and of what else these axes split."""
    mesh = jax.sharding.get_abstract_mesh()
    leaves, structure = jax.tree.flatten(weights)
    names = [_names(v) for v in jax.tree.leaves(weights, is_leaf=_is_variable)]
    spec = lambda names: P(*(axes if name in _TENSOR_AXES else None for name in names))  # noqa: E731
    alone = {a for a in auto_axes(mesh) if a in axes or mesh.shape[a] == 1}

    def local(x: jax.Array, leaves: list[jax.Array], *arrays: Any) -> jax.Array:
        return run(x, jax.tree.unflatten(structure, leaves), *arrays)

    stream = P(None, axes, None)
    sharded = jax.shard_map(
        local, in_specs=(stream, [spec(n) for n in names], *(spec(n) for _, n in given)), out_specs=stream,
        axis_names=alone, check_vma=False,
    )  # fmt: skip
    return sharded(x, leaves, *(array for array, _ in given))


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _names(variable: nnx.Variable) -> tuple[str | None, ...]:
    return tuple(variable.get_metadata("out_sharding"))
