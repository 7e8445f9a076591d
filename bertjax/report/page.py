"""The report page: header, headline numbers, stages, configuration and environment."""

import html
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bertjax.config.schema.run import SECRET_KEY
from bertjax.errors import StorageError
from bertjax.report.charts import Band, Chart, Mark, Series, figure
from bertjax.report.comparison import stage_starts
from bertjax.report.parts import (
    definition_list,
    details,
    html_document,
    metric_label,
    number_html,
    score_text,
    scores_list,
    table,
)
from bertjax.report.record import EvaluationResult, RunRecord, StageRecord, find_key, is_finite, read_run
from bertjax.report.stages import stage_section
from bertjax.storage.atomic import write_text_atomic
from bertjax.storage.nested import flatten
from bertjax.training.monitor import console

# Scores shown as tiles at the top of the page, in this order.
HEADLINES = ("f1", "exact", "accuracy", "mlm_accuracy", "nsp_accuracy", "pearson", "micro_f1", "perplexity", "loss")
UNKNOWN = "n/a"  # a column of the summary that has nothing else is left out


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of a run folder, finished or not, to `output` (default: its report.html) and return the path.

    The same folder gives the same bytes. Raises UserError without a run folder, StorageError when a write fails.
    """
    run = Path(run)
    record = read_run(run)
    target = run / "report.html" if output is None else Path(output)
    if target.is_dir():
        target = target / "report.html"
    body = [_header(record), _tiles(record), _summary(record), _baselines(record)]
    body += [stage_section(stage, place) for place, stage in enumerate(record.stages, 1)]
    body += [_provenance_section(record), _footer(record)]
    return save_text(target, html_document(record.name, filter(None, body)))


def save_text(target: Path, content: str) -> Path:
    """Write a page or its JSON, with the folders above it. Raises StorageError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(target, content)
    except OSError as error:
        raise StorageError(f"{target}: the report could not be written ({error.strerror or error})") from error
    return target


def _header(run: RunRecord) -> str:
    done = sum(stage.finished for stage in run.stages)
    if run.stages and done == len(run.stages):
        state = '<span class="pill good">finished</span>'
    else:
        state = f'<span class="pill fair">{done} of {len(run.stages)} stages finished</span>'
    versions = find_key(run.environment, "versions", "packages")
    listed = versions if isinstance(versions, Mapping) else {}
    shown = [f"{name} {listed[name]}" for name in ("bertjax", "jax", "flax", "orbax-checkpoint") if name in listed]
    facts = {"date": _date(run.started), "device": device_text(run.environment), "versions": ", ".join(shown) or None}
    return (
        f'<header><p class="eyebrow">bertjax training report</p><div class="title"><h1>{html.escape(run.name)}</h1>'
        f"{state}</div>{definition_list({k: v for k, v in facts.items() if v}, 'facts')}{_contents(run)}</header>"
    )


def _contents(run: RunRecord) -> str:
    """Links to the sections, where there are several stages."""
    links = [(f"stage-{place}", stage.name) for place, stage in enumerate(run.stages, 1)]
    if len(links) < 2:
        return ""
    links = [("summary", "Summary"), *links, ("made", "Configuration and environment")]
    listed = "".join(f'<a href="#{key}">{html.escape(name)}</a>' for key, name in links)
    return f'<nav aria-label="Contents">{listed}</nav>'


def _date(started: str | None) -> str | None:
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)\S*?(Z|\+00:00)?", started or "")
    return f"{match[1]} {match[2]}{' UTC' if match[3] else ''}" if match else started


def device_text(environment: Mapping[str, Any]) -> str | None:
    """Number and kind of the devices."""
    kind = find_key(environment, "device_kind", "device_kinds", "device", "platform", "backend")
    count = find_key(environment, "device_count", "devices", "num_devices")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind is None and isinstance(count, list) and count:
        kind = re.sub(r"^\d+: | \(.*$", "", str(count[0]))  # "0: NVIDIA H200 (cuda, process 0)"
    count = len(count) if isinstance(count, list) else count
    if not isinstance(kind, str):
        return None
    return f"{count} × {kind}" if isinstance(count, int) and count > 1 else kind


def _tiles(run: RunRecord) -> str:
    """Headline numbers: scores of the last stage that has any, and the size of the run."""
    tiles: list[tuple[str, str]] = []
    scored = [(stage, e) for stage in run.stages for e in stage.evaluations if _headlines(e)]
    if scored:
        last = scored[-1][0].name
        of_last = [e for stage, e in scored if stage.name == last]
        several = len(of_last) > 1
        for evaluated in of_last[:2]:
            for key in _headlines(evaluated)[:2]:
                where = f"{evaluated.name} " if several or key not in ("f1", "exact") else ""
                tiles.append((score_text(key, evaluated.scores[key]), f"{where}{metric_label(key)}, stage {last}"))
    lines = [line for stage in run.stages for line in stage.train]
    elapsed = max((line["elapsed"] for line in lines if is_finite(line.get("elapsed"))), default=None)
    if elapsed is not None:
        tiles.append((console.duration(elapsed), "training time"))
    steps = sum(stage.train[-1]["step"] for stage in run.stages if stage.train)
    if steps:
        tiles.append((number_html(steps), f"steps in {len(run.stages)} stage{'s' * (len(run.stages) != 1)}"))
    trained = [line["trainable_parameters"] for line in lines if is_finite(line.get("trainable_parameters"))]
    if trained:
        tiles.append((console.compact(max(trained)), "parameters trained"))
    items = "".join(f'<div class="tile"><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>' for v, k in tiles)
    return f'<div class="tiles">{items}</div>' if items else ""


def _headlines(evaluated: EvaluationResult) -> list[str]:
    return [key for key in HEADLINES if is_finite(evaluated.scores.get(key))]


def _summary(run: RunRecord) -> str:
    if not run.stages:
        return '<section id="summary"><h2>Summary</h2><p class="muted">No stage has started.</p></section>'
    head: tuple[str, ...] = (
        "Stage",
        "Steps",
        "Time",
        "Last loss",
        "Tokens/s",
        "Step",
        "Data wait",
        "MFU",
        "Memory",
        "Parameters",
    )
    rows = [_summary_row(stage, before) for stage, before in zip(run.stages, stage_starts(run).values(), strict=True)]
    known = [i for i in range(len(head)) if any(row[i] != UNKNOWN for row in rows)]
    head, rows = tuple(head[i] for i in known), [[row[i] for i in known] for row in rows]
    scores = [
        (html.escape(stage.name), html.escape(e.name), number_html(e.step), scores_list(e.scores))
        for stage in run.stages
        for e in stage.evaluations
    ]
    parts = [table(head, rows, numbers=range(1, len(head)))]
    parts.append(_overview(run))
    if run.goodput:
        parts.append(f'<p class="muted below">{html.escape(run.goodput.capitalize())}.</p>')
    if scores:
        parts.append(f"<h3>Scores</h3>{table(('Stage', 'Evaluation', 'Step', 'Scores'), scores, numbers=(2,))}")
    return f'<section id="summary"><h2>Summary</h2>{"".join(parts)}</section>'


def _overview(run: RunRecord) -> str:
    """The losses of all stages by training time; "" for a single stage or without times."""
    series, bands, marks = [], [], []
    for place, (stage, start) in enumerate(zip(run.stages, stage_starts(run).values(), strict=True)):
        lines = [line for line in stage.train if is_finite(line.get("elapsed"))]
        if not lines:
            continue
        times = [line["elapsed"] for line in lines]
        values = [line["loss"] if is_finite(line.get("loss")) else float("nan") for line in lines]
        series.append(Series(stage.name, times, values, place))
        bands.append(Band(start, max(times), stage.name))
        for step in stage.resumes:
            before = [line["elapsed"] for line in lines if line["step"] <= step]
            marks.append(Mark(max(before, default=start), "resume", f"{stage.name} resumed from step {step:,}"))
    if len(series) < 2:
        return ""
    chart = Chart("Loss of all stages", series, x_unit="seconds", wide=True, bands=bands, marks=marks)
    return f'<div class="charts below">{figure(chart)}</div>'


def _summary_row(stage: StageRecord, began: float) -> list[str]:
    last = stage.train[-1] if stage.train else {}
    steps = number_html(last.get("step", 0))
    if stage.steps and stage.steps != last.get("step", 0):
        steps += f" of {number_html(stage.steps)}"

    def shown(key: str, form: Callable[[float], str], over: Callable[[list], float] = statistics.median) -> str:
        values = [line[key] for line in stage.train if is_finite(line.get(key))]
        return form(over(values)) if values else UNKNOWN

    elapsed = last.get("elapsed")
    return [
        html.escape(stage.name),
        steps,
        console.duration(elapsed - began) if is_finite(elapsed) else UNKNOWN,
        number_html(last.get("loss")),
        shown("tokens_per_second", console.compact),
        shown("step_seconds", console.seconds),
        shown("data_wait", console.percent),
        shown("mfu", console.percent),
        shown("memory_bytes", console.memory, max),
        shown("trainable_parameters", console.compact, max),
    ]


def _baselines(run: RunRecord) -> str:
    """Question-answering scores of this run and of the baselines, best F1 first."""
    found = [(f"{stage.name}: {e.name}", e.scores, True) for stage in run.stages for e in stage.evaluations]
    found += [(str(row.get("name")), row, False) for row in run.baselines]
    scored = [row for row in found if is_finite(row[1].get("exact")) and is_finite(row[1].get("f1"))]
    if all(is_own for _, _, is_own in scored):
        return ""
    rows = ""
    for name, scores, is_own in sorted(scored, key=lambda row: -row[1]["f1"]):
        width = min(max(scores["f1"], 0.0), 100.0)
        rows += (
            f"<tr{' class=own' * is_own}><th>{html.escape(name)}{' (this run)' * is_own}</th>"
            f'<td class="n">{scores["exact"]:.2f}</td><td class="n">{scores["f1"]:.2f}</td>'
            f'<td><span class="bar"><i style="width:{width:.1f}%"></i></span></td></tr>'
        )
    return (
        '<section id="baselines"><h2>Baselines</h2><div class="scroll"><table><thead><tr><th>System</th>'
        f'<th class="n">Exact match</th><th class="n">F1</th><th>F1, 0 to 100</th></tr></thead><tbody>{rows}</tbody>'
        "</table></div></section>"
    )


def _provenance_section(run: RunRecord) -> str:
    """The configuration and the environment, collapsed."""
    body = ""
    if run.config_text:
        body += details("Resolved configuration", f"<pre>{html.escape(run.config_text)}</pre>")
    flat = flatten(run.environment, lists=False)
    if shown := {key: x for key, x in flat.items() if not any(map(SECRET_KEY.search, key.split(".")))}:
        as_text = lambda x: ", ".join(map(str, x)) if isinstance(x, list) else str(x)  # noqa: E731
        rows = [(html.escape(key), html.escape(as_text(x))) for key, x in shown.items()]
        body += details("Environment", table(("Key", "Value"), rows))
    return f'<section id="made"><h2>Configuration and environment</h2>{body}</section>' if body else ""


def _footer(run: RunRecord) -> str:
    notes = ["Times and rates are medians over the logged steps; memory is the maximum."]
    if run.unreadable:
        lines = "line" if run.unreadable == 1 else "lines"
        notes.append(f"{run.unreadable} {lines} of metrics.jsonl could not be read and were skipped.")
    return f"<footer>{' '.join(notes)}</footer>"
