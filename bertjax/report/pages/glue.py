"""The page of `bertjax glue`: averages, the scores of each task over its seeds, and the curves of its runs."""

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.evaluation.metrics.glue_average import TITLES
from bertjax.report.charts import Chart, Series, figure
from bertjax.report.page import save_text
from bertjax.report.parts import details, html_document, table
from bertjax.report.record import is_finite, read_run
from bertjax.training.monitor import console

_AVERAGES = {"bert_paper": "BERT paper's average", "glue": "GLUE average"}
METRIC_NAMES = {
    "matthews": "Matthews", "accuracy": "accuracy", "f1": "F1", "spearman": "Spearman", "pearson": "Pearson",
    "accuracy_matched": "accuracy, matched", "accuracy_mismatched": "accuracy, mismatched",
}  # fmt: skip


def write_glue_page(found: Mapping[str, Any], output: Path) -> Path:
    """Write the page for the content of glue.json and return its path. Raises StorageError."""
    body = [_header(found), _tiles(found), _scores(found)]
    body += [_task(name, about, output.parent) for name, about in found["tasks"].items()]
    notes = "Scores are of the development sets, in percent; the table has their median over the seeds."
    return save_text(output, html_document("GLUE", filter(None, [*body, f"<footer>{notes}</footer>"])))


def _header(found: Mapping[str, Any]) -> str:
    facts = {"start": found["init"], "data": found["data"], "seeds": ", ".join(map(str, found["seeds"]))}
    facts["checkpoint"] = "best on development data" if found["select"] == "best" else "last"
    if found["limit"]:
        facts["limit"] = f"{found['limit']:,} examples of each set"
    listed = "".join(f"<div><dt>{k}</dt><dd>{html.escape(str(v))}</dd></div>" for k, v in facts.items())
    return (
        '<header><p class="eyebrow">bertjax GLUE report</p><div class="title"><h1>GLUE</h1></div>'
        f'<dl class="facts">{listed}</dl></header>'
    )


def _tiles(found: Mapping[str, Any]) -> str:
    tiles = ""
    for key, name in _AVERAGES.items():
        about = found["averages"][key]
        if about["average"] is None:
            continue
        titles = [TITLES[task] for task in about["missing"]]
        part = f", partial: without {', '.join(titles)}" if titles else ""
        tiles += f'<div class="tile"><b>{about["average"]:.2f}</b><span>{html.escape(name + part)}</span></div>'
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _scores(found: Mapping[str, Any]) -> str:
    rows = []
    for about in found["tasks"].values():
        metrics = {METRIC_NAMES[name]: values for name, values in about["metrics"].items()}
        metrics |= {"Matthews, diagnostic set": about["ax"]["matthews"]} if "ax" in about else {}
        for name, values in metrics.items():
            width = min(max(values["median"], 0.0), 100.0)
            bar = f'<span class="bar"><i style="width:{width:.1f}%"></i></span>'
            numbers = [f"{values[key]:.2f}" for key in ("median", "min", "max")]
            rows.append([html.escape(about["title"]), html.escape(name), *numbers, bar])
    if not rows:
        return ""
    head = ("Task", "Metric", "Median", "Lowest", "Highest", "Median, 0 to 100")
    return f'<section id="scores"><h2>Scores</h2>{table(head, rows, numbers=(2, 3, 4))}{_submission(found)}</section>'


def _submission(found: Mapping[str, Any]) -> str:
    about = found.get("submission")
    if not about:
        return ""
    made = f"Test predictions are in {about['folder']}, from the run with the {about['from']} score of each task."
    if about["archive"]:
        made += f" The archive for gluebenchmark.com is {about['archive']}."
    else:
        made += f" There is no archive, since the server wants these files too: {', '.join(about['missing'])}."
    return f'<p class="muted below">{html.escape(made)}</p>'


def _task(name: str, about: Mapping[str, Any], folder: Path) -> str:
    """Runs, data and curves of a task."""
    runs = [*about["runs"], *about.get("other_points", ())]
    metrics = list(about["metrics"])
    rows = []
    for one in runs:
        scores = [f"{one['scores'][m]:.2f}" if m in one["scores"] else "diverged" for m in metrics]
        point = " ".join(f"{k}={v}" for k, v in one.get("grid", {}).items())
        place = html.escape(os.path.relpath(one["run"], folder))
        took = console.duration(one["seconds"]) if is_finite(one.get("seconds")) else "n/a"
        rows.append([place, html.escape(point), str(one["seed"]), console.number(one["step"] or 0), *scores, took])
    head = ("Run", "Grid", "Seed", "Step", *(METRIC_NAMES[m] for m in metrics), "Training time")
    shown = table(head, rows, numbers=range(2, len(head)))
    if not any(one.get("grid") for one in runs):
        shown = table(("Run", *head[2:]), [[row[0], *row[2:]] for row in rows], numbers=range(1, len(head) - 1))
    counts = ", ".join(f"{split} {count:,}" for split, count in about["rows"].items())
    left = [f"{n:,} of {split} {reason}" for split, why in about["left_out"].items() for reason, n in why.items()]
    text = f"{about['source']}: {counts}" + (f"; left out: {'; '.join(left)}" if left else "")
    return (
        f'<section id="{name}"><h2>{html.escape(about["title"])}</h2>{shown}{_curves(runs)}'
        f"{details('Data', f'<p>{html.escape(text)}</p>')}</section>"
    )


def _curves(runs: list[Mapping[str, Any]]) -> str:
    """The training losses of the runs whose log can be read."""
    series: list[Series] = []
    for one in runs:
        try:
            lines = [line for stage in read_run(Path(one["run"])).stages for line in stage.train]
        except UserError:
            continue
        points = [(line["step"], line["loss"]) for line in lines if is_finite(line.get("loss"))]
        if points:
            label = " ".join([*(f"{k}={v}" for k, v in one.get("grid", {}).items()), f"seed {one['seed']}"])
            series.append(Series(label, [x for x, _ in points], [y for _, y in points], len(series)))
    if not series:
        return ""
    return f'<div class="charts below">{figure(Chart("Training loss", series, wide=True))}</div>'
