"""From logical axis names to mesh axes by the active rules (default: RULES in mesh_shape.py)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import Mesh as JaxMesh
from jax.sharding import PartitionSpec as P

from bertjax.errors import UserError
from bertjax.parallel.mesh_shape import RULES, Rules

_active: ContextVar[Rules] = ContextVar("rules", default=RULES)


@contextmanager
def use_mesh_and_rules(mesh: JaxMesh, table: Rules) -> Iterator[None]:
    """Trace and run with this mesh and these rules."""
    token = _active.set(table)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _active.reset(token)


def logical_to_mesh_axes(names: Sequence[str | None], table: Rules | None = None) -> P:
    """Logical names of an array's axes -> PartitionSpec, by the active rules.

    Raises UserError if two axes of the array share a mesh axis, which needs overridden rules.
    """
    table = _active.get() if table is None else table
    spec: list[str | tuple[str, ...] | None] = []
    used: set[str] = set()
    for name in names:
        axes = table.get(name, ()) if name else ()
        if shared := used.intersection(axes):
            both = " and ".join(n for n in names if n and shared & set(table.get(n, ())))
            raise UserError(f"mesh.rules: {both} are axes of one array and cannot share '{min(shared)}'; part them")
        used.update(axes)
        spec.append(axes[0] if len(axes) == 1 else axes or None)
    return P(*spec)


def divisible_spec(
    mesh: JaxMesh | AbstractMesh, names: Sequence[str | None], shape: Sequence[int], table: Rules | None = None
) -> P:
    """`logical_to_mesh_axes` for an array of this shape, without axes that the mesh does not divide.

    Inside `jax.shard_map` the shape is that of a shard, and manual mesh axes are left out.
    """
    free, spec = auto_axes(mesh), []
    for axes, size in zip(logical_to_mesh_axes(names, table), shape, strict=True):
        kept = tuple(a for a in ((axes,) if isinstance(axes, str) else axes or ()) if a in free)
        fits = kept and size % prod(mesh.shape[a] for a in kept) == 0
        spec.append((kept[0] if len(kept) == 1 else kept) if fits else None)
    return P(*spec)


def sharded_axes(name: str, size: int) -> tuple[str, ...]:
    """Auto mesh axes that shard a logical axis of this size; () outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    found = () if mesh.empty else tuple(jax.tree.leaves(tuple(divisible_spec(mesh, (name,), (size,)))))
    return found if prod(mesh.shape[a] for a in found) > 1 else ()


def auto_axes(mesh: JaxMesh | AbstractMesh) -> tuple[str, ...]:
    """Mesh axes that are not manual in an enclosing `jax.shard_map`."""
    return tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual)


def shard_index(name: str | None) -> tuple[int, jax.Array | int]:
    """(Number of shards of a logical axis, index of this shard) inside a `jax.shard_map`; elsewhere (1, 0)."""
    mesh = jax.sharding.get_abstract_mesh()
    cut = () if mesh.empty else manual_axes(mesh, name)
    return (prod(mesh.shape[a] for a in cut), jax.lax.axis_index(cut)) if cut else (1, 0)


def manual_axes(mesh: AbstractMesh, name: str | None) -> tuple[str, ...]:
    """Mesh axes over which an enclosing `jax.shard_map` shards a logical axis."""
    cut = {a for a, size in mesh.shape.items() if size > 1} - {*auto_axes(mesh)}
    return tuple(a for a in _active.get().get(name or "", ()) if a in cut)


def named_sharding(
    mesh: JaxMesh, names: Sequence[str | None], shape: Sequence[int], table: Rules | None = None
) -> NamedSharding:
    return NamedSharding(mesh, divisible_spec(mesh, names, shape, table))


def with_logical_constraint(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrain the sharding of an activation; the identity outside a mesh or on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = divisible_spec(mesh, names, x.shape)
    if AxisType.Explicit in mesh.axis_types:  # of a sharding type-check; there a constraint is an assertion
        return jax.sharding.reshard(x, spec)
    return jax.lax.with_sharding_constraint(x, spec)


def all_gather_fsdp(weight: jax.Array, *names: str | None) -> jax.Array:
    """A weight gathered over fsdp, still sharded over tensor: else the partitioner may move activations instead."""
    return with_logical_constraint(unshard(weight, *names), *(None if name == "embed" else name for name in names))


def unshard(weight: jax.Array, *names: str | None) -> jax.Array:
    """All-gather a weight inside a `jax.shard_map` over batch axes (gradient: reduce-scatter), else the identity."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weight
    for axis, name in enumerate(names):
        cut = tuple(a for a in manual_axes(mesh, name) if a in _active.get()["batch"])
        weight = _all_gather(weight, cut, axis, names) if cut else weight
    return weight


def all_gather_rows(x: jax.Array) -> jax.Array:
    """The rows of all shards of a batch, x [B, ...] -> [N, ...], on every device; gradients are summed over them.

    N is B times the shards inside a `jax.shard_map` over batch axes, where `shard_index("batch")` says which rows are
    those of x; elsewhere the array has all rows already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    cut = () if mesh.empty else manual_axes(mesh, "batch")
    names = (None,) * x.ndim
    return with_logical_constraint(_all_gather(x, cut, 0, names) if cut else x, *names)


def psum_manual(x: jax.Array, axes: tuple[str, ...], *names: str | None) -> jax.Array:
    """Sum a gradient over `axes` inside a `jax.shard_map` over them."""
    return _shard_map_auto(lambda x: jax.lax.psum(x, axes), x, names) if axes else x


def _shard_map_auto(
    collective: Callable[[jax.Array], jax.Array], x: jax.Array, names: Sequence[str | None]
) -> jax.Array:
    """A collective on each tensor shard of a weight, which the partitioner would gather first."""
    mesh = jax.sharding.get_abstract_mesh()
    if not (free := auto_axes(mesh)):
        return collective(x)
    spec = divisible_spec(mesh, names, x.shape)
    return jax.shard_map(collective, in_specs=spec, out_specs=spec, axis_names=set(free), check_vma=False)(x)


Names = tuple[str | None, ...]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _all_gather(weight: jax.Array, cut: tuple[str, ...], axis: int, names: Names) -> jax.Array:
    """all_gather whose gradients are summed in float32, as between slices."""
    return _shard_map_auto(lambda w: jax.lax.all_gather(w, cut, axis=axis, tiled=True), weight, names)


def _all_gather_forward(weight: jax.Array, cut: tuple[str, ...], axis: int, names: Names) -> tuple[jax.Array, None]:
    return _all_gather(weight, cut, axis, names), None


def _all_gather_backward(cut: tuple[str, ...], axis: int, names: Names, _: None, g: jax.Array) -> tuple[jax.Array]:
    scatter = partial(jax.lax.psum_scatter, axis_name=cut, scatter_dimension=axis, tiled=True)
    return (_shard_map_auto(scatter, g.astype(jnp.float32), names).astype(g.dtype),)


_all_gather.defvjp(_all_gather_forward, _all_gather_backward)
