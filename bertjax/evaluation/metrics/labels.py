"""Scores of predicted labels and numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_CONFUSION = 40  # classes with a full confusion matrix; of more, only the most frequent confusions are listed
MAX_PAIRS = 60  # of those
MAX_POINTS = 500  # points of a regression


def label_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """logits [N, 1, C] or [N, C] and labels [N, 1] or [N] -> scores in percent, as GLUE reports them.

    C = 1 is regression: Pearson and Spearman correlation. Else accuracy, and for two labels F1 of label 1 and Matthews
    correlation (0 where it is undefined).
    """
    logits = np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])
    labels = np.asarray(labels).reshape(-1)
    if logits.shape[1] == 1:
        guesses = logits[:, 0]
        spearman = correlation(ranks(guesses), ranks(labels))
        return {"pearson": 100 * correlation(guesses, labels), "spearman": 100 * spearman}
    guesses = logits.argmax(1)
    scores = {"accuracy": 100 * float((guesses == labels).mean())}
    if logits.shape[1] == 2:
        hit = int(((guesses == 1) & (labels == 1)).sum())
        wrong = int((guesses != labels).sum())
        scores["f1"] = 100 * 2 * hit / max(2 * hit + wrong, 1)
        scores["matthews"] = 100 * correlation(guesses, labels)
    return scores


def score_names(classes: int) -> tuple[str, ...]:
    """The keys of `label_scores` for so many classes."""
    if classes == 1:
        return ("pearson", "spearman")
    return ("accuracy", "f1", "matthews") if classes == 2 else ("accuracy",)


def label_details(logits: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> dict[str, Any]:
    """Counts behind the scores, as JSON; arguments as of `label_scores`, `names` of the classes by id.

    Classes: {"classes": {"names", "support" [C], "predicted" [C], "correct" [C], "confusion" [C, C] (rows: labels,
    columns: predictions) or "confused" [[label, prediction, count]...]}}, by id.
    Regression: {"regression": {"points": [[label, prediction]...], "of": N}}, evenly spread over the data.
    """
    logits = np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])
    labels = np.asarray(labels).reshape(-1)
    if logits.shape[1] == 1:
        picked = np.unique(np.linspace(0, len(labels) - 1, min(MAX_POINTS, len(labels))).astype(int))
        pairs = np.stack([labels[picked], logits[picked, 0]], axis=1)
        pairs = pairs[np.isfinite(pairs).all(1)]
        return {"regression": {"points": [[float(f"{x:.5g}") for x in pair] for pair in pairs], "of": len(labels)}}
    count, guesses = logits.shape[1], logits.argmax(1)
    pairs, numbers = np.unique(np.stack([labels.astype(int), guesses], axis=1), axis=0, return_counts=True)
    of = lambda values: np.bincount(values, minlength=count)[:count].tolist()  # noqa: E731
    found: dict[str, Any] = {
        "names": list(names) if names else [str(i) for i in range(count)],
        "support": of(labels.astype(int)),
        "predicted": of(guesses),
        "correct": of(guesses[guesses == labels]),
    }
    if count <= MAX_CONFUSION:
        confusion = np.zeros((count, count), int)
        confusion[tuple(pairs.T)] = numbers
        return {"classes": found | {"confusion": confusion.tolist()}}
    wrong = [[*pair, n] for pair, n in zip(pairs.tolist(), numbers.tolist(), strict=True) if pair[0] != pair[1]]
    return {"classes": found | {"confused": sorted(wrong, key=lambda one: -one[2])[:MAX_PAIRS]}}


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; for two binary variables this is Matthews correlation. 0 where one of them is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # whose mean may be off by a rounding
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / spread if spread else 0.0  # no spread: numbers too small to square


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts) + (last - 1))[inverse] / 2
