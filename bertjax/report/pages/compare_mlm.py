"""Two masked language models on one page: cloze scores, tests, pseudo-perplexities, and candidates side by side."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bertjax.progress.text import decimals
from bertjax.report.parts import html_document, table, text_html
from bertjax.training.monitor import console

_CLOZE = {
    "mean_reciprocal_rank": ("Mean reciprocal rank", 4), "accuracy@1": ("Accuracy at 1 (%)", 2),
    "accuracy@10": ("Accuracy at 10 (%)", 2), "mean_log_probability": ("Mean log-probability (nats)", 3),
}  # fmt: skip
_TEXT = {
    "perplexity_per_token": ("Pseudo-perplexity per token", 2),
    "perplexity_per_word": ("Pseudo-perplexity per word", 2),
    "tokens_per_word": ("Tokens per word", 3),
    "unknown_tokens": ("Unknown tokens", 0),
}


def mlm_page(report: Mapping[str, Any], json_name: str) -> str:
    """The report of `tools.compare_mlm` as one HTML file; `json_name` is the file with the full report."""
    title = "Masked language models side by side"
    names = "<br>".join(f"{side.upper()}: {html.escape(report[side]['path'])}" for side in "ab")
    notes = "".join(f'<p class="small muted">{html.escape(note)}.</p>' for note in report["notes"])
    head = (
        f'<header><p class="eyebrow">bertjax compare-mlm</p><div class="title"><h1>{title}</h1></div>'
        f'<p class="muted">{names}</p>{notes}</header>'
    )
    body = [head, _cloze(report["cloze"])]
    body += [_text(name, found) for name, found in report["texts"].items()]
    body.append(_tests(report))
    body += _items(report["cloze"]["items"])
    body.append(f"<footer>The full report is in {html.escape(json_name)}.</footer>")
    return html_document(title, body)


def _cloze(found: Mapping[str, Any]) -> str:
    counts = found["counts"]
    source = html.escape(found["source"].get("cloze") or ", ".join(found["source"]["text"]))
    note = (
        f"{console.number(found['masks'])} masks from {source}. The gold word ranks higher in B for {counts['won']:,}, "
        f"higher in A for {counts['lost']:,} and equally in both for {counts['tied']:,}."
    )
    return f'<section id="cloze"><h2>Cloze</h2>{_sides(found, _CLOZE)}<p class="small muted below">{note}</p></section>'


def _text(name: str, found: Mapping[str, Any]) -> str:
    counts = found["counts"]
    left_out = "".join(
        f" {number:,} sentences left out: {html.escape(reason)}." for reason, number in found["left_out"].items()
    )
    note = (
        f"{found['scored_sentences']:,} of {found['sentences']:,} sentences, {found['scored_words']:,} words, from "
        f"{html.escape(', '.join(found['files']))}.{left_out} The likelihood is higher in B for {counts['won']:,} "
        f"sentences, in A for {counts['lost']:,}, and the same for {counts['tied']:,}. Tokens per word and unknown "
        f"tokens are those of {found['tokenized_sentences']:,} sentences."
    )
    title = html.escape(f"{name.capitalize()} text")
    return (
        f'<section id="{html.escape(name)}"><h2>{title}</h2>{_sides(found, _TEXT)}'
        f'<p class="small muted below">{note}</p></section>'
    )


def _sides(found: Mapping[str, Any], names: Mapping[str, tuple[str, int]]) -> str:
    rows = [
        [html.escape(title), *(decimals(found[side][key], digits) for side in "ab")]
        for key, (title, digits) in names.items()
    ]
    return table(("", "A", "B"), rows, numbers=(1, 2))


def _tests(report: Mapping[str, Any]) -> str:
    found = report["cloze"]["significance"]
    rows = [
        ["Exact sign test, rank", "", "", f"{found['sign_test']['p']:.2g}"],
        ["McNemar's exact test, accuracy at 1", "", "", f"{found['mcnemar']['p']:.2g}"],
    ]
    tested = [("cloze", name, found["bootstrap"]) for name in ("log_probability", "reciprocal_rank")]
    tested += [(name, "pseudo_log_likelihood", one["bootstrap"]) for name, one in report["texts"].items()]
    for where, name, bootstrap in tested:
        one = bootstrap[name]
        interval = f"{one['low']:+.4f} to {one['high']:+.4f}"
        shown = html.escape(f"Paired bootstrap, {where}: {name.replace('_', ' ')}")
        rows.append([shown, f"{one['difference']:+.4f}", interval, f"{one['p']:.2g}"])
    shown = table(("Test", "B - A", "95% interval", "p"), rows, numbers=(1, 2, 3))
    samples = found["bootstrap"]
    note = f"{samples['samples']:,} samples with replacement, seed {samples['seed']}."
    return f'<section id="tests"><h2>Tests</h2>{shown}<p class="small muted below">{note}</p></section>'


def _items(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """A section each for masks that are better in B, better in A and equal; the largest changes first."""
    ordered = sorted(items, key=lambda item: -abs(item["b"]["log_probability"] - item["a"]["log_probability"]))
    groups = {
        "won": ("B is better", [item for item in ordered if item["rank_change"] < 0]),
        "lost": ("A is better", [item for item in ordered if item["rank_change"] > 0]),
        "tied": ("Equal ranks", [item for item in ordered if item["rank_change"] == 0]),
    }
    return [
        f'<section id="{name}"><h2>{title}</h2>{"".join(map(_card, group))}</section>'
        for name, (title, group) in groups.items()
        if group
    ]


def _card(item: Mapping[str, Any]) -> str:
    """One mask: the text, and the candidates of both models, which open on a click."""
    number = f", mask {item['mask'] + 1}" if item["mask"] else ""
    change = f"rank {item['a']['rank']:,} to {item['b']['rank']:,}"
    ranks = f'<span class="small muted">{html.escape(item["answer"])}{number}: {change}</span>'
    rows = []
    for place in range(max(len(item[side]["top"]) for side in "ab")):
        row = [str(place + 1)]
        for side in "ab":
            top = item[side]["top"]
            row += (
                [text_html(top[place]["token"]), _percent(top[place]["probability"])] if place < len(top) else ["", ""]
            )
        rows.append(row)
    gold = [_percent(math.exp(item[side]["log_probability"])) for side in "ab"]
    head = ("", "A", "Probability", "B", "Probability")
    note = f'<p class="small muted">{html.escape(item["answer"])}: {gold[0]} in A, {gold[1]} in B.</p>'
    shown = table(head, rows, numbers=(2, 4))
    return f"<details><summary>{text_html(item['text'])} {ranks}</summary>{note}{shown}</details>"


def _percent(probability: float) -> str:
    return f"{100 * probability:.2f}%" if probability >= 1e-4 else f"{100 * probability:.1e}%"
