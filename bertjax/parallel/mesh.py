"""The device mesh and the only place where logical axis names meet mesh axes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import Mesh as JaxMesh
from jax.sharding import PartitionSpec as P

from bertjax.config.schema import Mesh
from bertjax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Parameters are stored by these rules ("embed" over fsdp is ZeRO-3); `gathered` drops fsdp where they are used.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}
Rules = Mapping[str, tuple[str, ...]]
_active: ContextVar[Rules] = ContextVar("rules", default=RULES)


@contextmanager
def placing(mesh: JaxMesh, table: Rules) -> Iterator[None]:
    """Trace and run under this mesh, with activations placed by the same rules as the parameters."""
    token = _active.set(table)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _active.reset(token)


def make_mesh(config: Mesh, devices: Sequence[jax.Device] | None = None) -> JaxMesh:
    """A mesh with axes (data, fsdp, tensor) over all devices; raises UserError when the sizes do not multiply out."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = [config.data, config.fsdp, config.tensor]
    fixed = int(np.prod([n for n in sizes if n != -1]))
    if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
        wanted = " x ".join(f"{name}={n}" for name, n in zip(AXES, sizes, strict=True))
        raise UserError(f"mesh: {wanted} does not fit {len(devices)} devices; set one axis to -1 to take what is left")
    sizes = [len(devices) // fixed if n == -1 else n for n in sizes]
    if devices == jax.devices():
        return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)
    return JaxMesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def rules(overrides: Mapping[str, str | list[str] | None]) -> dict[str, tuple[str, ...]]:
    """RULES with a configuration's overrides; raises UserError for unknown logical or mesh axes."""
    merged = dict(RULES)
    for name, given in overrides.items():
        axes = () if given is None else (given,) if isinstance(given, str) else tuple(given)
        if name not in RULES:
            raise UserError(f"mesh.rules.{name}: no such logical axis; known: {', '.join(RULES)}")
        if unknown := [a for a in axes if a not in AXES]:
            raise UserError(f"mesh.rules.{name}: no mesh axis '{unknown[0]}'; known: {', '.join(AXES)}")
        merged[name] = axes
    return merged


def partition(names: Sequence[str | None], table: Rules | None = None) -> P:
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


def fitted(
    mesh: JaxMesh | AbstractMesh, names: Sequence[str | None], shape: Sequence[int], table: Rules | None = None
) -> P:
    """`partition` for an array of this shape: an axis that the mesh does not divide stays whole."""
    spec = []
    for axes, size in zip(partition(names, table), shape, strict=True):
        width = int(np.prod([mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ())]))
        spec.append(axes if size % width == 0 else None)
    return P(*spec)


def sharding(
    mesh: JaxMesh, names: Sequence[str | None], shape: Sequence[int], table: Rules | None = None
) -> NamedSharding:
    """Where an array with these logical axes lives."""
    return NamedSharding(mesh, fitted(mesh, names, shape, table))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Ask the partitioner to place an activation by its logical axes; does nothing outside a mesh or on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, fitted(mesh, names, x.shape))


def gathered(weight: jax.Array, *names: str | None) -> jax.Array:
    """A weight as its matmul wants it: whole along fsdp, still split along tensor.

    Without this the partitioner may move activations instead of weights, and traffic grows with the mesh.
    """
    return constrain(weight, *(None if name == "embed" else name for name in names))
