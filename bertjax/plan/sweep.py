"""`bertjax plan --sweep`: compile a stage under every mesh with its smallest batch, then the best meshes with larger
batches, and rank what fits. A remat policy that recomputes more is tried only if the cheaper one does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import gcd
from typing import Any

from bertjax.config.schema.run import Config, Stage
from bertjax.parallel.mesh_shape import batch_shards, format_mesh, merge_rules
from bertjax.plan import memory
from bertjax.plan.compile import build_stage_program
from bertjax.plan.stages import Target, log_progress, plan_step

REMAT_POLICIES = ("none", "dots", "full")
MAX_TENSOR = 16  # maximum tensor parallelism; beyond it communication exceeds compute
FSDP_SIZES = 4  # number of fsdp sizes tried per tensor size
TOP_MESHES = 3  # number of meshes tried with larger batches
BATCH_MULTIPLES = (2, 4)


@dataclass(frozen=True, order=True)
class MeshShape:
    """The mesh within one slice."""

    tensor: int
    fsdp: int
    data: int


@dataclass
class Sweep:
    """The candidates compiled so far."""

    config: Config
    stage: Stage
    target: Target
    limit: int
    ranked: list[dict[str, Any]] = field(default_factory=list)
    unfit: list[dict[str, Any]] = field(default_factory=list)
    compiled: int = 0

    def try_mesh(self, shape: MeshShape, rows: int) -> None:
        """Compile a mesh and batch size with the cheapest remat policy that fits."""
        for remat in REMAT_POLICIES:
            if self.compiled >= self.limit:
                return
            found = self._compile(shape, rows, remat)
            if found["fits"] is not False:
                self.ranked.append(found)
                return
            self.unfit.append(found)
            held = found["memory"]
            if held["parameters"] + held["optimizer"] > (self.target.usable_bytes or held["total"]):
                return  # no policy reduces these

    def _compile(self, shape: MeshShape, rows: int, remat: str) -> dict[str, Any]:
        config, stage = apply_candidate(self.config, self.stage, shape, rows, remat)
        mesh = config.mesh.model_dump(include={"dcn", "data", "fsdp", "tensor"})
        found: dict[str, Any] = {"mesh": mesh, "batch_size": rows, "remat": remat}
        opened = build_stage_program(config, stage, self.target.devices)
        held = {"parameters": memory.parameter_bytes(opened), "optimizer": memory.optimizer_bytes(opened)}
        if self.target.usable_bytes is not None and sum(held.values()) > self.target.usable_bytes:
            reason = "parameters and optimizer state exceed the memory"
            return found | {"fits": False, "reason": reason, "memory": held | {"total": sum(held.values())}}
        self.compiled += 1
        log_progress(f"{self.compiled} of at most {self.limit}: {_describe(found)} ...")
        plan = plan_step(opened, self.target)
        log_progress(f"  {_summary(plan)}")
        kept = ("fits", "reason", "memory", "roofline", "collectives", "rows_per_device", "compile_seconds")
        return found | {key: plan[key] for key in kept if key in plan}


def _summary(plan: dict[str, Any]) -> str:
    if plan["fits"] is False:
        return f"does not fit: {plan['reason']}"
    step = f", {plan['roofline']['step'] * 1e3:.3g} ms" if plan["roofline"] else ""
    return f"{memory.format_bytes(plan['memory']['total'])}{step}"


def sweep(config: Config, stage: Stage, target: Target, limit: int) -> dict[str, Any]:
    """{sweep, compiled, limit, ranked, unfit}; ranked by estimated positions/s, on CPUs by memory."""
    run = Sweep(config, stage, target, limit)
    shapes = list(candidate_meshes(config, len(target.devices) // config.mesh.dcn))
    for shape in shapes:
        run.try_mesh(shape, smallest_batch(config, stage, shape))
    best = [found["mesh"] for found in sorted(run.ranked, key=_rank_key)[:TOP_MESHES]]
    for times in BATCH_MULTIPLES:
        for mesh in best:
            shape = MeshShape(mesh["tensor"], mesh["fsdp"], mesh["data"])
            run.try_mesh(shape, times * smallest_batch(config, stage, shape))
    return {
        "sweep": stage.name,
        "compiled": run.compiled,
        "limit": limit,
        "ranked": sorted(run.ranked, key=_rank_key),
        "unfit": run.unfit,
    }


def _rank_key(found: dict[str, Any]) -> float:
    if found["roofline"]:
        return -found["roofline"]["tokens_per_second"]
    return found["memory"]["total"] / found["batch_size"]


def candidate_meshes(config: Config, devices: int) -> Iterator[MeshShape]:
    """Meshes that divide heads and the feed-forward layer evenly, smallest tensor parallelism first."""
    for tensor in divisors(gcd(config.model.num_attention_heads, config.model.intermediate_size, devices)):
        if tensor > MAX_TENSOR:
            return
        sizes = divisors(devices // tensor)
        kept = {sizes[round(at * (len(sizes) - 1) / (FSDP_SIZES - 1))] for at in range(FSDP_SIZES)}
        for fsdp in sorted(kept):
            yield MeshShape(tensor, fsdp, devices // tensor // fsdp)


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def smallest_batch(config: Config, stage: Stage, shape: MeshShape) -> int:
    """The batch size of the stage, rounded up to a multiple that this mesh divides."""
    sizes = {"dcn": config.mesh.dcn, "data": shape.data, "fsdp": shape.fsdp, "tensor": shape.tensor}
    unit = batch_shards(sizes, merge_rules(config.mesh.rules)["batch"]) * stage.grad_accum
    return -(-stage.batch_size // unit) * unit


def apply_candidate(config: Config, stage: Stage, shape: MeshShape, rows: int, remat: str) -> tuple[Config, Stage]:
    """The configuration and stage with another mesh, batch size and remat policy."""
    mesh = config.mesh.model_copy(update={"data": shape.data, "fsdp": shape.fsdp, "tensor": shape.tensor})
    stage = stage.model_copy(update={"batch_size": rows})
    run = config.run.model_copy(update={"remat": remat})
    return config.model_copy(update={"mesh": mesh, "run": run}), stage


def format_sweep(found: dict[str, Any]) -> str:
    """A table of the candidates that fit, overrides for the best, and a line for each that does not fit."""
    ranked, unfit = found["ranked"], found["unfit"]
    how = "estimated positions/s" if ranked and ranked[0]["roofline"] else "memory per row (CPUs have no data sheet)"
    lines = [
        f"{found['config']}, stage {found['sweep']}, on {found['topology']} "
        f"({found['devices']} x {found['device_kind']})",
        f"{found['compiled']} compiled (--limit {found['limit']}): {len(ranked)} fit, by {how}",
        "",
    ]
    if ranked:
        lines += [_HEADER, *(_row(one) for one in ranked), "", f"best: {format_overrides(ranked[0], found['sweep'])}"]
    lines += [f"does not fit: {_describe(one)}: {one['reason']}" for one in unfit]
    return "\n".join(lines if ranked else [*lines, "nothing fits"])


_HEADER = f"{'mesh':<34}{'rows':>7}{'remat':>7}{'GiB':>8}{'ms':>9}{'positions/s':>14}{'MFU':>6}  bound by"


def _row(one: dict[str, Any]) -> str:
    size = one["memory"]["total"] / memory.GIB
    line = f"{format_mesh(one['mesh']):<34}{one['batch_size']:>7}{one['remat']:>7}{size:>8.2f}"
    if not (estimate := one["roofline"]):
        return line
    step, speed = f"{estimate['step'] * 1e3:>9.3g}", f"{estimate['tokens_per_second']:>14,.0f}"
    return f"{line}{step}{speed}{estimate['mfu']:>6.0%}  {estimate['bound']}"


def _describe(one: dict[str, Any]) -> str:
    return f"{format_mesh(one['mesh'])}, {one['batch_size']} rows, remat {one['remat']}"


def format_overrides(one: dict[str, Any], stage: str) -> str:
    """Overrides for `bertjax train`."""
    mesh = " ".join(f"mesh.{axis}={one['mesh'][axis]}" for axis in ("data", "fsdp", "tensor"))
    return f"{mesh} stages.{stage}.batch_size={one['batch_size']} run.remat={one['remat']}"
