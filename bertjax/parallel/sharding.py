"""The device mesh and the only place where logical axis names meet mesh axes; their table is in mesh_shape.py."""

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
    """Trace and run under this mesh, with activations placed by the same rules as the parameters."""
    token = _active.set(table)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _active.reset(token)


def logical_to_mesh_axes(names: Sequence[str | None], table: Rules | None = None) -> P:
    """Logical names of an array's axes -> PartitionSpec, by the active rules.

    Raises UserError when two axes of the array share a mesh axis, which only overridden rules can ask for.
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
    """`logical_to_mesh_axes` for an array of this shape: an axis that the mesh does not divide stays whole.

    Inside `jax.shard_map` the shape is that of a shard, and the mesh axes that cut it are left out.
    """
    free, spec = auto_axes(mesh), []
    for axes, size in zip(logical_to_mesh_axes(names, table), shape, strict=True):
        kept = tuple(a for a in ((axes,) if isinstance(axes, str) else axes or ()) if a in free)
        fits = kept and size % prod(mesh.shape[a] for a in kept) == 0
        spec.append((kept[0] if len(kept) == 1 else kept) if fits else None)
    return P(*spec)


def sharded_axes(name: str, size: int) -> tuple[str, ...]:
    """The mesh axes that split a logical axis of this size, without those that cut it by hand; () outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    found = () if mesh.empty else tuple(jax.tree.leaves(tuple(divisible_spec(mesh, (name,), (size,)))))
    return found if prod(mesh.shape[a] for a in found) > 1 else ()


def auto_axes(mesh: JaxMesh | AbstractMesh) -> tuple[str, ...]:
    """The mesh axes that are not cut by hand here, by a `jax.shard_map` around."""
    return tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual)


def shard_index(name: str | None) -> tuple[int, jax.Array | int]:
    """Inside a `jax.shard_map` that cuts a logical axis: (into how many parts, which of them this is); else (1, 0).

    Parts are contiguous and in order: part i of n places begins at place i * n of the whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    cut = () if mesh.empty else manual_axes(mesh, name)
    return (prod(mesh.shape[a] for a in cut), jax.lax.axis_index(cut)) if cut else (1, 0)


def manual_axes(mesh: AbstractMesh, name: str | None) -> tuple[str, ...]:
    """The mesh axes that cut a logical axis by hand here."""
    cut = {a for a, size in mesh.shape.items() if size > 1} - {*auto_axes(mesh)}
    return tuple(a for a in _active.get().get(name or "", ()) if a in cut)


def named_sharding(
    mesh: JaxMesh, names: Sequence[str | None], shape: Sequence[int], table: Rules | None = None
) -> NamedSharding:
    """Where an array with these logical axes lives."""
    return NamedSharding(mesh, divisible_spec(mesh, names, shape, table))


def with_logical_constraint(x: jax.Array, *names: str | None) -> jax.Array:
    """Ask the partitioner to place an activation by its logical axes; does nothing outside a mesh or on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, divisible_spec(mesh, names, x.shape))


def all_gather_fsdp(weight: jax.Array, *names: str | None) -> jax.Array:
    """A weight as its matmul wants it: whole along fsdp, still split along tensor.

    Without this the partitioner may move activations instead of weights, and traffic grows with the mesh.
    """
    return with_logical_constraint(unshard(weight, *names), *(None if name == "embed" else name for name in names))


def unshard(weight: jax.Array, *names: str | None) -> jax.Array:
    """Inside a `jax.shard_map` a weight together with what other devices hold of it; its gradient is summed and cut.

    Does nothing elsewhere. The axes that are cut there divide evenly.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weight
    for axis, name in enumerate(names):
        cut = tuple(a for a in manual_axes(mesh, name) if a in _active.get()["batch"])
        weight = _all_gather(weight, cut, axis, names) if cut else weight
    return weight


def psum_manual(x: jax.Array, axes: tuple[str, ...], *names: str | None) -> jax.Array:
    """Inside a `jax.shard_map` over `axes`: a gradient summed over them."""
    return _shard_map_auto(lambda x: jax.lax.psum(x, axes), x, names) if axes else x


def _shard_map_auto(
    collective: Callable[[jax.Array], jax.Array], x: jax.Array, names: Sequence[str | None]
) -> jax.Array:
    """A collective on each piece of a weight along tensor, which the partitioner would put together first."""
    mesh = jax.sharding.get_abstract_mesh()
    if not (free := auto_axes(mesh)):
        return collective(x)
    spec = divisible_spec(mesh, names, x.shape)
    return jax.shard_map(collective, in_specs=spec, out_specs=spec, axis_names=set(free), check_vma=False)(x)


Names = tuple[str | None, ...]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _all_gather(weight: jax.Array, cut: tuple[str, ...], axis: int, names: Names) -> jax.Array:
    """all_gather; its gradients are summed in float32, as they are between slices."""
    return _shard_map_auto(lambda w: jax.lax.all_gather(w, cut, axis=axis, tiled=True), weight, names)


def _all_gather_forward(weight: jax.Array, cut: tuple[str, ...], axis: int, names: Names) -> tuple[jax.Array, None]:
    return _all_gather(weight, cut, axis, names), None


def _all_gather_backward(cut: tuple[str, ...], axis: int, names: Names, _: None, g: jax.Array) -> tuple[jax.Array]:
    scatter = partial(jax.lax.psum_scatter, axis_name=cut, scatter_dimension=axis, tiled=True)
    return (_shard_map_auto(scatter, g.astype(jnp.float32), names).astype(g.dtype),)


_all_gather.defvjp(_all_gather_forward, _all_gather_backward)
