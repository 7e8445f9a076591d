"""Everything `bertjax plan` says about a stage, as one dictionary (its --json)."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bertjax.config.model_schema import BertConfig
from bertjax.config.schema import Config, Stage
from bertjax.models.attention import choose
from bertjax.parallel.chips import Chip
from bertjax.plan import memory
from bertjax.plan.batch import positions
from bertjax.plan.collectives import Collective, collectives
from bertjax.plan.compile import Outcome, StageProgram, compile_lowered, open_stage
from bertjax.plan.estimate import Links, Roofline, roofline, row_flops
from bertjax.plan.evaluation import evaluation_steps
from bertjax.plan.hlo import Module, attention_kernel, kernels
from bertjax.plan.rules import remarks
from bertjax.plan.words import spell_bytes
from bertjax.plan.work import matmul_flops, memory_bytes


@dataclass(frozen=True)
class Site:
    """Where a configuration is to run. `chip` is None for CPUs, of which nothing is promised."""

    devices: Sequence[Any]
    chip: Chip | None

    @property
    def usable(self) -> int | None:
        return memory.usable(self.chip)


def plan_stage(config: Config, stage: Stage, site: Site, episode: int | None) -> dict[str, Any]:
    """Compiles a stage with its evaluations and describes them; `fits` is None where a device's memory is not known."""
    opened = open_stage(config, stage, site.devices, episode)
    tell(f"stage {stage.name}: compiling the train step ...")
    found = plan_step(opened, site)
    found["evaluations"] = [_evaluation(opened, names, lower, site) for names, lower in evaluation_steps(opened)]
    return found


def plan_step(opened: StageProgram, site: Site) -> dict[str, Any]:
    """The same of its train step alone."""
    return _facts(opened) | _step(
        opened, compile_lowered(opened.lower, dump=opened.program.execution.platform == "tpu"), site
    )


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _facts(opened: StageProgram) -> dict[str, Any]:
    stage, width = opened.stage, positions(opened.fields)
    rows = stage.batch_size // opened.shards
    return {
        "stage": stage.name,
        "objective": stage.objective.kind,
        "mesh": dict(opened.program.mesh.shape),
        "remat": opened.program.execution.remat,
        "episode": opened.episode,
        "episodes": opened.episodes,
        "trained_parameters": sum(x.size for x in opened.state.params.values()),
        "frozen_parameters": sum(x.size for x in opened.state.frozen.values()),
        "batch_size": stage.batch_size,
        "grad_accum": stage.grad_accum,
        "rows_per_device": rows,
        "batch_sizes_in_steps_of": opened.shards * stage.grad_accum,
        "positions_per_row": width,
        "positions_per_step": width * stage.batch_size,
        "remarks": remarks(opened),
    }


def _step(opened: StageProgram, outcome: Outcome, site: Site) -> dict[str, Any]:
    base = {"compile_seconds": round(outcome.seconds, 1), "reason": outcome.reason}
    if outcome.compiled is None:
        held = {"parameters": memory.parameters(opened), "optimizer": memory.optimizer(opened)}
        return base | {"fits": False, "memory": held | {"total": outcome.needs, "usable": site.usable}}
    bytes_ = memory.of_program(opened, outcome, opened.batch.values())
    module = Module.of(outcome.text)
    moves = collectives(module, dict(opened.program.mesh.shape))
    links = Links(site.chip, list(opened.program.mesh.devices.flat)) if site.chip else None
    flops, traffic = matmul_flops(module), memory_bytes(module)
    model_flops = _model_flops(opened) / opened.program.mesh.size
    estimate = None
    if site.chip and links:
        estimate = roofline(
            site.chip, flops=flops, model_flops=model_flops, memory_bytes=traffic,
            transfers=sum(links.seconds(one) for one in moves), tokens=tokens_of(opened),
        )  # fmt: skip
    if fits(bytes_.total, site) is False:
        base["reason"] = _too_large(bytes_.total, site)
    return base | {
        "fits": fits(bytes_.total, site),
        "memory": asdict(bytes_) | {"total": bytes_.total, "usable": site.usable},
        "flops": {"model": model_flops, "program": flops},
        "memory_traffic": traffic,
        "collectives": table(moves, links),
        "attention": _attention(opened, kernels(module)),
        "roofline": as_dict(estimate, site.chip) if estimate and site.chip else None,
    }


def tokens_of(opened: StageProgram) -> int:
    """Positions of a step, padding counted."""
    return positions(opened.fields) * opened.stage.batch_size


def _model_flops(opened: StageProgram) -> int:
    program = opened.program
    each = row_flops(program.model, opened.fields, program.heads, opened.groups, program.adapter_size)
    return opened.stage.batch_size * each


def fits(total: int, site: Site) -> bool | None:
    return None if site.usable is None else total <= site.usable


def _too_large(total: int, site: Site) -> str:
    assert site.chip is not None and site.usable is not None and site.chip.memory is not None
    share = "" if site.chip.torus else f", {site.usable / site.chip.memory:.0%} of the GPU's memory"
    return f"needs {spell_bytes(total)} of {spell_bytes(site.usable)}{share}"


def table(moves: Sequence[Collective], links: Links | None) -> list[dict[str, Any]]:
    """Collectives by kind and axes, those of different groups along the same axes added up."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in moves:
        row = rows.setdefault((one.kind, one.axes), {"kind": one.kind, "over": one.axes, "count": 0, "bytes": 0})
        row["count"] += one.count
        row["bytes"] += one.bytes
        if links:
            row["seconds"] = row.get("seconds", 0.0) + links.seconds(one)
    return list(rows.values())


def as_dict(estimate: Roofline, chip: Chip) -> dict[str, Any]:
    return asdict(estimate) | {
        "best": estimate.best,
        "step": estimate.step,
        "bound": estimate.bound,
        "tokens_per_second": estimate.tokens_per_second,
        "mfu": estimate.mfu(chip),
    }


def _attention(opened: StageProgram, found: dict[str, int]) -> dict[str, Any]:
    """The kernel that was compiled, its calls, and why the platform's own one was not."""
    execution, model = opened.program.execution, opened.program.model
    kernel, why = attention_kernel(found), None
    own = {"gpu": "cudnn", "tpu": "splash"}.get(execution.platform)
    if isinstance(model, BertConfig) and kernel == "xla" and own and execution.attention != "xla":
        try:
            choose(
                replace(execution, attention=own), length=opened.fields["input_ids"][0][0],
                head_dim=model.hidden_size // model.num_attention_heads, rate=model.attention_probs_dropout_prob,
            )  # fmt: skip
        except ValueError as error:
            why = str(error)
    return {"kernel": kernel, "calls": found, "why": why}


def _evaluation(opened: StageProgram, names: str, lower: Any, site: Site) -> dict[str, Any]:
    tell(f"stage {opened.stage.name}: compiling the evaluation {names} ...")
    outcome = compile_lowered(lower)
    found: dict[str, Any] = {"names": names, "compile_seconds": round(outcome.seconds, 1), "reason": outcome.reason}
    if outcome.compiled is None:
        return found | {"fits": False, "memory": {"total": outcome.needs, "usable": site.usable}}
    bytes_ = memory.of_program(opened, outcome)
    found["reason"] = _too_large(bytes_.total, site) if fits(bytes_.total, site) is False else ""
    held = asdict(bytes_) | {"total": bytes_.total, "usable": site.usable}
    return found | {"fits": fits(bytes_.total, site), "memory": held}
