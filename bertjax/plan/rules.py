"""What the logical axis rules do to a model on a mesh: which arrays they split, and which stay whole."""

import re
from dataclasses import dataclass
from math import prod

from bertjax.config.model_schema import T5Config
from bertjax.models import family
from bertjax.plan.compile import StageProgram

ACTIVATIONS = ("batch", "sequence")  # logical axes that no parameter has


@dataclass(frozen=True)
class Rule:
    """A logical axis that a rule puts on mesh axes of more than one device.

    Attributes:
        split: how many parameters it splits.
        whole: "path[dimension]" of those whose dimension does not divide, layers counted together.
    """

    logical: str
    axes: str
    width: int
    split: int
    whole: tuple[str, ...]


def applied(opened: StageProgram) -> list[Rule]:
    """The rules that this mesh gives something to do, except those of activations alone."""
    program = opened.program
    _, abstract = family.structure(
        program.model, program.heads, program.objective.num_labels, adapter_size=program.adapter_size
    )
    names, shapes = family.logical_axes(abstract), program.abstract_params()
    found = []
    for logical, axes in program.rules.items():
        width = prod(program.mesh.shape[axis] for axis in axes)
        if width == 1 or logical in ACTIVATIONS:
            continue
        sizes = {path: shapes[path].shape[own.index(logical)] for path, own in names.items() if logical in own}
        whole = dict.fromkeys(f"{_any_layer(path)}[{size}]" for path, size in sizes.items() if size % width)
        split = sum(size % width == 0 for size in sizes.values())
        found.append(Rule(logical, "+".join(axes), width, split, tuple(whole)))
    return found


def _any_layer(path: str) -> str:
    return re.sub(r"layers/\d+", "layers/*", path)


def remarks(opened: StageProgram) -> list[str]:
    """One line for each thing that costs memory or traffic and that the configuration could change."""
    lines = []
    for rule in applied(opened):
        where = f"rule {rule.logical} -> {rule.axes}={rule.width}"
        if not rule.split and not rule.whole:
            lines.append(f"{where} matches no parameter")
        elif rule.whole:
            shown = ", ".join(rule.whole[:3]) + (f" and {len(rule.whole) - 3} more" if len(rule.whole) > 3 else "")
            lines.append(f"{where}: {shown} cannot be divided and stays whole on every device")
    return lines + _heads(opened) + _sequences(opened) + _idle(opened)


def _heads(opened: StageProgram) -> list[str]:
    """The kernels of attention may divide where its heads do not."""
    model, program = opened.program.model, opened.program
    heads = model.num_heads if isinstance(model, T5Config) else model.num_attention_heads
    width = prod(program.mesh.shape[axis] for axis in program.rules["heads"])
    if heads % width == 0:
        return []
    return [f"{heads} attention heads do not divide over {width}: every device computes all of them"]


def _sequences(opened: StageProgram) -> list[str]:
    program = opened.program
    axes = program.rules.get("sequence", ())
    width = prod(program.mesh.shape[axis] for axis in axes)
    lengths = {opened.fields[name][0][0] for name in ("input_ids", "target_ids") if name in opened.fields}
    return [
        f"rule sequence -> {'+'.join(axes)}={width}: rows of {length} positions cannot be divided and stay whole"
        for length in sorted(lengths)
        if length % width
    ]


def _idle(opened: StageProgram) -> list[str]:
    """Mesh axes along which nothing is split: their devices all do the same."""
    program = opened.program
    used = {axis for rule in applied(opened) if rule.split for axis in rule.axes.split("+")}
    used |= set(program.rules["batch"])
    idle = [axis for axis, size in program.mesh.shape.items() if size > 1 and axis not in used]
    return [f"mesh.{axis}={program.mesh.shape[axis]} splits nothing: its devices all do the same work" for axis in idle]
