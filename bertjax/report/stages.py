"""The section of each stage: curves, episodes and results of evaluations."""

import html
from collections.abc import Callable
from typing import Any

from bertjax.report.charts import Band, Chart, Mark, Series, figure
from bertjax.report.classes import class_sections
from bertjax.report.parts import FRACTIONS, PERCENTAGES, metric_label, number_html, scores_list, table
from bertjax.report.record import Episode, OtherEvaluation, StageRecord, is_finite
from bertjax.report.samples import answer_samples
from bertjax.report.tokens import token_samples
from bertjax.training.monitor import console

MAX_CURVES = 6  # metrics in one chart


def stage_section(stage: StageRecord, place: int) -> str:
    """The section of stage number `place`."""
    state = ""
    if not stage.finished:
        state = f' <span class="pill fair">{"not finished" if stage.train else "not started"}</span>'
    elif stage.stopped_early is not None:
        planned = f" of {number_html(stage.steps)}" if stage.steps else ""
        state = f' <span class="pill">stopped early at step {number_html(stage.stopped_early)}{planned}</span>'
    charts = [chart for chart in stage_charts(stage) if chart.series]
    narrow = sum(not chart.wide for chart in charts)
    drawn = "".join(map(figure, charts))
    body = f'<div class="charts{" two" * (narrow in (2, 4))}">{drawn}</div>' if drawn else ""
    if not charts and not stage.evaluations and not stage.others:
        body = '<p class="muted">No steps are logged yet.</p>'
    body += _episodes(stage.episodes)
    for number, evaluated in enumerate(stage.evaluations, 1):
        body += class_sections(evaluated, f"stage-{place}-classes-{number}")
        body += answer_samples(evaluated) + token_samples(evaluated)
    body += _others(stage.others)
    return f'<section id="stage-{place}"><h2>Stage {place}: {html.escape(stage.name)}{state}</h2>{body}</section>'


def is_loss(key: str) -> bool:
    kind = key.split("/")[0]  # loss/books is the loss of the task books
    return kind == "loss" or kind.endswith("_loss")


def stage_charts(stage: StageRecord) -> list[Chart]:
    """The curves of a stage; a chart without data has no series."""
    shares, left_out = _curves(stage, lambda key: key.endswith(FRACTIONS), scale=100)
    next_colour = max((series.colour + 1 for series in shares), default=0)
    answers, further = _curves(stage, _is_percentage, first_colour=next_colour)
    losses, hidden = _curves(stage, is_loss)
    bands = episode_bands(stage.episodes)
    resumes = [Mark(step, "resume", f"resumed from step {step:,}") for step in stage.resumes]
    bad = [Mark(line["step"], "nonfinite", "the loss is not finite") for line in stage.train
           if "loss" in line and not is_finite(line["loss"])]  # fmt: skip
    evaluated = dict.fromkeys((line["step"], line["name"]) for line in stage.evals)
    marks = [Mark(step, "evaluation", f"evaluation {name} at step {step:,}") for step, name in evaluated]

    def single(title: str, key: str, unit: str, scale: float = 1) -> Chart:
        curves, _ = _curves(stage, lambda k: k.split("/")[0] == key, scale)  # learning_rate/heads: of a group
        return Chart(title, curves, unit, smoothed=unit == "", bands=bands, marks=resumes)

    title, note = "Accuracy" if shares or not answers else "Scores", _left_out(left_out + further)
    return [
        Chart("Loss", losses, wide=True, bands=bands, marks=resumes + marks + bad, note=_left_out(hidden)),
        Chart(title, shares + answers, "%", bands=bands, marks=resumes, note=note),
        single("Learning rate", "learning_rate", "rate"),
        single("Gradient norm", "grad_norm", ""),
        single("Tokens per second", "tokens_per_second", "count"),
        single("MFU", "mfu", "%", 100),
        single("Memory", "memory_bytes", "GiB", 2**-30),
    ]


def _is_percentage(key: str) -> bool:
    return key.lower().endswith(PERCENTAGES) and not key.endswith(FRACTIONS)


def _left_out(count: int) -> str:
    return f"{count} more metric{'s' * (count != 1)} of metrics.jsonl not shown." if count else ""


def episode_bands(episodes: list[Episode]) -> list[Band]:
    """The episodes with their numbers and trained parameters."""
    bands = []
    for episode in episodes if len(episodes) > 1 else ():
        trained = episode.trainable_parameters
        text = f"episode {episode.number}" + (f" · {console.compact(trained)} trained" if trained else "")
        bands.append(Band(episode.first_step, episode.last_step, text))
    return bands


def _curves(
    stage: StageRecord, wanted: Callable[[str], bool], scale: float = 1, first_colour: int = 0
) -> tuple[list[Series], int]:
    """Curves of the wanted metrics, lines for training and markers for evaluations, and how many metrics are left out.

    The first evaluation of a metric has the colour of its training curve, further ones have their own.
    """
    found = _points(stage, wanted)
    # The total comes first. If it has only one part, that part equals the total and is omitted.
    keys = sorted(dict.fromkeys(key for key, _ in found), key=lambda key: key not in ("loss", "learning_rate"))
    if len(keys) == 2 and keys[0] == "loss":
        keys = keys[:1]
    if "exact" in keys and "exact_match" in keys:  # equal ones
        keys.remove("exact_match")
    several = len({name for _, name in found if name}) > 1
    curves: list[Series] = []
    colour = first_colour - 1
    for key in keys[:MAX_CURVES]:
        names = [name for of, name in found if of == key]  # "" is the training curve
        for place, name in enumerate(names):
            if place == 0 or names[:place] != [""]:
                colour += 1
            drawn = [(step, value * scale if is_finite(value) else float("nan")) for step, value in found[key, name]]
            text = "label accuracy" if key == "label_accuracy" else metric_label(key.removesuffix("_accuracy"))
            text = f"{name}: {text}" if several and name else text
            if any(is_finite(value) for _, value in drawn):
                steps, values = [step for step, _ in drawn], [value for _, value in drawn]
                curves.append(Series(text, steps, values, colour, points=bool(name)))
    return curves, max(0, len(keys) - MAX_CURVES)


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


def _others(others: list[OtherEvaluation]) -> str:
    """Evaluations that differ from the run's own, each with its differences."""
    if not others:
        return ""
    rows = []
    for one in others:
        name, description = html.escape(one.name), html.escape(one.description)
        rows.append((name, number_html(one.step), scores_list(one.scores), description))
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
        steps = f"{number_html(episode.first_step)} to {number_html(episode.last_step)}"
        bar = f'<span class="bar"><i style="width:{width:.1f}%"></i></span>'
        rows.append([str(episode.number), steps, number_html(trained), bar])
    head = ("Episode", "Steps", "Parameters trained", "Share of the last episode")
    return f"<h3>Gradual unfreezing</h3>{table(head, rows, numbers=(1, 2))}"
