"""The page of several runs side by side."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.report import comparison
from bertjax.report.charts import Chart, Series, figure, key_html
from bertjax.report.comparison import ABSENT, ComparedRun
from bertjax.report.page import device_text, save_text
from bertjax.report.parts import (
    FRACTIONS,
    PERCENTAGES,
    details,
    html_document,
    metric_label,
    number_html,
    score_text,
    table,
    text_html,
)
from bertjax.report.record import StageRecord, is_finite
from bertjax.report.stages import is_loss
from bertjax.training.monitor import console

MAX_CHARTS = 12  # of a stage
_SINGLE = {
    "learning_rate": ("Learning rate", "rate"),
    "grad_norm": ("Gradient norm", ""),
    "tokens_per_second": ("Tokens per second", "count"),
}
_TABS = {"step": "by step", "tokens": "by tokens", "seconds": "by training time"}


def write_comparison(paths: Sequence[Path], output: Path) -> Path:
    """Write one page about two or more runs and return its path. Raises UserError and StorageError."""
    runs = comparison.read_runs(paths)
    aligned = comparison.stage_names(runs)
    body = [_header(runs), _facts(runs), _options(runs), _scores(runs)]
    shared = {name: stages for name, stages in aligned.items() if sum(map(bool, stages)) > 1}
    if not shared:
        none = "These runs have no stage in common, so there are no curves to compare."
        body.append(f'<section id="stages"><h2>Stages</h2><p>{none} {_only(runs, aligned)}</p></section>')
    for place, (name, stages) in enumerate(shared.items(), 1):
        body.append(_stage(runs, name, stages, place))
    if shared and (rest := _only(runs, {name: one for name, one in aligned.items() if name not in shared})):
        body.append(f'<p class="muted below">{rest}</p>')
    notes = "Tokens are the logged rate times the time of a step; training time counts all restarts."
    return save_text(output, html_document(_title(runs), filter(None, [*body, f"<footer>{notes}</footer>"])))


def _title(runs: Sequence[ComparedRun]) -> str:
    return f"{len(runs)} runs side by side"


def _only(runs: Sequence[ComparedRun], aligned: Mapping[str, list[StageRecord | None]]) -> str:
    """The stages that only one run has, as HTML."""
    parts = []
    for number, run in enumerate(runs):
        own = [name for name, stages in aligned.items() if stages[number] and sum(map(bool, stages)) == 1]
        if own:
            names = html.escape(", ".join(own))
            parts.append(f"Only {html.escape(run.label)} has the stage{'s' * (len(own) > 1)} {names}.")
    return " ".join(parts)


def _header(runs: Sequence[ComparedRun]) -> str:
    keys = "".join(key_html(i, run.label) for i, run in enumerate(runs))
    return (
        f'<header><p class="eyebrow">bertjax comparison</p><div class="title"><h1>{_title(runs)}</h1></div>'
        f'<p class="facts">{keys}</p></header>'
    )


def _facts(runs: Sequence[ComparedRun]) -> str:
    rows = []
    for run in runs:
        record = run.record
        lines = [line for stage in record.stages for line in stage.train]
        done = sum(stage.finished for stage in record.stages)
        state = "finished" if record.stages and done == len(record.stages) else f"{done} of {len(record.stages)} stages"
        highest = lambda key, lines=lines: max((x[key] for x in lines if is_finite(x.get(key))), default=None)  # noqa: E731
        trained = highest("trainable_parameters")
        steps = sum(stage.train[-1]["step"] for stage in record.stages if stage.train)
        restarts = sum(len(stage.resumes) for stage in record.stages)
        rows.append([
            html.escape(run.label), state, number_html(steps), console.duration(highest("elapsed")),
            console.duration(record.wall_seconds), number_html(restarts),
            console.compact(trained) if trained is not None else "n/a",
            html.escape(device_text(record.environment) or "n/a"),
        ])  # fmt: skip
    head = ("Run", "State", "Steps", "Training time", "Wall time", "Resumes", "Parameters trained", "Device")
    return f'<section id="runs"><h2>Runs</h2>{table(head, rows, numbers=range(2, 7))}</section>'


def _options(runs: Sequence[ComparedRun]) -> str:
    unread = [run.label for run in runs if not run.learned]
    note = ""
    if unread:
        names = html.escape(", ".join(unread))
        note = f'<p class="muted">The configuration of {names} could not be read and is left out.</p>'
    known = [run for run in runs if run.learned]
    if len(known) < 2:
        return f'<section id="options"><h2>Options that differ</h2>{note}</section>'
    learned = comparison.differences([run.learned for run in known])
    body = note + (_option_table(known, learned) if learned else "<p>None of those that decide what is learned.</p>")
    if others := comparison.differences([run.others for run in known]):
        title = f"{len(others):,} other options that differ (devices, arithmetic, logging, evaluations)"
        body += details(title, _option_table(known, others))
    return f'<section id="options"><h2>Options that differ</h2>{body}</section>'


def _option_table(runs: Sequence[ComparedRun], found: Mapping[str, Sequence[Any]]) -> str:
    rows = [[html.escape(key).replace(".", ".<wbr>"), *map(_option, values)] for key, values in found.items()]
    shown = table(("Option", *(run.label for run in runs)), rows)
    return shown.replace("<table>", '<table class="differs">', 1)


def _option(value: Any) -> str:
    if value is ABSENT:
        return '<span class="muted">not set</span>'
    return text_html(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), '""')


def _scores(runs: Sequence[ComparedRun]) -> str:
    rows = comparison.scores(runs)
    if not rows:
        return '<section id="scores"><h2>Scores</h2><p class="muted">No score is in two of these runs.</p></section>'
    shown, unequal = [], False
    for row in rows:
        best = row.best
        cells = []
        for value in row.values:
            text = "n/a" if value is None else score_text(row.metric, value)
            cells.append(f'<span class="best">{text}</span>' if value is not None and value == best else text)
        unequal |= row.same_data is False
        mark = " †" if row.same_data is False else ""
        shown.append(
            [html.escape(row.stage), html.escape(row.evaluation) + mark, metric_label(html.escape(row.metric)), *cells]
        )
    head = ("Stage", "Evaluation", "Score", *(run.label for run in runs))
    note = '<p class="small muted below">The best value of a row is bold.'
    note += " † Not scored on the same data, so these values cannot be compared." * unequal
    return f'<section id="scores"><h2>Scores</h2>{table(head, shown, numbers=range(3, len(head)))}{note}</p></section>'


def _stage(runs: Sequence[ComparedRun], name: str, stages: Sequence[StageRecord | None], place: int) -> str:
    tabs, panels = "", ""
    for unit in comparison.X_UNITS:
        charts = _charts(runs, stages, unit)
        if not charts:
            continue
        key = f"stage-{place}-{unit}"
        checked = "" if tabs else " checked"
        tabs += f'<input type="radio" name="stage-{place}" id="{key}"{checked}><label for="{key}">{_TABS[unit]}</label>'
        narrow = sum(not chart.wide for chart in charts)
        panels += f'<div class="charts{" two" * (narrow in (2, 4))}">{"".join(map(figure, charts))}</div>'
    missing = [run.label for run, stage in zip(runs, stages, strict=True) if stage is None or not stage.train]
    note = f'<p class="muted">Without steps of this stage: {html.escape(", ".join(missing))}.</p>' if missing else ""
    body = f'<div class="tabs">{tabs}{panels}</div>' if panels else '<p class="muted">No steps are logged yet.</p>'
    return f'<section id="stage-{place}"><h2>Stage {html.escape(name)}</h2>{note}{body}</section>'


def _charts(runs: Sequence[ComparedRun], stages: Sequence[StageRecord | None], unit: str) -> list[Chart]:
    """A chart for each metric that a run has, with one colour for each run."""
    points = [_points(stage) if stage else {} for stage in stages]
    trained = {key for one in points for key, evaluation in one if not evaluation}
    evaluations = {name for one in points for _, name in one if name}
    found: dict[tuple[str, str], list[Series]] = {}
    for number, (run, stage) in enumerate(zip(runs, stages, strict=True)):
        if stage is None:
            continue
        place = comparison.positions(stage, comparison.stage_starts(run.record)[stage.name], unit)
        if place is None:
            continue
        for (key, evaluation), pairs in points[number].items():
            scale = 100 if key.endswith(FRACTIONS) else 1
            values = [scale * value if is_finite(value) else float("nan") for _, value in pairs]
            if any(map(is_finite, values)):
                # The only evaluation of a metric is in the chart of its training curve.
                chart = (key, "" if key in trained and len(evaluations) == 1 else evaluation)
                series = Series(run.label, place([s for s, _ in pairs]), values, number, points=bool(evaluation))
                found.setdefault(chart, []).append(series)
    charts = [_chart(*key, series, unit) for key, series in found.items()]
    charts.sort(key=lambda chart: (not chart.wide, chart.title in dict(_SINGLE.values())))
    return charts[:MAX_CHARTS]


def _chart(key: str, evaluation: str, series: list[Series], unit: str) -> Chart:
    if key in _SINGLE:
        title, scale = _SINGLE[key]
        return Chart(title, series, scale, unit, smoothed=key == "grad_norm")
    scale = "%" if key.endswith("_accuracy") or key.lower().endswith(PERCENTAGES) else ""
    label = metric_label(key)
    title = f"{evaluation}: {label}" if evaluation else label[:1].upper() + label[1:]
    return Chart(title, series, scale, unit, wide=key == "loss" and not evaluation)


def _points(stage: StageRecord) -> dict[tuple[str, str], list[tuple[int, Any]]]:
    """(step, value) by (metric, evaluation), the evaluation "" for training."""
    wanted = lambda key: is_loss(key) or key.endswith("_accuracy") or key in _SINGLE  # noqa: E731
    found: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for line in stage.train:
        for key in filter(wanted, line):
            if "/" not in key:  # not the tasks of a mixture
                found.setdefault((key, ""), []).append((line["step"], line[key]))
    for line in stage.evals:
        for key in line["scores"]:
            if is_loss(key) or key.lower().endswith(PERCENTAGES):
                found.setdefault((key, line["name"]), []).append((line["step"], line["scores"][key]))
    if len([1 for key, evaluation in found if not evaluation and key.endswith("_loss")]) == 1:  # equals the total
        found = {(k, e): v for (k, e), v in found.items() if e or not k.endswith("_loss") or ("loss", "") not in found}
    for name in {e for k, e in found if k == "exact"}:
        found.pop(("exact_match", name), None)
    return found
