"""A plan as text."""

from collections.abc import Sequence
from typing import Any

from bertjax.parallel.mesh_shape import format_mesh
from bertjax.plan.estimate import ASSUMPTIONS
from bertjax.plan.memory import MIB, format_bytes

_PARTS = {
    "parameters": "parameters, float32",
    "optimizer": "optimizer state",
    "batch": "batch, keys, padding of small arrays",
    "temporaries": "activations, gradients, buffers",
    "outputs": "results not written in place",
    "program": "program code",
}


def format_text(plan: dict[str, Any]) -> str:
    lines = [f"{plan['config']} on {plan['topology']}: {_describe_target(plan)}", ""]
    for stage in plan["stages"]:
        lines += [*stage_lines(stage), ""]
    if any(stage["roofline"] for stage in plan["stages"] if "roofline" in stage):
        lines.append(f"Times are {ASSUMPTIONS}.")
    return "\n".join(lines + [verdict(plan)])


def verdict(plan: dict[str, Any]) -> str:
    if bad := [stage["stage"] for stage in plan["stages"] if not _stage_fits(stage)]:
        return f"does not fit: stage {', '.join(bad)}"
    known = all(stage["fits"] for stage in plan["stages"])
    return "fits" if known else "compiles; the memory of these devices is unknown"


def all_fit(plan: dict[str, Any]) -> bool:
    return all(_stage_fits(stage) for stage in plan["stages"])


def _stage_fits(stage: dict[str, Any]) -> bool:
    return stage["fits"] is not False and all(one["fits"] is not False for one in stage["evaluations"])


def _describe_target(plan: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in plan["versions"].items())
    slices = f" in {plan['slices']} slices" if plan["slices"] > 1 else ""
    return f"{plan['devices']} x {plan['device_kind']}{slices} ({versions})"


def stage_lines(stage: dict[str, Any]) -> list[str]:
    accum = f" in {stage['grad_accum']} micro-batches" if stage["grad_accum"] > 1 else ""
    episode = f", episode {stage['episode']} of 0..{stage['episodes'] - 1}" if stage["episodes"] > 1 else ""
    frozen = f" ({stage['frozen_parameters']:,} frozen)" if stage["frozen_parameters"] else ""
    teacher = f", teacher of {stage['teacher_parameters']:,}" if "teacher_parameters" in stage else ""
    remat = f", remat {stage['remat']}" if stage["remat"] != "none" else ""
    unit = stage["batch_sizes_in_steps_of"]
    lines = [
        f"stage {stage['stage']}{episode}: {stage['objective']}, mesh {format_mesh(stage['mesh'])}{remat}",
        f"  trains {stage['trained_parameters']:,} parameters{frozen}{teacher}",
        f"  {stage['batch_size']} rows of {stage['positions_per_row']} positions per step{accum}; "
        f"{stage['rows_per_device']} on each device (batch_size: any multiple of {unit})",
        *_memory(stage),
    ]
    if "collectives" in stage:
        lines += [_attention(stage["attention"]), *_collectives(stage["collectives"]), *_roofline(stage)]
    lines += [f"  note: {note}" for note in stage["notes"]]
    return lines + [line for one in stage["evaluations"] for line in _evaluation(one)]


def _memory(stage: dict[str, Any]) -> list[str]:
    memory, seconds = stage["memory"], f"compiled in {stage['compile_seconds']} s"
    total, usable = memory["total"], memory["usable"]
    if stage["fits"] is False:
        head = f"  DOES NOT FIT: {stage['reason']}"
    elif usable is None:
        head = f"  {format_bytes(total)} on each device, {seconds}"
    else:
        share = f"{format_bytes(total)} of {format_bytes(usable)} on each device ({total / usable:.0%})"
        head = f"  fits: {share}, {seconds}"
    parts = [f"    {format_bytes(memory[name]):>12}  {words}" for name, words in _PARTS.items() if memory.get(name)]
    return [head, *parts]


def _attention(attention: dict[str, Any]) -> str:
    why = f" ({attention['why']})" if attention["why"] else ""
    calls = ", ".join(f"{name} x {count}" for name, count in attention["calls"].items())
    return f"  attention kernel: {attention['kernel']}{why}{': ' + calls if calls else ''}"


def _collectives(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["  no collectives"]
    lines = [f"  {'collectives, each device and step':<36}{'over':<20}{'runs':>6}{'full MiB':>12}{'ms':>10}"]
    for row in rows:
        ms = f"{row['seconds'] * 1e3:.2f}" if "seconds" in row else ""
        lines.append(f"    {row['kind']:<34}{row['over']:<20}{row['count']:>6}{row['bytes'] / MIB:>12.2f}{ms:>10}")
    return lines


def _roofline(stage: dict[str, Any]) -> list[str]:
    flops, found = stage["flops"], stage["roofline"]
    more = flops["program"] / max(flops["model"], 1) - 1
    unit, name = (1e12, "TFLOP") if flops["model"] >= 1e11 else (1e9, "GFLOP")
    extra = f", {more:+.0%} in the program (recomputation, or work that is not sharded)" if more > 0.05 else ""
    lines = [f"  model FLOPs: {flops['model'] / unit:,.3g} {name} per device and step{extra}"]
    if found is None:
        return lines
    ms = {name: f"{found[name] * 1e3:.3g}" for name in ("compute", "memory", "collectives", "step", "best")}
    return [
        *lines,
        f"  roofline, ms: compute {ms['compute']}, memory {ms['memory']}, collectives {ms['collectives']}; "
        f"bound by {found['bound']}",
        f"  step: {ms['step']} ms without overlap, {ms['best']} ms with full overlap; "
        f"{found['tokens_per_second']:,.0f} positions/s, MFU {found['mfu']:.0%} (at {ms['step']} ms)",
    ]


def _evaluation(one: dict[str, Any]) -> list[str]:
    total = one["memory"]["total"]
    size = f"{format_bytes(total)} on each device, " if total else ""
    verdict = "" if one["fits"] is None else "fits: " if one["fits"] else f"DOES NOT FIT: {one['reason']}; "
    return [f"  evaluation {one['names']}: {verdict}{size}compiled in {one['compile_seconds']} s"]
