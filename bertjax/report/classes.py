"""Classification and regression in the report: confusion matrix, a table by class, scatter plot and errors."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bertjax.report.charts import Chart, Series, figure
from bertjax.report.parts import details, number_html, table, text_html
from bertjax.report.record import EvaluationResult, is_finite
from bertjax.training.monitor import console

MAX_CLASSES = 40  # rows of the table by class; of more, those with the lowest F1
SIDE_CLASSES = 8  # the matrix of at most so many classes is beside the table
MAX_NAME = 100  # characters of a label beside a text
MAX_PAIRS = 20  # most frequent confusions, where there is no matrix


def class_scores(classes: Mapping[str, Any]) -> dict[str, Any]:
    """Precision, recall and F1 of each class and their means, 0..1, from the counts that an evaluation saved.

    -> {"rows": [{"name", "precision", "recall", "f1", "support", "predicted"}...], "macro": {...}, "weighted": {...}},
    and "micro" where a text may have several labels. A score with denominator 0 is 0, and means are over the classes
    that occur in labels or predictions (with several labels: over all), as in scikit-learn. Raises ValueError or
    TypeError for counts that do not fit each other.
    """
    several = isinstance(classes.get("multi_label"), Mapping)
    counts = zip(classes["names"], classes["support"], classes["predicted"], classes["correct"], strict=True)
    rows = []
    for name, support, predicted, correct in counts:
        if not 0 <= correct <= min(support, predicted) or max(support, predicted) >= 2**53:
            raise ValueError("counts do not fit")
        scores = {"precision": correct / max(predicted, 1), "recall": correct / max(support, 1)}
        scores["f1"] = 2 * correct / max(support + predicted, 1)
        rows.append({"name": str(name), **scores, "support": int(support), "predicted": int(predicted)})
    seen = [row for row in rows if several or row["support"] or row["predicted"]]
    total = sum(row["support"] for row in seen)
    keys = ("precision", "recall", "f1")
    macro = {key: math.fsum(row[key] for row in seen) / max(len(seen), 1) for key in keys}
    weighted = {key: math.fsum(row[key] * row["support"] for row in seen) / max(total, 1) for key in keys}
    found = {"rows": rows, "macro": macro, "weighted": weighted, "total": total}
    if several:
        hits, predicted = sum(map(int, classes["correct"])), sum(row["predicted"] for row in rows)
        micro = {"precision": hits / max(predicted, 1), "recall": hits / max(total, 1)}
        found["micro"] = micro | {"f1": 2 * hits / max(total + predicted, 1)}
    return found


def class_sections(evaluated: EvaluationResult, key: str) -> str:
    """The results by class, or of a regression, and the errors; "" where the file has none of them. `key`: for ids."""
    body = _by_class(evaluated) + _words_by_type(evaluated) + _regression(evaluated) + _errors(evaluated)
    return f'<div id="{key}">{body}</div>' if body else ""


def _by_class(evaluated: EvaluationResult) -> str:
    classes: Any = evaluated.details.get("classes")
    try:
        found = class_scores(classes) if isinstance(classes, dict) else None
    except (KeyError, ValueError, TypeError):
        found = None
    if found is None or not found["rows"]:
        return ""
    rows = found["rows"]
    note = ""
    if len(rows) > MAX_CLASSES:
        note = f'<p class="small muted">The {MAX_CLASSES} of {len(rows):,} classes with the lowest F1.</p>'
        occurring = [row for row in rows if row["support"] or row["predicted"]]
        rows = sorted(occurring, key=lambda row: (row["f1"], -row["support"]))[:MAX_CLASSES]
    ranked = _ranking_columns(classes)
    more = {name: cells for name, *cells in zip(map(str, classes["names"]), *ranked.values(), strict=True)}
    cells = [[html.escape(row["name"]), *_cells(row), number_html(row["support"]), *more[row["name"]]] for row in rows]
    for name in (name for name in ("micro", "macro", "weighted") if name in found):
        average = [f"<i>{name} average</i>", *_cells(found[name]), number_html(found["total"])]
        cells.append([*average, *([""] * len(ranked))])
    head = ("Class", "Precision", "Recall", "F1", "Support", *ranked)
    shown = note + _several_note(classes) + table(head, cells, numbers=range(1, len(head)))
    title = f"<h3>Classes: {html.escape(evaluated.name)}</h3>"
    confusion = _confusion(classes["names"], classes.get("confusion")) or _confused(classes)
    if not confusion or len(rows) > SIDE_CLASSES:
        return title + confusion + (f'<div class="below">{shown}</div>' if confusion else shown)
    return f'{title}<div class="side"><div>{confusion}</div><div>{shown}</div></div>'


def _several_note(classes: Mapping[str, Any]) -> str:
    """What the figures are by, where a text may have several labels."""
    about = classes.get("multi_label")
    wanted = ("threshold", "records", "without", "predicted_without")
    if not isinstance(about, Mapping) or not all(is_finite(about.get(key)) for key in wanted):
        return ""
    threshold, records, without, predicted = (about[key] for key in wanted)
    return (
        f'<p class="small muted">A text has the labels with a probability of {threshold:g} or more. {without:,} of '
        f"{records:,} texts have no label; {predicted:,} are predicted to have none.</p>"
    )


def _ranking_columns(classes: Mapping[str, Any]) -> dict[str, list[str]]:
    """Scores by label that need no threshold, as cells; a score that is undefined is a dash."""
    found = {}
    for title, key in (("Average precision", "average_precision"), ("ROC AUC", "roc_auc")):
        values = classes.get(key)
        if isinstance(values, list) and len(values) == len(classes["names"]):
            found[title] = [f"{100 * value:.2f}" if is_finite(value) else "–" for value in values]
    return found


def _words_by_type(evaluated: EvaluationResult) -> str:
    """The confusion matrix of words by type of entity, below the entities by type."""
    words: Any = evaluated.details.get("words")
    names = words.get("names") if isinstance(words, dict) else None
    shown = _confusion(names, words.get("confusion")) if isinstance(names, list) else ""
    return f"<h3>Words by type: {html.escape(evaluated.name)}</h3>{shown}" if shown else ""


def _cells(scores: Mapping[str, float]) -> list[str]:
    return [f"{100 * scores[key]:.2f}" for key in ("precision", "recall", "f1")]


def _confusion(names: Sequence[Any], counts: Any) -> str:
    """The matrix as a table, shaded by the share of the row; "" if it is missing or not square."""
    size = len(names)
    if not (isinstance(counts, list) and len(counts) == size):
        return ""
    if not all(isinstance(row, list) and len(row) == size and all(map(is_finite, row)) for row in counts):
        return ""
    shown = [html.escape(str(name)) for name in names]
    head = "".join(f'<th scope="col" title="{name}">{name}</th>' for name in shown)
    body = ""
    for i, (name, row) in enumerate(zip(shown, counts, strict=True)):
        total = sum(row)
        cells = ""
        for j, count in enumerate(row):
            share = count / total if total else 0.0
            title = f"{name}, predicted as {shown[j]}: {count:,} of {total:,} ({console.percent(share)})"
            cells += f'<td{" class=hit" * (i == j)} style="--share:{share:.3f}" title="{title}">{count:,}</td>'
        body += f'<tr><th scope="row" title="{name}">{name}</th>{cells}</tr>'
    return (
        '<div class="scroll" tabindex="0"><table class="confusion"><caption class="note">Rows: labels. Columns: '
        f"predictions. Shade: share of the row.</caption><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody>"
        "</table></div>"
    )


def _confused(classes: Mapping[str, Any]) -> str:
    """The most frequent confusions of many classes."""
    names, rows = classes["names"], []
    for entry in classes.get("confused") or ():
        if isinstance(entry, list) and len(entry) == 3 and all(isinstance(x, int) for x in entry):
            label, guess, count = entry
            if max(label, guess) < len(names) and min(label, guess) >= 0:
                rows.append([html.escape(str(names[label])), html.escape(str(names[guess])), f"{count:,}"])
    head = ("Label", "Predicted as", "Times")
    return table(head, rows[:MAX_PAIRS], numbers=(2,)) if rows else ""


def _regression(evaluated: EvaluationResult) -> str:
    content: Any = evaluated.details.get("regression")
    points = content.get("points") if isinstance(content, dict) else None
    listed = points if isinstance(points, list) else []
    pairs = [p for p in listed if isinstance(p, list) and len(p) == 2 and all(map(is_finite, p))]
    if not pairs:
        return ""
    total = content.get("of")
    note = "Label to the right, prediction upwards; on the dashed line they are equal."
    if isinstance(total, int) and total > len(pairs):
        note = f"{len(pairs):,} of {total:,} examples. {note}"
    series = Series("prediction", [x for x, _ in pairs], [y for _, y in pairs])
    chart = Chart("Predictions by label", [series], x_unit="label", scatter=True, note=note)
    return f"<h3>Predictions: {html.escape(evaluated.name)}</h3>{figure(chart)}"


def _errors(evaluated: EvaluationResult) -> str:
    usable = [s for s in evaluated.samples if isinstance(s.get("text"), str) and "label" in s and "predicted" in s]
    if not usable:
        return ""
    sure = any(is_finite(s.get("probability")) for s in usable)
    several = isinstance((evaluated.details.get("classes") or {}).get("multi_label"), dict)
    certain = "The errors in which the model was most certain."
    which = certain if sure or several else "The largest errors."
    note = f'<p class="small muted" style="padding:0 16px">{which} Texts are as the tokenizer reads them.</p>'
    cards = "".join(map(_error, usable))
    title = f"{len(usable)} errors: {evaluated.name}"
    return details(title, f'{note}<div class="samples">{cards}</div>')


def _error(sample: Mapping[str, Any]) -> str:
    second = f'<p class="context">{text_html(sample["text_b"])}</p>' if isinstance(sample.get("text_b"), str) else ""
    chance = f" ({console.percent(sample['probability'])})" if is_finite(sample.get("probability")) else ""
    said = f'<span class="pill bad">{html.escape(_value(sample["predicted"]))}{chance}</span>'
    return (
        f'<article class="sample"><div><p class="question">{text_html(sample["text"])}</p>{second}</div>'
        f'<dl class="said-by"><dt>Label</dt><dd>{text_html(_value(sample["label"]))}</dd><dt>Predicted</dt>'
        f"<dd>{said}</dd></dl></article>"
    )


def _value(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]} …"
