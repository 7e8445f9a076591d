"""Scores of texts with several labels each, as scikit-learn computes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bertjax.evaluation.metrics.labels import mean_scores, prf, ranks

SCORES = (
    "micro_f1", "macro_f1", "weighted_f1", "exact_match", "average_precision", "roc_auc",
    "label_ranking_average_precision",
)  # fmt: skip


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The sigmoid of logits, float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, powers) / (1 + powers)


def multi_label_scores(logits: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """logits [N, C] and labels [N, C] of 0 and 1 -> scores in percent.

    A text has the labels with a probability of `threshold` or more. micro_f1, macro_f1 and weighted_f1: `f1_score` of
    scikit-learn with zero_division=0, over all labels; exact_match: `accuracy_score`, the texts with exactly their
    labels. Without a threshold: average_precision and roc_auc, the means over the labels for which they are defined
    (with a positive example; with a negative one too), and label_ranking_average_precision_score. 0 if none is.
    """
    truth, guesses = np.asarray(labels) > 0, probabilities(logits) >= threshold
    hits, support, predicted = (truth & guesses).sum(0), truth.sum(0), guesses.sum(0)
    f1 = prf(hits, support, predicted)[2]
    both = support.sum() + predicted.sum()
    single = [(average_precision(x, y), roc_auc(x, y)) for x, y in zip(np.asarray(logits).T, truth.T, strict=True)]
    defined = [[score for score in scores if score is not None] for scores in zip(*single, strict=True)]
    precision, auc = (float(np.mean(scores)) if scores else 0.0 for scores in defined)
    macro, weighted = mean_scores(f1, support, np.ones(len(f1), bool))
    micro, exact = 2 * hits.sum() / both if both else 0.0, (truth == guesses).all(1).mean() if len(truth) else 0.0
    found = (micro, macro, weighted, exact, precision, auc, ranking_precision(logits, truth))
    return {name: 100 * float(value) for name, value in zip(SCORES, found, strict=True)}


def multi_label_details(
    logits: np.ndarray, labels: np.ndarray, names: Sequence[str] | None, threshold: float = 0.5
) -> dict[str, Any]:
    """Counts and scores by label, as JSON; arguments as of `multi_label_scores`, `names` of the labels by id.

    -> {"classes": {"names", "support" [C], "predicted" [C], "correct" [C], "precision", "recall", "f1",
    "average_precision", "roc_auc" (null where undefined), "multi_label": {"records", "threshold", "without" (texts
    without a label), "predicted_without"}}}.
    """
    truth, guesses = np.asarray(labels) > 0, probabilities(logits) >= threshold
    hits, support, predicted = (truth & guesses).sum(0), truth.sum(0), guesses.sum(0)
    columns = list(zip(np.asarray(logits).T, truth.T, strict=True))
    rounded = lambda values: [None if x is None else round(float(x), 6) for x in values]  # noqa: E731
    precision, recall, f1 = map(rounded, prf(hits, support, predicted))
    return {
        "classes": {
            "names": list(names) if names else [str(i) for i in range(truth.shape[1])],
            "support": support.tolist(), "predicted": predicted.tolist(), "correct": hits.tolist(),
            "precision": precision, "recall": recall, "f1": f1,
            "average_precision": rounded(average_precision(x, y) for x, y in columns),
            "roc_auc": rounded(roc_auc(x, y) for x, y in columns),
            "multi_label": {
                "records": len(truth), "threshold": threshold, "without": int((~truth.any(1)).sum()),
                "predicted_without": int((~guesses.any(1)).sum()),
            },
        }
    }  # fmt: skip


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """`average_precision_score`: sum of (R_n - R_{n-1}) P_n over thresholds; None without a positive example."""
    positives = int(truth.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # equal scores are one threshold
    precision, recall = hits[last] / (last + 1), hits[last] / positives
    return float((np.diff(recall, prepend=0) * precision).sum())


def roc_auc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """`roc_auc_score`, by ranks (Mann-Whitney U); None where all examples are of one kind."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    above = (ranks(scores) + 1)[truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def ranking_precision(logits: np.ndarray, truth: np.ndarray) -> float:
    """`label_ranking_average_precision_score`: 1 for a text with no label or all of them; equal scores rank last."""
    if not len(truth):
        return 0.0
    found = []
    for scores, own in zip(np.asarray(logits, np.float64), truth, strict=True):
        if not own.any() or own.all():
            found.append(1.0)
            continue
        rank = (scores[None] >= scores[own][:, None]).sum(1)
        among = (scores[own][None] >= scores[own][:, None]).sum(1)
        found.append(float((among / rank).mean()))
    return float(np.mean(found))
