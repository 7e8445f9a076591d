"""The collectives of one step, by kind and by the mesh axes they span."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from bertjax.plan.hlo.module import HloModule, HloOp, parse_arrays

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))?\s*\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
NO_AXES = "none"  # groups of one device


@dataclass(frozen=True)
class Collective:
    """The collectives of one kind and group in a step."""

    kind: str  # one of KINDS
    axes: str  # the mesh axes its groups span: data, data+fsdp, ..., or "part of fsdp"
    count: int  # executions per step
    bytes: int  # per step and device, of full arrays (after a gather, before a scatter)
    group: tuple[int, ...]  # mesh indices of the devices of its first group


def find_collectives(module: HloModule, mesh: Mapping[str, int] | None = None) -> list[Collective]:
    """The collectives of a program over a mesh {axis: size}, summed by kind and group; without a mesh `axes` is "".

    A TPU program spreads one collective over several fusions (one chain_id), and writes a reduce-scatter as an
    all-reduce in a fusion of that name.
    """
    found: dict[tuple[str, tuple[int, ...]], Collective] = {}
    chains: set[tuple[str, str]] = set()
    for operation, computation, times, _ in module.executed_ops:
        kind = operation.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        chain = operation.attribute(r'chain_id="(\d+)"')
        if chain and (kind, chain) in chains:
            continue
        chains.add((kind, chain or ""))
        groups = parse_replica_groups(operation, prod(mesh.values()) if mesh else 1)
        size = _full_bytes(operation, kind, len(groups[0]))
        kind = "reduce-scatter" if "all-reduce-scatter" in computation else kind
        axes = spanned_axes(groups, mesh) if mesh else ""
        if mesh and axes == NO_AXES:
            continue  # nothing moves
        key = (kind, groups[0] if mesh else ())
        before = found.get(key, Collective(kind, axes, 0, 0, groups[0]))
        found[key] = replace(before, count=before.count + times, bytes=before.bytes + times * size)
    return sorted(found.values(), key=lambda c: (-c.bytes, c.kind, c.axes))


def _full_bytes(operation: HloOp, kind: str, group: int) -> int:
    """Bytes of the full arrays. The result of an asynchronous start includes its operands."""
    result = operation.result
    if operation.opcode == "all-gather-start":
        result = parse_arrays(_second_element(operation.type)) or result
    if operation.opcode == "collective-permute-start":
        result = result[1:2]
    return sum(array.bytes for array in result) * (group if kind == "reduce-scatter" else 1)


def _second_element(type_: str) -> str:
    """The part of a tuple type `(first, second, ...)` after its first top-level comma."""
    depth = 0
    for at, letter in enumerate(type_):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            return type_[at + 1 :]
    return ""


def parse_replica_groups(operation: HloOp, devices: int) -> list[tuple[int, ...]]:
    """The groups of communicating devices; one group of all `devices` if the program names none."""
    text = operation.rest
    if found := _MESH.search(text):
        return _mesh_groups(found[1], found[2], found[3])
    if found := _IOTA.search(text):
        shape, bounds, order = (_numbers(part) for part in found.groups())
        ids = np.arange(prod(bounds)).reshape(bounds)
        ids = ids.transpose(order) if order else ids
        return [tuple(row) for row in ids.reshape(shape).tolist()]
    if (found := _LISTS.search(text)) and found[1]:
        return [tuple(_numbers(part)) for part in re.findall(r"\{([\d,]*)\}", found[1])]
    if found := _PAIRS.search(text):
        return _connected_groups([tuple(_numbers(part)) for part in re.findall(r"\{(\d+,\d+)\}", found[1])])
    return [tuple(range(devices))]


def _numbers(text: str | None) -> list[int]:
    return [int(part) for part in (text or "").split(",") if part]


def _mesh_groups(sizes: str, order: str | None, axes: str) -> list[tuple[int, ...]]:
    """mesh['a'=4,'b'=2] {'a'}: the groups span a, or a part of it, 'a':(1)2 (xla/hlo/ir/mesh_and_axis.cc).

    `order`: device numbers of the mesh if not 0, 1, 2...: a list, or [4,2]T(1,0).
    """
    shape = {name: int(size) for name, size in re.findall(r"'?([\w.-]+)'?=(\d+)", sizes)}
    named = re.findall(r"'?([\w.-]+)'?(?::\((\d+)\)(\d+))?", axes)
    taken = {name: (int(before or 1), int(size or shape[name])) for name, before, size in named}
    bounds: list[int] = []
    along: list[int] = []
    for name, size in shape.items():
        before, piece = taken.get(name, (1, size))
        along += [len(bounds) + 1] if name in taken else []
        bounds += [before, piece, size // before // piece]
    ids = _device_ids(order, prod(bounds)).reshape(bounds)
    across = [axis for axis in range(len(bounds)) if axis not in along]
    return [tuple(row) for row in ids.transpose(across + along).reshape(-1, prod(bounds[a] for a in along)).tolist()]


def _device_ids(order: str | None, devices: int) -> np.ndarray:
    if order and (found := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)):
        bounds, axes = _numbers(found[1]), _numbers(found[2])
        return np.arange(devices).reshape(bounds).transpose(axes or None)
    return np.array(_numbers(order)) if order else np.arange(devices)


def _connected_groups(pairs: list[tuple[Any, ...]]) -> list[tuple[int, ...]]:
    """Groups of devices connected by sends."""
    group: dict[int, set[int]] = {}
    for source, target in pairs:
        joined = group.get(source, {source}) | group.get(target, {target})
        group |= dict.fromkeys(joined, joined)
    return sorted({tuple(sorted(members)) for members in group.values()}) or [(0,)]


def spanned_axes(groups: Sequence[tuple[int, ...]], mesh: Mapping[str, int]) -> str:
    """Names of the mesh axes that the groups span, in mesh order."""
    names, shape = list(mesh), tuple(mesh.values())
    spanned: set[int] = set()
    for group in groups:
        places = np.array(np.unravel_index(np.array(group), shape))
        spanned |= {axis for axis in range(len(names)) if len(set(places[axis].tolist())) > 1}
    if not spanned:
        return NO_AXES
    label = "+".join(names[axis] for axis in sorted(spanned))
    return label if all(len(group) == prod(shape[axis] for axis in spanned) for group in groups) else f"part of {label}"
