"""Scores of predicted labels and numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_CONFUSION = 40  # classes with a full confusion matrix; of more, only the most frequent confusions are listed
MAX_PAIRS = 60  # of those
MAX_POINTS = 500  # points of a regression


def label_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """logits [N, 1, C] or [N, C] and labels [N, 1] or [N] -> scores in percent, as GLUE reports them.

    C = 1 is regression: Pearson and Spearman correlation, the coefficient of determination (r2), and the mean squared
    error (mse), which is not in percent. Else accuracy, Matthews correlation (0 where it is undefined), F1 of label 1
    for two labels, and the mean F1 over the classes that occur in labels or predictions, plain (macro) and weighted by
    their labels; an F1 with denominator 0 is 0 (`zero_division=0` of scikit-learn).
    """
    logits = np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])
    labels = np.asarray(labels).reshape(-1)
    if logits.shape[1] == 1:
        return _number_scores(logits[:, 0], np.asarray(labels, np.float64))
    guesses, labels = logits.argmax(1), labels.astype(int)
    of = lambda values: np.bincount(values, minlength=logits.shape[1])  # noqa: E731
    hits, support, predicted = of(labels[guesses == labels]), of(labels), of(guesses)
    f1 = prf(hits, support, predicted)[2]
    scores = {"accuracy": 100 * float((guesses == labels).mean())}
    if logits.shape[1] == 2:
        scores["f1"] = 100 * float(f1[1])
    scores["matthews"] = 100 * matthews(int(hits.sum()), support, predicted)
    macro, weighted = mean_scores(f1, support, (support + predicted) > 0)
    return scores | {"macro_f1": 100 * macro, "weighted_f1": 100 * weighted}


def _number_scores(guesses: np.ndarray, numbers: np.ndarray) -> dict[str, float]:
    error = float(((guesses - numbers) ** 2).mean())
    spread = float(((numbers - numbers.mean()) ** 2).mean()) if np.ptp(numbers) else 0.0
    r2 = 1 - error / spread if spread else float(error == 0)  # as r2_score, for labels that are all the same
    return {
        "pearson": 100 * correlation(guesses, numbers),
        "spearman": 100 * correlation(ranks(guesses), ranks(numbers)),
        "r2": 100 * r2,
        "mse": error,
    }


def prf(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of each class, int [C] -> precision, recall and F1 [C]; 0 where a denominator is 0."""
    return hits / np.maximum(predicted, 1), hits / np.maximum(support, 1), 2 * hits / np.maximum(support + predicted, 1)


def mean_scores(scores: np.ndarray, support: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """(mean of the scores [C] of the classes in `seen`, mean of all weighted by support)."""
    macro = float(scores[seen].mean()) if seen.any() else 0.0
    return macro, float((scores * support).sum() / max(int(support.sum()), 1))


def matthews(hits: int, support: np.ndarray, predicted: np.ndarray) -> float:
    """`matthews_corrcoef` for any number of classes, from the number of right predictions and the counts [C]."""
    count, support, predicted = int(support.sum()), support.astype(float), predicted.astype(float)
    spread = (count**2 - (predicted**2).sum()) * (count**2 - (support**2).sum())
    return float((hits * count - (support * predicted).sum()) / np.sqrt(spread)) if spread > 0 else 0.0


def score_names(classes: int) -> tuple[str, ...]:
    """The keys of `label_scores` for so many classes."""
    if classes == 1:
        return ("pearson", "spearman", "r2", "mse")
    return ("accuracy", *(("f1",) if classes == 2 else ()), "matthews", "macro_f1", "weighted_f1")


def label_details(logits: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> dict[str, Any]:
    """Counts behind the scores, as JSON; arguments as of `label_scores`, `names` of the classes by id.

    Classes: {"classes": {"names", "support" [C], "predicted" [C], "correct" [C], "precision", "recall", "f1" [C],
    "confusion" [C, C] (rows: labels, columns: predictions) or "confused" [[label, prediction, count]...]}}, by id.
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
    counts = (np.asarray(found[key]) for key in ("correct", "support", "predicted"))
    for key, scores in zip(("precision", "recall", "f1"), prf(*counts), strict=True):
        found[key] = [round(float(score), 6) for score in scores]
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
