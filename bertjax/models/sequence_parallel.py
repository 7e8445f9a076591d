"""Sequence parallelism: positions of the residual stream sharded over `tensor` (arXiv 2205.05198).

With the rule `sequence: tensor`, a stack of layers runs inside one `jax.shard_map` over `tensor`, with norms, dropout
and the residual stream sharded along the row. Matmuls gather the row before and reduce-scatter their results, as many
bytes as an all-reduce of full rows; gradients of a block's matmuls are summed on the device before they are sent.
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
    """Mesh axes that shard positions in the enclosing `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else manual_axes(mesh, "sequence")


def all_gather_sequence(x: jax.Array) -> jax.Array:
    """Residual stream [B, S / n, D] -> [B, S, D]; the identity where positions are not sharded."""
    return jax.lax.all_gather(x, axes, axis=1, tiled=True) if (axes := manual_sequence_axes()) else x


def reduce_scatter_sequence(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Sum and shard the result of a matmul, [B, S, D] -> [B, S / n, D], if the weight's first axis is sharded."""
    axes = manual_sequence_axes()
    return jax.lax.psum_scatter(x, axes, scatter_dimension=1, tiled=True) if axes and names[0] in _TENSOR_AXES else x


def unshard_sequence(x: jax.Array) -> jax.Array:
    """Residual stream [B, S, D] with unsharded positions, as heads read it after a stack."""
    return with_logical_constraint(x, "batch", None, None) if sharded_axes("sequence", x.shape[1]) else x


def map_shards(norm: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """norm(x) per shard of x [B, S, D]: its gradient flattens rows and positions, which would gather sharded ones."""
    if not (axes := sharded_axes("sequence", x.shape[1])):
        return norm(x)
    return shard_map_sequence(lambda x, norm: norm(x), axes, x, norm, ())


def stack_shard_axes(length: int, weights: Any, heads: int) -> tuple[str, ...]:
    """Mesh axes over which a stack can run sharded: they divide positions, attention heads and columns of weights.

    Dividing the columns is not enough: 2 devices divide the 24 columns of 3 heads of size 8, but not the heads.
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
    """run(x, weights, *given) with positions of x [B, S, D], and other arrays with these axes, sharded over `axes`."""
    mesh = jax.sharding.get_abstract_mesh()
    leaves, structure = jax.tree.flatten(weights)
    names = [_names(v) for v in jax.tree.leaves(weights, is_leaf=_is_variable)]
    spec = lambda names: P(*(axes if name in _TENSOR_AXES else None for name in names))  # noqa: E731
    manual = {a for a in auto_axes(mesh) if a in axes or mesh.shape[a] == 1}

    def local(x: jax.Array, leaves: list[jax.Array], *arrays: Any) -> jax.Array:
        return run(x, jax.tree.unflatten(structure, leaves), *arrays)

    stream = P(None, axes, None)
    specs = (stream, [spec(n) for n in names], *(spec(n) for _, n in given))
    sharded = jax.shard_map(local, in_specs=specs, out_specs=stream, axis_names=manual, check_vma=False)
    return sharded(x, leaves, *(array for array, _ in given))


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _names(variable: nnx.Variable) -> tuple[str | None, ...]:
    return tuple(variable.get_metadata("out_sharding"))
