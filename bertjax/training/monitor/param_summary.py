"""Summarize a model's parameters as a table."""

from collections.abc import Mapping
from math import prod
from typing import Any

from jax.sharding import NamedSharding

from bertjax.training.freezing import group_sizes


def model_summary(
    params: Mapping[str, Any],
    param_shardings: Mapping[str, NamedSharding],
    trained: tuple[str, ...],
    factors: Mapping[str, float] | None = None,
) -> str:
    """A line for each parameter (path, shape, PartitionSpec, count), then totals by group, `*` on those that train.

    factors: {path: factor of the learning rate}, shown as `lr x 0.1` for the parameters that have one.
    """
    rows = []
    for path in sorted(params, key=_natural):
        shape, spec = params[path].shape, tuple(param_shardings[path].spec)
        rows.append((path, "x".join(map(str, shape)), str(spec), f"{prod(shape):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    notes = {path: f"  lr x {factor:.4g}" for path, factor in (factors or {}).items()}
    lines = [
        f"{p:<{widths[0]}}  {s:>{widths[1]}}  {w:<{widths[2]}}  {n:>{widths[3]}}{notes.get(p, '')}"
        for p, s, w, n in rows
    ]
    lines.append("")
    counts = group_sizes(params)
    width = max(14, *map(len, counts))
    lines += [f"{'*' if group in trained else ' '} {group:<{width}} {count:>14,}" for group, count in counts.items()]
    trainable = sum(count for group, count in counts.items() if group in trained)
    lines.append(f"  {'total':<{width}} {sum(counts.values()):>14,}  (* trains: {trainable:,})")
    return "\n".join(lines) + "\n"


def _natural(path: str) -> list[tuple[bool, int, str]]:
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.split("/")]
