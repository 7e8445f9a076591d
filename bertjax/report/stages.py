"""The section of each stage: curves, episodes and sample answers."""

import html
from collections.abc import Callable
from typing import Any

from bertjax.report.figures import SERIES, Chart, Series, draw
from bertjax.report.parts import metric_label, scores_list, table
from bertjax.report.record import Episode, OtherEvaluation, StageRecord, is_finite
from bertjax.report.samples import samples_table
from bertjax.training.monitor import console

MAX_CURVES = 4  # metrics in one chart
PERCENTAGES = ("exact", "f1", "accuracy", "em", "average")


def stage_section(stage: StageRecord, place: int) -> str:
    """The section of stage number `place`."""
    state = ""
    if not stage.finished:
        state = f' <span class="pill fair">{"not finished" if stage.train else "not started"}</span>'
    charts = [chart for chart in stage_charts(stage) if chart.series]
    narrow = sum(not chart.wide for chart in charts)
    drawn = "".join(_figure(chart, f"s{place}c{at}", stage.episodes) for at, chart in enumerate(charts))
    body = f'<div class="charts{" two" * (narrow in (2, 4))}">{drawn}</div>' if drawn else ""
    if not charts and not stage.evaluations and not stage.others:
        body = '<p class="muted">No steps are logged yet.</p>'
    body += _episodes(stage.episodes) + "".join(samples_table(evaluated) for evaluated in stage.evaluations)
    body += _others(stage.others)
    return f'<section id="stage-{place}"><h2>Stage {place}: {html.escape(stage.name)}{state}</h2>{body}</section>'


def stage_charts(stage: StageRecord) -> list[Chart]:
    """The curves of a stage; a chart without data has no series."""

    def is_loss(key: str) -> bool:
        kind = key.split("/")[0]  # loss/books is the loss of the task books
        return kind == "loss" or kind.endswith("_loss")

    shares = _curves(stage, lambda key: key.endswith("_accuracy"), scale=100)
    next_colour = max((series.colour + 1 for series in shares), default=0)
    answers = _curves(stage, lambda key: key in PERCENTAGES, first_colour=next_colour)
    return [
        Chart("Loss", _curves(stage, is_loss), wide=True),
        Chart("Accuracy", shares + answers, unit="%"),
        Chart("Learning rate", _curves(stage, lambda key: key == "learning_rate"), unit="rate", smoothed=False),
        Chart("Tokens per second", _curves(stage, lambda k: k == "tokens_per_second"), unit="count", smoothed=False),
    ]


def _curves(stage: StageRecord, wanted: Callable[[str], bool], scale: float = 1, first_colour: int = 0) -> list[Series]:
    """Curves of the wanted metrics: lines for training, markers for evaluations.

    The first evaluation of a metric has the colour of its training curve, further ones have their own.
    """
    found = _points(stage, wanted)
    # The total comes first. If it has only one part, that part equals the total and is omitted.
    keys = sorted(dict.fromkeys(key for key, _ in found), key=lambda key: key != "loss")
    if len(keys) == 2 and keys[0] == "loss":
        keys = keys[:1]
    several = len({name for _, name in found if name}) > 1
    curves: list[Series] = []
    colour = first_colour - 1
    for key in keys[:MAX_CURVES]:
        names = [name for of, name in found if of == key]  # "" is the training curve
        for place, name in enumerate(names):
            if place == 0 or names[:place] != [""]:
                colour += 1
            drawn = [(step, value * scale) for step, value in found[key, name] if is_finite(value)]
            text = metric_label(key.removesuffix("_accuracy"))
            text = f"{name}: {text}" if several and name else text
            steps, values = [step for step, _ in drawn], [value for _, value in drawn]
            if drawn:
                curves.append(Series(text, steps, values, colour, points=bool(name)))
    return curves


def _points(stage: StageRecord, wanted: Callable[[str], bool]) -> dict[tuple[str, str], list[tuple[int, Any]]]:
    """(step, value) by (metric, evaluation name), the name "" for training; training first."""
    found: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for line in stage.train:
        for key in filter(wanted, line):
            found.setdefault((key, ""), []).append((line["step"], line[key]))
    for line in stage.evals:
        for key in filter(wanted, line["scores"]):
            found.setdefault((key, line["name"]), []).append((line["step"], line["scores"][key]))
    return found


def _figure(chart: Chart, key: str, episodes: list[Episode]) -> str:
    entries = dict.fromkeys((series.colour, series.label) for series in chart.series)
    keys = "".join(
        f'<span class="key"><i style="color:var(--c{colour % len(SERIES) + 1})"></i>{html.escape(text)}</span>'
        for colour, text in entries
        if len(entries) > 1
    )
    if any(series.points for series in chart.series):
        keys += '<span class="key dots">eval</span>'
    return (
        f"<figure{' class=wide' * chart.wide}><figcaption><b>{html.escape(chart.title)}</b>{keys}</figcaption>"
        f"{draw(chart, key, episodes)}</figure>"
    )


def _others(others: list[OtherEvaluation]) -> str:
    """Evaluations that differ from the run's own, each with its differences."""
    if not others:
        return ""
    rows = []
    for one in others:
        name, description = html.escape(one.name), html.escape(one.description)
        rows.append((name, console.number(one.step), scores_list(one.scores), description))
    note = "Results of bertjax evaluate with other data, options or steps than this run's own evaluations."
    head = ("Evaluation", "Step", "Scores", "Provenance")
    return f'<h3>Other evaluations</h3><p class="muted">{note}</p>{table(head, rows, numbers=(1,))}'


def _episodes(episodes: list[Episode]) -> str:
    """A table of the steps and trained parameters of each episode."""
    if len(episodes) < 2:
        return ""
    most = max((e.trainable_parameters for e in episodes if e.trainable_parameters), default=None)
    rows = []
    for episode in episodes:
        trained: Any = episode.trainable_parameters
        width = 100 * trained / most if trained and most else 0
        steps = f"{console.number(episode.first_step)} to {console.number(episode.last_step)}"
        bar = f'<span class="bar"><i style="width:{width:.1f}%"></i></span>'
        rows.append([str(episode.number), steps, console.number(trained), bar])
    head = ("Episode", "Steps", "Parameters trained", "Share of the last episode")
    return f"<h3>Gradual unfreezing</h3>{table(head, rows, numbers=(1, 2))}"
