"""Scores of predicted labels and numbers."""

import numpy as np


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
