"""What the logical axis rules do to a model on a mesh: which arrays they split, and which stay whole."""

import re
from dataclasses import dataclass
from math import prod

from bertjax.plan.compile import StageProgram

ACTIVATION_AXES = ("batch", "sequence")  # logical axes that no parameter has


@dataclass(frozen=True)
class AppliedRule:
    """A logical axis that a rule puts on mesh axes of more than one device.

    Attributes:
        num_split: how many parameters it splits.
        not_divisible: "path[dimension]" of those whose dimension does not divide, layers counted together.
    """

    logical: str
    axes: str
    num_shards: int
    num_split: int
    not_divisible: tuple[str, ...]


def applied_rules(opened: StageProgram) -> list[AppliedRule]:
    """The rules that this mesh gives something to do, except those of activations alone."""
    program = opened.program
    names, shapes = program.logical_axes(), program.abstract_params()
    found = []
    for logical, axes in program.rules.items():
        width = prod(program.mesh.shape[axis] for axis in axes)
        if width == 1 or logical in ACTIVATION_AXES:
            continue
        sizes = {path: shapes[path].shape[own.index(logical)] for path, own in names.items() if logical in own}
        whole = dict.fromkeys(f"{_any_layer(path)}[{size}]" for path, size in sizes.items() if size % width)
        split = sum(size % width == 0 for size in sizes.values())
        found.append(AppliedRule(logical, "+".join(axes), width, split, tuple(whole)))
    return found


def _any_layer(path: str) -> str:
    return re.sub(r"layers/\d+", "layers/*", path)


def sharding_notes(opened: StageProgram) -> list[str]:
    """One line for each thing that costs memory or traffic and that the configuration could change."""
    lines = []
    for rule in applied_rules(opened):
        where = f"rule {rule.logical} -> {rule.axes}={rule.num_shards}"
        if not rule.num_split and not rule.not_divisible:
            lines.append(f"{where} matches no parameter")
        elif rule.not_divisible:
            shown = ", ".join(rule.not_divisible[:3]) + (
                f" and {len(rule.not_divisible) - 3} more" if len(rule.not_divisible) > 3 else ""
            )
            lines.append(f"{where}: {shown} cannot be divided and stays whole on every device")
    return lines + _undivided_heads(opened) + _undivided_sequences(opened) + _unused_axes(opened)


def _undivided_heads(opened: StageProgram) -> list[str]:
    """The kernels of attention may divide where its heads do not."""
    program, heads = opened.program, opened.program.model.num_attention_heads
    width = prod(program.mesh.shape[axis] for axis in program.rules["heads"])
    if heads % width == 0:
        return []
    return [f"{heads} attention heads do not divide over {width}: every device computes all of them"]


def _undivided_sequences(opened: StageProgram) -> list[str]:
    program = opened.program
    axes = program.rules.get("sequence", ())
    width = prod(program.mesh.shape[axis] for axis in axes)
    lengths = {opened.fields[name][0][0] for name in ("input_ids", "target_ids") if name in opened.fields}
    return [
        f"rule sequence -> {'+'.join(axes)}={width}: rows of {length} positions cannot be divided and stay whole"
        for length in sorted(lengths)
        if length % width
    ]


def _unused_axes(opened: StageProgram) -> list[str]:
    """Mesh axes along which nothing is split: their devices all do the same."""
    program = opened.program
    used = {axis for rule in applied_rules(opened) if rule.num_split for axis in rule.axes.split("+")}
    used |= set(program.rules["batch"])
    idle = [axis for axis, size in program.mesh.shape.items() if size > 1 and axis not in used]
    return [f"mesh.{axis}={program.mesh.shape[axis]} splits nothing: its devices all do the same work" for axis in idle]
