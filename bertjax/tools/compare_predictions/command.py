"""Counts, tests and writes a comparison of predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.errors import UserError, escape_unprintable
from bertjax.evaluation.metrics.paired import SAMPLES, mcnemar, paired_bootstrap
from bertjax.report.pages.predictions import TITLES, predictions_page
from bertjax.storage import atomic
from bertjax.tools.compare_predictions import groups, items, read
from bertjax.tools.compare_predictions.items import Item, Pairs

MAX_TEXT_GROUPS = 10  # of one kind in the table of the terminal


def _check(a: Path, b: Path, data: Path | None, name: str | None, label: str | None) -> None:
    """Raise UserError for options that do not fit the predictions."""
    labels = [path for path in (a, b) if read.is_labels(path)]
    if len(labels) == 1:
        other = b if labels[0] == a else a
        raise UserError(f"{labels[0]}: holds labels, and {other} does not; name two files of the same kind")
    if labels and (data is not None or name is not None):
        raise UserError(f"{a}: holds labels, whose true ones are in --label; leave out --data and --name")
    if not labels and data is None:
        raise UserError(
            f"{a}: answers need their questions: give --data (labels are files of `bertjax predict classify`)"
        )
    if not labels and label is not None:
        raise UserError(f"{a}: holds answers, whose gold answers are in --data; leave out --label")


def compare_predictions(
    a: Path, b: Path, data: Path | None = None, *, name: str | None = None, label: str | None = None, seed: int = 1,
    examples: int = 20, output: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare the predictions of B with those of A -> the report; `output` gets it as HTML, and as .json beside it.

    Answers need `data`, their questions; labels have the true ones in the field `label` (default: that name). The
    report: {"a", "b": {"path", "scores"}, "source", "compared", "notes", "counts", "significance", "groups",
    "examples"}. A question is won where B has the higher score (F1, or accuracy of labels) and lost where A has it.
    Scores and differences are percent. `name`: of an evaluation, for runs that have several.
    Raises UserError for files that cannot be compared.
    """
    _check(a, b, data, name, label)
    if data is None:
        paths = (a, b)
        pairs = items.pair_labels(paths, label or "label")
    else:
        answers = (read.read_answers(a, name), read.read_answers(b, name))
        paths = (answers[0].path, answers[1].path)
        pairs = items.pair_answers(data, answers)
    report = _report(pairs, paths, seed, examples)
    if output is not None:
        beside = output.with_suffix(".json")
        atomic.write_json_atomic(beside, report)
        atomic.write_text_atomic(output.with_suffix(".html"), predictions_page(report, beside.name))
    return report


def _report(pairs: Pairs, paths: tuple[Path, Path], seed: int, examples: int) -> dict[str, Any]:
    found = pairs.items
    kinds = {kind: _group_rows(kind, found) for kind in items.groups_of(found)}
    return {
        "a": {"path": str(paths[0]), "scores": pairs.scores[0]},
        "b": {"path": str(paths[1]), "scores": pairs.scores[1]},
        "source": pairs.source,
        "compared": len(found),
        "notes": pairs.notes,
        "counts": _counts(found) | _right(found),
        "significance": _significance(found, seed),
        "groups": {kind: rows for kind, rows in kinds.items() if len(rows) > 1},
        "examples": _examples(found, seed, examples),
    }


def _difference(item: Item) -> float:
    """Score of B minus score of A."""
    one, other = list(item.scores.values())[-1]
    return other - one


def _counts(found: Sequence[Item]) -> dict[str, int]:
    differences = [_difference(item) for item in found]
    won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return {"won": won, "lost": lost, "tied": len(found) - won - lost}


def _right(found: Sequence[Item]) -> dict[str, int]:
    right = [tuple(score == 1 for score in next(iter(item.scores.values()))) for item in found]
    names = {(True, True): "both_right", (True, False): "only_a_right", (False, True): "only_b_right"}
    names[(False, False)] = "none_right"
    return {name: sum(pair == wanted for pair in right) for wanted, name in names.items()}


def _significance(found: Sequence[Item], seed: int) -> dict[str, Any]:
    right = _right(found)
    metrics = list(found[0].scores)
    tested = {"metric": metrics[0], "p": mcnemar(right["only_a_right"], right["only_b_right"])}
    bootstrap: dict[str, Any] = {"samples": SAMPLES, "seed": seed}
    for metric in metrics:
        pairs = np.array([item.scores[metric] for item in found])
        sampled = paired_bootstrap(100 * (pairs[:, 1] - pairs[:, 0]), seed)
        bootstrap[metric] = sampled
    return {"mcnemar": tested, "bootstrap": bootstrap}


def _group_rows(kind: str, found: Sequence[Item]) -> list[dict[str, Any]]:
    sorted_items: dict[str, list[Item]] = {}
    for item in found:
        if kind in item.groups:
            sorted_items.setdefault(item.groups[kind], []).append(item)
    sizes = {name: len(members) for name, members in sorted_items.items()}
    rows = []
    for name in groups.group_order(kind, list(sorted_items), sizes):
        members = sorted_items[name]
        sides = [
            {
                metric: 100 * sum(one.scores[metric][side] for one in members) / len(members)
                for metric in members[0].scores
            }
            for side in (0, 1)
        ]
        rows.append({"name": name, "questions": len(members), "a": sides[0], "b": sides[1], **_counts(members)})
    return rows


def _examples(found: Sequence[Item], seed: int, most: int) -> dict[str, list[dict[str, Any]]]:
    """The items of the largest differences in both directions; those of equal difference in an order of the seed."""
    order = np.random.default_rng(seed).permutation(len(found))
    shuffled = [found[place] for place in order]
    picked = {}
    for name, sign in (("won", 1), ("lost", -1)):
        better = sorted((x for x in shuffled if sign * _difference(x) > 0), key=lambda x: -abs(_difference(x)))
        picked[name] = [_example(item) for item in better[:most]]
    return picked


def _example(item: Item) -> dict[str, Any]:
    a, b = item.predictions
    scores = {side: {metric: 100 * pair[n] for metric, pair in item.scores.items()} for n, side in enumerate("ab")}
    about = {"id": item.id, "text": item.text} | ({"context": item.context} if item.context else {})
    return about | {"gold": list(item.gold), "a": a, "b": b, "scores": scores}


def format_text(report: Mapping[str, Any]) -> str:
    """The report as plain text."""
    metrics = _metrics(report)
    counts, total = report["counts"], report["compared"]
    lines = [f"A: {report['a']['path']}", f"B: {report['b']['path']}", f"   {report['source']}", ""]
    head = "".join(f"{metric:>10}" for metric in metrics)
    lines.append(f"{'':<4}{head}")
    for side in ("a", "b"):
        scores = report[side]["scores"]
        lines.append(f"{side.upper():<4}" + "".join(f"{scores[metric]:>10.2f}" for metric in metrics))
    lines.append("")
    lines += [f"note: {note}" for note in report["notes"]]
    lines.append(
        f"{total:,} compared: B better {counts['won']:,}, A better {counts['lost']:,}, equal {counts['tied']:,} "
        f"(by {metrics[-1]}); right: both {counts['both_right']:,}, only A {counts['only_a_right']:,}, "
        f"only B {counts['only_b_right']:,}, none {counts['none_right']:,}"
    )
    lines += significance_lines(report)
    for kind, rows in report["groups"].items():
        lines += ["", *_table(kind, rows, metrics)]
    for name, title in (("won", "B better"), ("lost", "A better")):
        if report["examples"][name]:
            lines += ["", f"{title}:"]
            for one in report["examples"][name][:3]:
                gold = _line(" / ".join(one["gold"][:3]), 80) or "(no answer)"
                a, b = (_line(one[side], 60) or "(none)" for side in "ab")
                lines += [f"  {_line(one['text'], 100)}", f"    gold: {gold} | A: {a} | B: {b}"]
    return "\n".join(lines)


def _line(text: str, most: int) -> str:
    """The first characters of a text in one line of a terminal."""
    return escape_unprintable(" ".join(text.split())[:most])


def _metrics(report: Mapping[str, Any]) -> list[str]:
    return [name for name in report["significance"]["bootstrap"] if name not in ("samples", "seed")]


def significance_lines(report: Mapping[str, Any]) -> list[str]:
    """The tests, one line each."""
    tested, bootstrap = report["significance"]["mcnemar"], report["significance"]["bootstrap"]
    counts = report["counts"]
    lines = [
        f"McNemar's exact test ({tested['metric']}, {counts['only_a_right']:,} against {counts['only_b_right']:,}): "
        f"p = {tested['p']:.2g}"
    ]
    for metric in _metrics(report):
        one = bootstrap[metric]
        lines.append(
            f"paired bootstrap ({bootstrap['samples']:,} samples, seed {bootstrap['seed']}), {metric} of B - A: "
            f"{one['difference']:+.2f} (95 % from {one['low']:+.2f} to {one['high']:+.2f}), p = {one['p']:.2g}"
        )
    return lines


def _table(kind: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[str]:
    shown = list(rows)
    more = ""
    if len(shown) > MAX_TEXT_GROUPS and kind == "title":
        shown.sort(key=lambda row: -abs(row["b"][metrics[-1]] - row["a"][metrics[-1]]))
        more = f" (the {MAX_TEXT_GROUPS} of {len(shown)} with the largest difference)"
        shown = shown[:MAX_TEXT_GROUPS]
    head = "".join(f"{side + ' ' + metric:>11}" for metric in metrics for side in "AB")
    lines = [f"{TITLES[kind] + more}", f"{'':<28}{'n':>7}{head}{'won':>7}{'lost':>7}{'tied':>7}"]
    for row in shown:
        values = "".join(f"{row[side][metric]:>11.2f}" for metric in metrics for side in "ab")
        counted = "".join(f"{row[name]:>7,}" for name in ("won", "lost", "tied"))
        lines.append(f"{_line(row['name'], 27):<28}{row['questions']:>7,}{values}{counted}")
    return lines
