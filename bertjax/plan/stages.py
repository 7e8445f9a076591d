"""The plan of a stage as one dictionary, the --json output of `bertjax plan`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bertjax.config.schema.run import Config, Stage
from bertjax.data.pipeline.row_fields import task_fields, tokens_per_row
from bertjax.data.sources.class_names import ClassSpec
from bertjax.evaluation.evaluators.registry import record_of
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.models import families
from bertjax.models.attention import KERNELS, select_kernel
from bertjax.parallel.hardware import Chip
from bertjax.plan import memory
from bertjax.plan.compile import CompileResult, StageProgram, abstract_batch, build_stage_program, compile_lowered
from bertjax.plan.estimate import Interconnect, Roofline, roofline
from bertjax.plan.hlo.collectives import Collective, find_collectives
from bertjax.plan.hlo.costs import matmul_flops, memory_bytes
from bertjax.plan.hlo.module import HloModule, attention_kernel, custom_kernels
from bertjax.plan.sharding_notes import sharding_notes
from bertjax.progress import reporter
from bertjax.progress.text import size
from bertjax.training.feature_cache.cache import feature_field
from bertjax.training.feature_cache.memory import wants_cache


@dataclass(frozen=True)
class Target:
    """The devices of a plan. `chip` is None for CPUs, which have no data sheet."""

    devices: Sequence[Any]
    chip: Chip | None

    @property
    def usable_bytes(self) -> int | None:
        return memory.usable_bytes(self.chip)


def plan_stage(config: Config, stage: Stage, target: Target, episode: int | None) -> dict[str, Any]:
    """Compile a stage with its evaluations and describe them; `fits` is None if the device memory is unknown."""
    opened = build_stage_program(config, stage, target.devices, episode)
    log_progress(f"stage {stage.name}: compiling the train step ...")
    found = plan_step(opened, target)
    found["evaluations"] = [_evaluation(opened, names, lower, target) for names, lower in evaluation_steps(opened)]
    return found


def plan_step(opened: StageProgram, target: Target) -> dict[str, Any]:
    """The same for the train step only."""
    return _stage_info(opened) | _step(
        opened, compile_lowered(opened.lower, dump=opened.program.compute.platform == "tpu"), target
    )


def evaluation_steps(opened: StageProgram) -> Iterator[tuple[str, Any]]:
    """(names of the evaluations, function that lowers their program) for each distinct program of a stage."""
    names: dict[Any, list[str]] = {}
    lowers: dict[Any, Any] = {}
    program = opened.program
    classes = ClassSpec(program.num_classes, multi_label=program.is_multi_label)
    for config in opened.stage.evaluate:
        fields = task_fields(opened.config, config.data, classes)
        batch = abstract_batch(fields, round_up_batch(config.batch_size, program), program)
        key, lower = record_of(config).lower(opened.ctx, program, config, batch)
        lowers[key] = lower
        names.setdefault(key, []).append(config.name)
    for key, lower in lowers.items():
        yield ", ".join(names[key]), lower


def log_progress(line: str) -> None:
    reporter.say(line)


def _stage_info(opened: StageProgram) -> dict[str, Any]:
    stage, width = opened.stage, tokens_per_row(opened.fields)
    shards = opened.program.batch_shards
    return {
        "stage": stage.name,
        "objective": stage.objective.kind,
        "mesh": dict(opened.program.mesh.shape),
        "remat": opened.program.compute.remat,
        "episode": opened.episode,
        "episodes": opened.episodes,
        "trained_parameters": sum(x.size for x in opened.state.params.values()),
        "frozen_parameters": sum(x.size for x in opened.state.frozen.values()),
        **({"teacher_parameters": _teacher_parameters(opened)} if opened.program.teacher else {}),
        "batch_size": stage.batch_size,
        "grad_accum": stage.grad_accum,
        "rows_per_device": stage.batch_size // shards,
        "batch_sizes_in_steps_of": shards * stage.grad_accum,
        "positions_per_row": width,
        "positions_per_step": width * stage.batch_size,
        "notes": [*sharding_notes(opened), *_feature_notes(opened)],
    }


def _feature_notes(opened: StageProgram) -> list[str]:
    """That the compiled step encodes its rows, where a run keeps their hidden states, and what a row takes."""
    program = opened.program.split_segments(opened.groups)
    frozen = program.frozen_layers
    asked = wants_cache(opened.stage) and (frozen or program.peft.feature_layers)
    if not asked or program.objective.kept_positions is None:
        return []
    shape, dtype = feature_field(program, opened.fields)
    kept = f"{size(math.prod(shape) * dtype.itemsize)} a row in each host's memory"
    if frozen:
        return [f"this step computes its frozen layers; one that reads their cached outputs ({kept}) is faster"]
    return [f"this step encodes its rows; one that reads cached features ({kept}) is faster and smaller"]


def _teacher_parameters(opened: StageProgram) -> int:
    teacher = opened.program.teacher
    return sum(x.size for x in teacher.abstract_params().values()) if teacher else 0


def _step(opened: StageProgram, outcome: CompileResult, target: Target) -> dict[str, Any]:
    base = {"compile_seconds": round(outcome.seconds, 1), "reason": outcome.reason}
    if outcome.compiled is None:
        held = {"parameters": memory.parameter_bytes(opened), "optimizer": memory.optimizer_bytes(opened)}
        return base | {"fits": False, "memory": held | {"total": outcome.required_bytes, "usable": target.usable_bytes}}
    bytes_ = memory.program_memory(opened, outcome, opened.batch.values())
    module = HloModule.parse(outcome.text)
    moves = find_collectives(module, dict(opened.program.mesh.shape))
    links = Interconnect(target.chip, list(opened.program.mesh.devices.flat)) if target.chip else None
    flops, traffic = matmul_flops(module), memory_bytes(module)
    row_flops = opened.program.row_flops(opened.fields, opened.groups)
    model_flops = opened.stage.batch_size * row_flops / opened.program.mesh.size
    found = None
    if target.chip and links:
        estimate = roofline(
            target.chip, flops=flops, model_flops=model_flops, memory_bytes=traffic,
            transfers=sum(map(links.seconds, moves)), tokens=tokens_per_row(opened.fields) * opened.stage.batch_size,
        )  # fmt: skip
        found = roofline_dict(estimate, target.chip)
    return base | {
        **_memory_info(bytes_, target),
        "flops": {"model": model_flops, "program": flops},
        "memory_traffic": traffic,
        "collectives": collectives_table(moves, links),
        "attention": _attention(opened, custom_kernels(module)),
        "roofline": found,
    }


def _memory_info(bytes_: memory.DeviceMemory, target: Target) -> dict[str, Any]:
    """The memory of a program, whether it fits, and why not."""
    total, usable = bytes_.total, target.usable_bytes
    fits = None if usable is None else total <= usable
    reason = _oom_reason(total, target) if fits is False else ""
    return {"fits": fits, "reason": reason, "memory": asdict(bytes_) | {"total": total, "usable": usable}}


def _oom_reason(total: int, target: Target) -> str:
    assert target.chip is not None and target.usable_bytes is not None and target.chip.memory is not None
    share = "" if target.chip.torus else f", {target.usable_bytes / target.chip.memory:.0%} of the GPU's memory"
    return f"needs {memory.format_bytes(total)} of {memory.format_bytes(target.usable_bytes)}{share}"


def collectives_table(moves: Sequence[Collective], links: Interconnect | None) -> list[dict[str, Any]]:
    """Collectives by kind and axes, summed over groups along the same axes."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in moves:
        row = rows.setdefault((one.kind, one.axes), {"kind": one.kind, "over": one.axes, "count": 0, "bytes": 0})
        row["count"] += one.count
        row["bytes"] += one.bytes
        if links:
            row["seconds"] = row.get("seconds", 0.0) + links.seconds(one)
    return list(rows.values())


def roofline_dict(estimate: Roofline, chip: Chip) -> dict[str, Any]:
    return asdict(estimate) | {
        "best": estimate.best,
        "step": estimate.step,
        "bound": estimate.bound,
        "tokens_per_second": estimate.tokens_per_second,
        "mfu": estimate.mfu(chip),
    }


def _attention(opened: StageProgram, found: dict[str, int]) -> dict[str, Any]:
    """The compiled attention kernel, its calls, and why it is not the kernel of the platform."""
    compute, model = opened.program.compute, opened.program.model
    kernel, why = attention_kernel(found), None
    own = next(iter(KERNELS[compute.platform]), None)
    fused = families.record_of(model).fused_attention
    if fused and own and kernel != own and compute.attention == "auto":
        (head_dim, rate), length = fused(model), opened.fields["input_ids"][0][0]
        length //= opened.program.objective.sequences(opened.fields)
        try:
            select_kernel(replace(compute, attention=own), length=length, head_dim=head_dim, rate=rate)
        except ValueError as error:
            why = str(error)
    return {"kernel": kernel, "calls": found, "why": why}


def _evaluation(opened: StageProgram, names: str, lower: Any, target: Target) -> dict[str, Any]:
    log_progress(f"stage {opened.stage.name}: compiling the evaluation {names} ...")
    outcome = compile_lowered(lower)
    found: dict[str, Any] = {"names": names, "compile_seconds": round(outcome.seconds, 1), "reason": outcome.reason}
    if outcome.compiled is None:
        return found | {"fits": False, "memory": {"total": outcome.required_bytes, "usable": target.usable_bytes}}
    return found | _memory_info(memory.program_memory(opened, outcome), target)
