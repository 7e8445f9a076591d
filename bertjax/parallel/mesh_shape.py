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


def axis_sizes(config: MeshConfig, devices: int, slices: int = 1) -> dict[str, int]:
    """The size of each axis over so many devices, which form `slices` slices: the size of `dcn: -1`.

    Raises UserError if the product of the sizes is not the number of devices.
    """
    sizes = [slices if config.dcn == -1 else config.dcn, config.data, config.fsdp, config.tensor]
    fixed = prod(n for n in sizes if n != -1)
    if devices % fixed or (-1 not in sizes and fixed != devices):
        named = zip(AXES, sizes, strict=True)
        wanted = " x ".join(f"{name}={n}" for name, n in named if name != "dcn" or n > 1)
        use = "set data, fsdp or tensor to -1 to take what is left"
        raise UserError(f"mesh: {wanted} does not fit {devices} devices; {use}")
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
    fewer = (n for n in range(stage.grad_accum - 1, 0, -1) if stage.batch_size % (shards * n) == 0)
    other = f", or grad_accum={n}" if (n := next(fewer, 0)) else ""
    other += "" if "tensor" in table["batch"] else ", or a larger mesh.tensor, which splits no rows"
    return (
        f"stages.{stage.name}.batch_size: {stage.batch_size} rows do not divide over {parts} "
        f"({format_mesh(sizes)}); set {' or '.join(map(str, near))}{other}"
    )


def find_problems(
    mesh: MeshConfig, stages: Sequence[Stage], devices: int, slices: int | None = None, processes: int = 1
) -> list[str]:
    """Problems of mesh, rules and batches with these devices, a line each.

    slices: how many slices the devices form, if `mesh.dcn` must agree with them. processes: how many processes hold
    the devices. The last line names the numbers of slices (with `mesh.dcn: -1`) or processes that would do.
    """
    lines = _problems(mesh, stages, devices, slices)
    unit, name = (slices or 1, "slice") if mesh.dcn == -1 else (processes, "process")
    if not lines or unit == 1 or devices % unit:
        return lines
    fitting = fitting_counts(mesh, stages, devices // unit, unit)
    if fitting:
        held = f"when each {name} has {devices // unit} device{'s' * (devices // unit > 1)}"
        many = "slices" if name == "slice" else "processes"
        lines[-1] += f"; a run that has begun keeps its batches: numbers of {many} that divide them {held}: "
        lines[-1] += ", ".join(map(str, fitting))
    return lines


def fitting_counts(mesh: MeshConfig, stages: Sequence[Stage], each: int, now: int) -> list[int]:
    """Numbers of slices or processes with `each` devices over which mesh and batches divide.

    At most six, the nearest to `now`, up to twice as many.
    """
    slices = (lambda n: n) if mesh.dcn == -1 else (lambda n: None)
    fitting = [n for n in range(1, 2 * now + 1) if not _problems(mesh, stages, n * each, slices(n))]
    return sorted(sorted(fitting, key=lambda n: abs(n - now))[:6])


def _problems(mesh: MeshConfig, stages: Sequence[Stage], devices: int, slices: int | None) -> list[str]:
    if slices is not None and mesh.dcn not in (-1, slices):
        use = f"set mesh.dcn={slices}, or -1 for as many as there are"
        return [f"mesh.dcn: the devices come in slices: {slices}, not {mesh.dcn}; {use}"]
    try:
        sizes, table = axis_sizes(mesh, devices, slices or 1), merge_rules(mesh.rules)
    except UserError as error:
        return [str(error)]
    return [line for stage in stages if (line := batch_problem(stage, sizes, table))]
