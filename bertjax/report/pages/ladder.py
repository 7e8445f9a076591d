"""The page of `bertjax ladder`: what each rung adds, its scores, minimal pairs by phenomenon, and nearest words."""

import html
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bertjax.report.parts import html_document, table

_ADDS = {  # by objective, which says what a kind of model is
    "cbow": (
        "Context words, unordered",
        "Guesses a word from the average of the words around it. One vector for a word, in every sentence the same.",
    ),
    "skip_gram": (
        "One neighbor at a time",
        "Guesses a word from each of its neighbors alone, so that rare words get more of the training. Still one "
        "vector for a word.",
    ),
    "bidirectional_lm": (
        "Order and context",
        "Two recurrent networks read the sentence, one from each end. A word now has another vector in another "
        "sentence; the two directions meet only at the output.",
    ),
    "causal_lm": (
        "Depth and attention",
        "Layers of self-attention look back at every earlier word at once. The model as it is, not only its vectors, "
        "is fine-tuned for a task.",
    ),
    "mlm_nsp": (
        "Both sides in every layer",
        "Masked words are predicted from all the others, so that every layer sees left and right together. The price: "
        "only the masked words are trained on.",
    ),
    "text_to_text": (
        "Text in, text out",
        "An encoder sees both sides and a decoder writes. Pre-training and every task are the same problem, with the "
        "same loss: no output layer is added for a task.",
    ),
}


def ladder_page(
    report: Mapping[str, Any], head: Sequence[str], cells: Sequence[Sequence[str]],
    bars: Mapping[str, Sequence[Sequence[float]]],
) -> str:  # fmt: skip
    """One HTML file. `head`, `cells`: the table; `bars`: {score: values of each rung, one a seed}."""
    rungs = report["rungs"]
    title = html.escape(report["name"])
    seeds = f"seed{'s' * (len(report['seeds']) > 1)} {', '.join(map(str, report['seeds']))}"
    top = (
        f'<header><p class="eyebrow">bertjax ladder</p><div class="title"><h1>{title}</h1></div>'
        f'<p class="muted">{len(rungs)} kinds of models on one corpus, with one vocabulary; {seeds}.</p></header>'
    )
    shown = table(head, [[html.escape(cell) for cell in line] for line in cells], numbers=range(1, len(head)))
    notes = "".join(f'<p class="small muted below">{html.escape(note)}</p>' for note in report["notes"])
    body = [top, _steps(rungs), f'<section id="table"><h2>Scores</h2>{shown}{notes}</section>', _bars(rungs, bars)]
    body += [_phenomena(rungs), _neighbors(rungs)]
    return html_document(f"{report['name']}: ladder", filter(None, body))


def _steps(rungs: Sequence[Mapping[str, Any]]) -> str:
    """A card for each rung with what it adds to the one before."""
    cards = ""
    for number, rung in enumerate(rungs, 1):
        heading, text = _ADDS.get(rung["objective"], (rung["objective"].replace("_", " "), ""))
        cards += (
            f'<article class="sample one"><p class="question">{number}. {html.escape(rung["name"])}: '
            f'{html.escape(heading.lower())}</p><p class="context">{html.escape(rung["about"] or text)}</p></article>'
        )
    return f'<section id="rungs"><h2>What each rung adds</h2><div class="samples two">{cards}</div></section>'


def _bars(rungs: Sequence[Mapping[str, Any]], bars: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """A small chart for each score: a bar for each rung, from 0 to 100, with the mean and the values of the seeds."""
    figures = ""
    for name, of_rungs in bars.items():
        lines = ""
        for rung, found in zip(rungs, of_rungs, strict=True):
            mean = statistics.fmean(found) if found else None
            said = "-" if mean is None else f"{mean:.1f}"
            seeds = html.escape(", ".join(f"{x:.1f}" for x in found))
            lines += (
                f'<dt>{html.escape(rung["name"])}</dt><dd title="{seeds}"><span class="bar">'
                f'<i style="width:{min(max(mean or 0, 0), 100):.1f}%"></i></span><b>{said}</b></dd>'
            )
        figures += f'<figure><figcaption><b>{html.escape(name)}</b></figcaption><dl class="bars">{lines}</dl></figure>'
    if not figures:
        return ""
    note = '<p class="small muted below">Percent, means over the seeds; a pointer on a bar shows each seed.</p>'
    return f'<section id="bars"><h2>Side by side</h2><div class="charts">{figures}</div>{note}</section>'


def _phenomena(rungs: Sequence[Mapping[str, Any]]) -> str:
    """Minimal pairs as a heat map: phenomena by rungs, from red through white at 50 (chance) to green."""
    found = {
        rung["name"]: [one["minimal_pairs"] for one in rung["seeds"] if one.get("minimal_pairs")] for rung in rungs
    }
    found = {name: scored for name, scored in found.items() if scored}
    if not found:
        return ""
    names = dict.fromkeys(name for scored in found.values() for one in scored for name in one["phenomena"])
    lines = ""
    for name in names:
        cells = ""
        for scored in found.values():
            inside = [one["phenomena"][name] for one in scored if name in one["phenomena"]]
            cells += _heat(statistics.fmean(inside)) if inside else "<td>-</td>"
        lines += f"<tr><th scope=row>{html.escape(name.replace('_', ' '))}</th>{cells}</tr>"
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in found)
    shown = (
        '<div class="scroll" tabindex="0"><table class="confusion heat"><thead><tr><th scope=col>Phenomenon</th>'
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
    note = (
        '<p class="small muted">Percent of minimal pairs whose acceptable sentence has the higher score; 50 is chance, '
        "green is above, red below.</p>"
    )
    return f'<section id="phenomena"><h2>Minimal pairs by phenomenon</h2>{note}{shown}</section>'


def _heat(value: float) -> str:
    style = ' class="hit"' if value >= 50 else ""
    return f'<td{style} style="--share:{min(abs(value - 50) / 50, 1):.2f}">{value:.0f}</td>'


def _neighbors(rungs: Sequence[Mapping[str, Any]]) -> str:
    """The nearest words of each rung, of its first seed, side by side."""
    found = {rung["name"]: rung["seeds"][0]["neighbors"] for rung in rungs if rung["seeds"]}
    words = dict.fromkeys(word for near in found.values() for word in near)
    if not words:
        return ""
    rows = [
        [html.escape(word), *(html.escape(", ".join(near.get(word, ()))) or "-" for near in found.values())]
        for word in words
    ]
    note = '<p class="small muted">By the cosine of the vectors that each model reads, before any context.</p>'
    shown = table(("Word", *found), rows).replace('class="scroll"', 'class="scroll words"', 1)
    return f'<section id="neighbors"><h2>Nearest words</h2>{note}{shown}</section>'
