"""Effects of the logical axis rules on a model and mesh: which arrays are sharded, and which cannot be."""

import re
from dataclasses import dataclass
from math import prod

from bertjax.plan.compile import StageProgram

ACTIVATION_AXES = ("batch", "sequence")  # logical axes that no parameter has


@dataclass(frozen=True)
class AppliedRule:
    """A logical axis that a rule maps to mesh axes of more than one device."""

    logical: str
    axes: str
    num_shards: int
    num_split: int  # parameters that it shards
    not_divisible: tuple[str, ...]  # "path[dimension]" of parameters that do not divide, all layers as one


def applied_rules(opened: StageProgram) -> list[AppliedRule]:
    """The rules that have an effect on this mesh, except those for activations only."""
    program = opened.program
    names, shapes = program.logical_axes(), program.abstract_params()
    found = []
    for logical, axes in program.rules.items():
        width = prod(program.mesh.shape[axis] for axis in axes)
        if width == 1 or logical in ACTIVATION_AXES:
            continue
        sizes = {path: shapes[path].shape[own.index(logical)] for path, own in names.items() if logical in own}
        left = (f"{path}[{size}]" for path, size in sizes.items() if size % width)
        replicated = dict.fromkeys(re.sub(r"layers/\d+", "layers/*", name) for name in left)
        split = sum(size % width == 0 for size in sizes.values())
        found.append(AppliedRule(logical, "+".join(axes), width, split, tuple(replicated)))
    return found


def sharding_notes(opened: StageProgram) -> list[str]:
    """One line for each avoidable cost of memory or communication."""
    lines = []
    for rule in applied_rules(opened):
        where = f"rule {rule.logical} -> {rule.axes}={rule.num_shards}"
        if not rule.num_split and not rule.not_divisible:
            lines.append(f"{where} matches no parameter")
        elif rule.not_divisible:
            more = f" and {len(rule.not_divisible) - 3} more" if len(rule.not_divisible) > 3 else ""
            lines.append(f"{where}: {', '.join(rule.not_divisible[:3])}{more} does not divide and is replicated")
    return lines + _undivided_heads(opened) + _undivided_sequences(opened) + _unused_axes(opened)


def _undivided_heads(opened: StageProgram) -> list[str]:
    """Heads may not divide even if the attention kernels do."""
    program, heads = opened.program, opened.program.model.num_attention_heads
    width = prod(program.mesh.shape[axis] for axis in program.rules["heads"])
    if heads % width == 0:
        return []
    return [f"{heads} attention heads do not divide over {width}: every device computes all of them"]


def _undivided_sequences(opened: StageProgram) -> list[str]:
    axes = opened.program.rules.get("sequence", ())
    width = prod(opened.program.mesh.shape[axis] for axis in axes)
    parts = opened.program.objective.sequences(opened.fields)
    lengths = {opened.fields[name][0][0] // parts for name in ("input_ids", "target_ids") if name in opened.fields}
    return [
        f"rule sequence -> {'+'.join(axes)}={width}: rows of {length} positions do not divide and are replicated"
        for length in sorted(lengths)
        if length % width
    ]


def _unused_axes(opened: StageProgram) -> list[str]:
    """Mesh axes along which nothing is sharded."""
    program = opened.program
    used = {axis for rule in applied_rules(opened) if rule.num_split for axis in rule.axes.split("+")}
    used |= set(program.rules["batch"])
    idle = [axis for axis, size in program.mesh.shape.items() if size > 1 and axis not in used]
    return [f"mesh.{axis}={program.mesh.shape[axis]} shards nothing: its devices all do the same work" for axis in idle]
