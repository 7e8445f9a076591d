"""What `bertjax glue` prints: its plan, and the table of scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from bertjax.report.pages.glue import METRIC_NAMES
from bertjax.tools.glue.tasks import TASKS

AVERAGES = {
    "bert_paper": "average of the BERT paper (table 1: without WNLI; F1 of MRPC and QQP, Spearman of STS-B)",
    "glue": "average of the GLUE leaderboard (nine tasks; the mean of a task's metrics)",
}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first two columns are texts and the others numbers."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    align = lambda row: [x.ljust(w) if i < 2 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]  # noqa: E731
    rule = [":" + "-" * (w - 1) if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (align(head), rule, *map(align, rows)))


def score_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """[task, metric, median, lowest, highest, scored seeds] of each metric, of the content of glue.json."""
    rows = []
    for about in found["tasks"].values():
        scored = sum("diverged" not in one for one in about["runs"])
        seeds = str(scored) if scored == len(about["runs"]) else f"{scored} of {len(about['runs'])}"
        metrics = {METRIC_NAMES[metric]: values for metric, values in about["metrics"].items()}
        metrics |= {"Matthews, diagnostic set AX": about["ax"]["matthews"]} if "ax" in about else {}
        for name, values in metrics.items():
            rows.append([about["title"], name, *(f"{values[key]:.2f}" for key in ("median", "min", "max")), seeds])
        if not metrics:
            rows.append([about["title"], "diverged", "-", "-", "-", seeds])
    return rows


def average_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, name in AVERAGES.items():
        about = found["averages"][key]
        if about["average"] is None:
            continue
        missing = ", ".join(TASKS[task].title for task in about["missing"])
        part = f"; PARTIAL, without {missing}" if missing else ""
        lines.append(f"{about['average']:.2f}  {name}{part}")
    return lines


def format_results(found: Mapping[str, Any]) -> str:
    """The content of glue.json as text."""
    head = ["task", "metric", "median", "lowest", "highest", "seeds"]
    grids = [
        f"{about['title']}: {' '.join(f'{k}={v}' for k, v in about['grid'].items())} (the best median)"
        for about in found["tasks"].values()
        if about.get("grid")
    ]
    parts = [markdown(head, score_rows(found)), "\n".join(average_lines(found)), "\n".join(grids), *notes(found)]
    return "\n\n".join(filter(None, parts))


def notes(found: Mapping[str, Any]) -> list[str]:
    """What is missing, limited or submitted, a text each."""
    said = [f"development sets only, {'the best' if found['select'] == 'best' else 'the last'} checkpoint of each run"]
    if found["missing"]:
        said.append(f"no data: {', '.join(TASKS[name].title for name in found['missing'])}")
    if found["limit"]:
        said.append(f"at most {found['limit']:,} examples of each training and development set (--limit)")
    if about := found.get("submission"):
        text = f"predictions of the tests: {about['folder']}, from the run with the {about['from']} score of each task"
        if about["archive"]:
            text += f"; for gluebenchmark.com: {about['archive']}"
        else:
            text += f"; no archive, since the server wants these too: {', '.join(about['missing'])}"
        said.append(text)
    return said


def format_plan(rows: Sequence[Mapping[str, Any]], missing: Sequence[str], limit: int | None) -> str:
    """The plan of --dry-run: {task, train, heldout, tests, steps, runs, finished} of each task."""
    lines = []
    for row in rows:
        done = f" ({row['finished']} finished)" if row["finished"] else ""
        lines.append([
            row["task"], ", ".join(row["runs"]) + done, f"{row['train']:,}", row["heldout"], row["tests"], row["steps"],
        ])  # fmt: skip
    table = markdown(["task", "runs", "train", "development", "test", "steps of a run"], lines)
    notes = [f"no data: {', '.join(TASKS[name].title for name in missing)}"] if missing else []
    notes += [f"at most {limit:,} examples of each training and development set; no test"] if limit else []
    count, steps = sum(len(row["runs"]) for row in rows), sum(row["all_steps"] for row in rows)
    return "\n".join([table, "", f"{count} runs, {steps:,} steps together", *notes])
