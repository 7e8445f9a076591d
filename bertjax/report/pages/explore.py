"""The page of `bertjax explore`: nearest words, pictures of words, word analogies and attention maps of one model."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertjax.report.charts import NUM_COLOURS
from bertjax.report.pages.attention import attention_section
from bertjax.report.pages.explore_style import SCRIPT, STYLE
from bertjax.report.parts import definition_list, details, html_document, table
from bertjax.training.monitor import console

_TITLES = {"static": "Input vectors", "contextual": "Contextual vectors"}
_PICTURES = {"pca": "Principal components", "tsne": "t-SNE"}
_WIDTH, _HEIGHT, _EDGE = 1000, 640, 50  # of a picture, which the page stretches
_LETTER = 8.4  # the width of a letter of a label
MAX_ANSWERS = 12  # wrong answers listed for a section


def explore_page(report: Mapping[str, Any], json_name: str) -> str:
    """The report of `tools.explore` as one HTML file; `json_name` is the file with the full report."""
    notes = "".join(f'<p class="small muted">Note: {html.escape(note)}.</p>' for note in report["notes"])
    pieces = f"{report['vocabulary']:,} pieces, {report['words']:,} of them words"
    about = {"family": report["family"], "vocabulary": pieces, "size of a vector": report["static"]["size"]}
    facts = definition_list(about, "facts")
    title = "Inside the model"
    sections = [name for name in ("static", "contextual", "analogies", "attention") if report[name] is not None]
    links = "".join(f'<a href="#{name}">{_TITLES.get(name, name.capitalize())}</a>' for name in sections)
    head = (
        f'<header><p class="eyebrow">bertjax explore</p><div class="title"><h1>{title}</h1></div>'
        f'<p class="muted">{html.escape(report["path"])}</p>{facts}{notes}<nav>{links}</nav></header>'
    )
    body = [head, _space("static", report["static"], report["groups"])]
    if report["contextual"] is not None:
        body.append(_space("contextual", report["contextual"], report["groups"]))
    body.append(_analogies(report["analogies"]))
    if report["attention"] is not None:
        body.append(attention_section(report["attention"]))
    body.append(f"<footer>The full report is in {html.escape(json_name)}.</footer>")
    return html_document(title, body, style=STYLE, script=SCRIPT)


def _space(name: str, space: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> str:
    """The vectors of one kind: how they are made, the pictures, the nearest words."""
    about = html.escape(_source(name, space))
    if space["unknown"]:
        about += f" Not among them: {html.escape(', '.join(space['unknown']))}."
    pictures = "".join(_picture(kind, shown, list(groups)) for kind, shown in space["pictures"].items())
    near = {one["word"]: one for one in space["nearest"]}
    rows = [
        [html.escape(word), _neighbors(near[word]["neighbors"])]
        for words in groups.values() for word in words if word in near
    ]  # fmt: skip
    listed = f'<div class="near">{table(("Word", "Nearest words, with the cosine"), rows)}</div>' if rows else ""
    return (
        f'<section id="{name}"><h2>{_TITLES[name]}</h2><p class="small muted">{about}</p>'
        f'<div class="pictures">{pictures}</div>{details("Nearest words", listed) if listed else ""}</section>'
    ).replace("<details>", "<details open>", 1)


def _source(name: str, space: Mapping[str, Any]) -> str:
    if name == "static":
        return (
            f"The vectors by which the model reads its pieces, for {space['words']:,} pieces that are words: they do "
            "not depend on the sentence."
        )
    layer = f"layer {space['layer']}" if space["layer"] else "the embeddings"
    if "template" in space:
        return (
            f"The output of {layer} for a word in the sentence “{space['template'].format('…')}”, the mean over its "
            f"pieces; neighbors are among {space['words']:,} words."
        )
    return (
        f"The output of {layer}, the mean over the pieces of a word and over its occurrences in {space['sentences']:,} "
        f"of {space['of']:,} sentences of {space['text']}; neighbors are among its {space['words']:,} words."
    )


def _neighbors(found: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(f"<span><bdi>{html.escape(one['word'])}</bdi> <i>{one['cosine']:.2f}</i></span>" for one in found)


def _picture(kind: str, picture: Mapping[str, Any], groups: Sequence[str]) -> str:
    """Words as points with their groups' colors; a word is shown larger under the pointer."""
    points = picture["points"]
    places = _fit(np.array([[point["x"], point["y"]] for point in points], float))
    used = [group for group in groups if any(point["group"] == group for point in points)]
    colours = {group: number % NUM_COLOURS + 1 for number, group in enumerate(used)}
    keys = "".join(
        f'<span class="key"><i style="border-color: var(--c{colours[group]}); background: var(--c{colours[group]})">'
        f"</i>{html.escape(group)}</span>"
        for group in used
    )
    labels = _labels([point["word"] for point in points], places)
    drawn = "".join(
        _point(point, x, y, colours[point["group"]], label)
        for point, (x, y), label in zip(points, places.tolist(), labels, strict=True)
    )
    explained = ""
    if picture["explained"]:
        shares = " and ".join(console.percent(share) for share in picture["explained"])
        explained = f'<p class="small muted">The axes have {shares} of the variance.</p>'
    title = _PICTURES[kind]
    return (
        f'<figure class="words"><figcaption><b>{title}</b>{keys}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title} of {len(points)} words">{drawn}</svg>'
        f"{explained}</figure>"
    )


def _point(point: Mapping[str, Any], x: float, y: float, colour: int, label: tuple[float, float, str]) -> str:
    word, group = html.escape(point["word"]), html.escape(point["group"])
    at_x, at_y, anchor = label
    return (
        f'<g tabindex="0"><title>{word} ({group})</title><circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="16"/>'
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="var(--c{colour})"/>'
        f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{word}</text></g>'
    )


def _labels(words: Sequence[str], places: np.ndarray) -> list[tuple[float, float, str]]:
    """(x, y, anchor) of each word's label: of right, left, above and below of its point, where it covers least."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places.tolist()]
    found = []
    for word, (x, y) in zip(words, places.tolist(), strict=True):
        width = _LETTER * len(word)
        choices = [
            ((x + 9, y + 5, "start"), (x + 7, y - 9, x + 9 + width, y + 9)),
            ((x - 9, y + 5, "end"), (x - 9 - width, y - 9, x - 7, y + 9)),
            ((x, y - 10, "middle"), (x - width / 2, y - 25, x + width / 2, y - 7)),
            ((x, y + 21, "middle"), (x - width / 2, y + 7, x + width / 2, y + 25)),
        ]
        label, box = min(choices, key=lambda choice: _covered(choice[1], taken))
        found.append(label)
        taken.append(box)
    return found


def _covered(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> float:
    """The area of a box (left, top, right, bottom) that others, or the space outside of the drawing, take."""
    left, top, right, bottom = box
    outside = max(0, -left) + max(0, right - _WIDTH)
    overlaps = (max(0, min(right, r) - max(left, a)) * max(0, min(bottom, b) - max(top, t)) for a, t, r, b in taken)
    return sum(overlaps) + outside * (bottom - top)


def _fit(points: np.ndarray) -> np.ndarray:
    """Points [N, 2] in the drawing, with y upwards and each axis stretched to its room."""
    low, high = points.min(axis=0), points.max(axis=0)
    fractions = (points - low) / np.where(high > low, high - low, 1)
    fractions = np.where(high > low, fractions, 0.5)
    x = _EDGE + fractions[:, 0] * (_WIDTH - 2 * _EDGE)
    y = _EDGE / 2 + (1 - fractions[:, 1]) * (_HEIGHT - _EDGE)
    return np.stack([x, y], axis=1)


def _analogies(found: Mapping[str, Any]) -> str:
    rows = [_score_row(section["section"], section) for section in found["sections"]]
    total = found["total"]
    rows.append([f"<b>{cell}</b>" for cell in _score_row("All", total)])
    shown = table(("Section", "Accuracy (%)", "Correct", "Answered", "Unknown words"), rows, numbers=(1, 2, 3, 4))
    note = (
        f"From {html.escape(found['source'])}: “a is to b as c is to d”, answered with the word whose input vector is "
        "nearest to b - a + c (3CosAdd); a, b and c are excluded."
    )
    if total["unknown"]:
        note += f" Questions with a word that is not one piece of the vocabulary, left out: {total['unknown']:,}."
    wrong = "".join(_wrong(section["section"], found["answers"]) for section in found["sections"])
    shown += f'<p class="small muted below">{note}</p>{wrong}'
    return f'<section id="analogies"><h2>Word analogies</h2>{shown}</section>'


def _score_row(name: str, score: Mapping[str, Any]) -> list[str]:
    accuracy = "" if score["accuracy"] is None else f"{score['accuracy']:.1f}"
    counts = (f"{score[key]:,}" for key in ("correct", "answered", "unknown"))
    return [html.escape(name), accuracy, *counts]


def _wrong(section: str, answers: Sequence[Mapping[str, Any]]) -> str:
    """The first wrong answers of a section, which open on a click."""
    wrong = [
        one for one in answers if one["section"] == section and one["answer"] is not None
        and one["answer"] != one["gold"]
    ]  # fmt: skip
    if not wrong:
        return ""
    rows = []
    for one in wrong[:MAX_ANSWERS]:
        a, b, c = one["question"]
        rows.append([html.escape(f"{a} : {b} = {c} : ?"), html.escape(one["gold"]), html.escape(one["answer"])])
    more = f", the first {MAX_ANSWERS}" if len(wrong) > MAX_ANSWERS else ""
    return details(f"{section}: {len(wrong):,} wrong{more}", table(("Question", "Right", "Answer"), rows))
