"""Mesh axes, default rules, axis sizes and batch shards, without jax."""

from collections.abc import Mapping, Sequence
from math import prod

from bertjax.config.schema.run import MeshConfig, Stage
from bertjax.errors import UserError

AXES = ("dcn", "data", "fsdp", "tensor")  # dcn: between slices, over the slower network
# Parameters are stored by these rules ("embed" over fsdp is ZeRO-3) and gathered over fsdp where they are used
# (`sharding.all_gather_fsdp`). "sequence": positions of the residual stream (over tensor: sequence parallelism).
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("dcn", "data", "fsdp"),
    "sequence": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}
Rules = Mapping[str, tuple[str, ...]]


def merge_rules(overrides: Mapping[str, str | list[str] | None]) -> dict[str, tuple[str, ...]]:
    """RULES with a configuration's overrides. Raises UserError for unknown logical or mesh axes."""
    merged = dict(RULES)
    for name, given in overrides.items():
        axes = () if given is None else (given,) if isinstance(given, str) else tuple(given)
        if name not in RULES:
            raise UserError(f"mesh.rules.{name}: no such logical axis; known: {', '.join(RULES)}")
        if unknown := [a for a in axes if a not in AXES]:
            raise UserError(f"mesh.rules.{name}: no mesh axis '{unknown[0]}'; known: {', '.join(AXES)}")
        merged[name] = axes
    return merged


def axis_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """The size of each axis. Raises UserError if their product is not the number of devices."""
    sizes = [config.dcn, config.data, config.fsdp, config.tensor]
    fixed = prod(n for n in sizes if n != -1)
    if devices % fixed or (-1 not in sizes and fixed != devices):
        named = zip(AXES, sizes, strict=True)
        wanted = " x ".join(f"{name}={n}" for name, n in named if name != "dcn" or n > 1)
        raise UserError(f"mesh: {wanted} does not fit {devices} devices; set one axis to -1 to take what is left")
    return {axis: devices // fixed if n == -1 else n for axis, n in zip(AXES, sizes, strict=True)}


def batch_shards(sizes: Mapping[str, int], axes: str | Sequence[str] | None) -> int:
    """Shards of a batch over these axes of a mesh; the rows of a batch must be a multiple of it."""
    return prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def format_mesh(sizes: Mapping[str, int]) -> str:
    """Axes of more than one device."""
    return " ".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "one device"


def batch_problem(stage: Stage, sizes: Mapping[str, int], table: Rules) -> str | None:
    """Why the rows of a micro-batch do not divide over the mesh, with batch sizes that do; None if they do."""
    shards = batch_shards(sizes, table["batch"])
    unit = shards * stage.grad_accum
    if stage.batch_size % unit == 0:
        return None
    near = sorted({max(1, stage.batch_size // unit) * unit, -(-stage.batch_size // unit) * unit})
    parts = f"{shards} parts" + (f" of {stage.grad_accum} micro-batches" if stage.grad_accum > 1 else "")
    larger = "" if "tensor" in table["batch"] else ", or a larger mesh.tensor, which splits no rows"
    return (
        f"stages.{stage.name}.batch_size: {stage.batch_size} rows do not divide over {parts} "
        f"({format_mesh(sizes)}); set {' or '.join(map(str, near))}{larger}"
    )


def find_problems(mesh: MeshConfig, stages: Sequence[Stage], devices: int, slices: int | None = None) -> list[str]:
    """Problems of mesh, rules and batches with these devices, which form `slices` TPU slices if known, a line each."""
    if slices is not None and mesh.dcn != slices:
        return [f"mesh.dcn: the devices come in slices: {slices}, not {mesh.dcn}; set mesh.dcn={slices}"]
    try:
        sizes, table = axis_sizes(mesh, devices), merge_rules(mesh.rules)
    except UserError as error:
        return [str(error)]
    return [line for stage in stages if (line := batch_problem(stage, sizes, table))]
