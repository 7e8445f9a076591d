"""The table of a ladder: a line per rung, means over its seeds."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bertjax.progress.text import compact

NOTE = (
    "Perplexity is that of each rung's own objective on held-out text; different kinds cannot be compared. Other "
    "scores are percentages; that of a task is its accuracy, for answers and entities F1. Chance is 50 for minimal "
    "pairs and for tasks with two classes."
)


def columns(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the scores that a rung can have, in the order of the table."""
    tasks = [
        f"{way} {task}" for way in ("frozen", "tuned") for task in dict.fromkeys(t for one in rungs for t in one[way])
    ]
    first = [name for name in ("minimal pairs", "analogies") if any(values(one, name) for one in rungs)]
    return [*first, *tasks]


def values(rung: Mapping[str, Any], column: str) -> list[float]:
    """A score of a rung, one for each seed that has it."""
    read: Callable[[Mapping[str, Any]], Any]
    if column == "minimal pairs":
        read = lambda one: (one.get("minimal_pairs") or {}).get("mean")  # noqa: E731
    elif column == "analogies":
        read = lambda one: (one.get("analogies") or {}).get("accuracy")  # noqa: E731
    else:
        way, task = column.split(" ", 1)
        return [x for x in rung[way].get(task, ()) if x is not None]
    return [x for one in rung["seeds"] if (x := read(one)) is not None]


def spread(found: Sequence[float], digits: int = 1) -> str:
    """Mean, and the standard deviation of more than one value; "-" of none."""
    if not found:
        return "-"
    mean = f"{statistics.fmean(found):.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ± {statistics.stdev(found):.{digits}f}"


def heldout_cell(rung: Mapping[str, Any]) -> str:
    """The held-out perplexity with its kind."""
    found = [one["heldout"] for one in rung["seeds"] if one.get("heldout")]
    if not found:
        return "-"
    shown = [x["value"] for x in found]
    return f"{spread(shown, 2 if max(shown) < 20 else 1)} ({found[0]['kind']})"


def table_cells(rungs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """-> the head, and a line per rung."""
    names = columns(rungs)
    lines = []
    for rung in rungs:
        first: Mapping[str, Any] = next((one for one in rung["seeds"] if "parameters" in one), {})
        sizes = [compact(first[key]) if first.get(key) else "-" for key in ("parameters", "tokens")]
        cells = [spread(values(rung, name)) for name in names]
        if rung["diverged"]:
            cells = [f"{cell} ({rung['diverged']} diverged)" if cell == "-" else cell for cell in cells]
        lines.append([rung["name"], *sizes, heldout_cell(rung), *cells])
    return ["rung", "parameters", "tokens read", "held-out perplexity", *names], lines


def format_markdown(found: Mapping[str, Any]) -> str:
    """The table and its notes."""
    head, lines = table_cells(found["rungs"])
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in rows)
    return "\n\n".join([text, *found["notes"]])
