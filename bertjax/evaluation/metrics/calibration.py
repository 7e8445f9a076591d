"""Calibrated confidence of answers: temperature scaling with a bias of "no answer", and the calibration error.

Temperature scaling and the expected calibration error are those of Guo et al. 2017 (arXiv 1706.04599); the bias of one
class is that of Alexandari et al. 2020 (arXiv 1901.06852, "bias-corrected temperature scaling"): the score of "no
answer" has another offset than those of spans, which is also why SQuAD v2.0 sweeps a threshold for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 15  # of the calibration error, as in the paper
MIN_QUESTIONS, MIN_EACH = 100, 10  # questions that a fit needs, and among them right and wrong answers
_LEAST, _MOST = 0.01, 100.0  # bounds of 1 / temperature
_STEPS = 100


class Calibration(NamedTuple):
    """Scores are divided by `temperature` once `null_bias` is added to that of "no answer"."""

    temperature: float = 1.0
    null_bias: float = 0.0


class Candidates(NamedTuple):
    """Scores of the candidates of N questions, float64, padded with -inf: the best span first, further spans after it.

    `null`: the score of "no answer", float64 [N]; -inf where the model does not predict it.
    """

    spans: np.ndarray  # [N, C]
    null: np.ndarray  # [N]


def candidates(spans: Sequence[Sequence[float]], null: Sequence[float | None]) -> Candidates:
    """Pad the scores of each question; a question needs a span or a null score."""
    width = max((len(scores) for scores in spans), default=0)
    found = np.full((len(spans), max(width, 1)), -np.inf)
    for row, scores in zip(found, spans, strict=True):
        row[: len(scores)] = scores
    return Candidates(found, np.array([-np.inf if score is None else score for score in null], np.float64))


def probabilities(found: Candidates, calibration: Calibration = Calibration()) -> tuple[np.ndarray, np.ndarray]:  # noqa: B008 - immutable
    """-> (probability of the best span [N], of "no answer" [N]) of a softmax over all candidates."""
    logits = np.column_stack([found.null + calibration.null_bias, found.spans]) / calibration.temperature
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights[:, 1], weights[:, 0]


def fit(found: Candidates, best_is_right: np.ndarray, null_is_right: np.ndarray) -> Calibration | None:
    """The calibration with the least negative log-likelihood of what was right; None if too little can be told.

    The outcomes of a question are that its best span is right, that "no answer" is, or that neither is, whose
    probability is that of all other candidates. best_is_right, null_is_right: bool [N], never both true. None for fewer
    than MIN_QUESTIONS questions, or fewer than MIN_EACH right or wrong best spans.
    """
    right = int(best_is_right.sum())
    if len(best_is_right) < MIN_QUESTIONS or min(right, len(best_is_right) - right) < MIN_EACH:
        return None
    scores = np.column_stack([found.null, found.spans])
    possible = np.isfinite(scores)
    outcome = possible.copy()
    outcome[:, 0] &= null_is_right
    outcome[:, 1] &= best_is_right
    outcome[:, 2:] &= ~(best_is_right | null_is_right)[:, None]
    told = outcome.any(1) & (possible.sum(1) > 1)  # without another candidate nothing can be learned
    if not told.any():
        return None
    scores = np.where(possible, scores, 0.0)[told]
    scores -= scores.max(1, keepdims=True)  # adds a constant to all candidates
    with_null = bool(possible[told, 0].any() and null_is_right.any())
    slope, offset = _minimize(scores, possible[told], outcome[told], with_null)
    return Calibration(1 / slope, offset / slope)


def _minimize(scores: np.ndarray, possible: np.ndarray, outcome: np.ndarray, with_null: bool) -> tuple[float, float]:
    """Newton's method with step halving for logits slope * score + offset * [is null] -> (slope, offset)."""
    at = np.array([1.0, 0.0])
    value, gradient, hessian = _likelihood(at, scores, possible, outcome)
    for _ in range(_STEPS):
        if not with_null:
            gradient[1], hessian[:, 1], hessian[1, :] = 0.0, 0.0, 0.0
        values, vectors = np.linalg.eigh(hessian)
        step = vectors @ ((vectors.T @ gradient) / np.maximum(np.abs(values), 1e-9))  # downhill where it is not convex
        size = 1.0
        while size > 1e-9:
            trial = at - size * step
            trial[0] = np.clip(trial[0], _LEAST, _MOST)
            found = _likelihood(trial, scores, possible, outcome)
            if found[0] < value:
                break
            size /= 2
        else:
            break
        done = value - found[0] < 1e-12
        at, (value, gradient, hessian) = trial, found
        if done:
            break
    return float(at[0]), float(at[1])


def _likelihood(
    at: np.ndarray, scores: np.ndarray, possible: np.ndarray, outcome: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """-> (mean negative log-likelihood, its gradient [2], its Hessian [2, 2]) by slope and offset."""
    logits = at[0] * scores
    logits[:, 0] += at[1]
    everything, mean_all, second_all = _moments(logits, scores, possible)
    inside, mean_in, second_in = _moments(logits, scores, outcome)
    return float((everything - inside).mean()), mean_all - mean_in, second_all - second_in


def _moments(logits: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the chosen candidates: log of the sum of exponentials [N], and over all questions the mean of its gradient and
    of its Hessian by slope and offset."""
    logits = np.where(chosen, logits, -np.inf)
    top = logits.max(1, keepdims=True)
    weights = np.exp(logits - top)
    total = weights.sum(1, keepdims=True)
    weights /= total
    score, null = (weights * scores).sum(1), weights[:, 0]
    square, cross = (weights * scores**2).sum(1), weights[:, 0] * scores[:, 0]
    variance, covariance = square - score**2, cross - score * null
    hessian = np.array([[variance.mean(), covariance.mean()], [covariance.mean(), (null - null**2).mean()]])
    return (top + np.log(total))[:, 0], np.array([score.mean(), null.mean()]), hessian


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """In percent: |accuracy - mean confidence| in BINS equal intervals of the confidence, by their share of questions.

    confidence: float [N] from 0 to 1; right: bool [N]. A bin contains its upper end (section 2 of the paper).
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(100 * np.abs(gaps).sum() / max(1, len(confidence)))
