"""What an evaluation fits on its answers, kept with the checkpoint: a null threshold and calibrated confidences.

A fit is a JSON object: the `step` that was scored, the number of `questions`, those `unanswerable`, the hash of the
`data`, the `null_threshold` with the best F1 and that `best_f1` (null without unanswerable questions), and the
`calibration` (null for too few questions): `temperature`, `null_bias`, the number of candidates, `n_best`, and whether
"no answer" was among them, `with_null`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertjax.data.sources.squad import Example
from bertjax.evaluation.metrics import calibration as calibrations
from bertjax.evaluation.metrics import squad
from bertjax.evaluation.metrics.calibration import Calibration, Candidates

CALIBRATION_SCORES = ("ece", "calibrated_ece")  # the keys of `calibration_scores`
Fit = Mapping[str, Any]
Entries = Sequence[Mapping[str, Any]]  # the n-best list of a question


def fit_answers(
    examples: Sequence[Example], answers: Mapping[str, str], nbest: Mapping[str, Entries],
    null_odds: Mapping[str, float] | None, n_best: int,
) -> dict[str, Any]:  # fmt: skip
    """The fit to these questions; answers: the best span of each, also where "no answer" is likelier."""
    unanswerable = sum(not example.answers for example in examples)
    threshold, best_f1 = None, None
    if null_odds is not None and unanswerable:
        threshold, best_f1 = squad.find_null_threshold(examples, answers, null_odds)
        if not math.isfinite(threshold):  # that of logits that overflow
            threshold, best_f1 = None, None
    right = np.array([_is_right(example, answers[example.id]) for example in examples])
    null_is_right = np.array([null_odds is not None and not example.answers for example in examples])
    found = calibrations.fit(
        _candidates([nbest[e.id] for e in examples], n_best), right & ~null_is_right, null_is_right
    )
    return {
        "questions": len(examples),
        "unanswerable": unanswerable,
        "null_threshold": threshold,
        "best_f1": best_f1,
        "calibration": found and {**found._asdict(), "n_best": n_best, "with_null": null_odds is not None},
    }


def calibrated(entries: Sequence[Entries], calibration: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities, by n-best list: that the best span is right [N], that "no answer" is [N].

    The latter are 0 where the calibration was fitted without "no answer".
    """
    values = Calibration(calibration["temperature"], calibration["null_bias"])
    if not calibration["with_null"]:
        entries = [[entry for entry in of if entry["text"]] for of in entries]
    return calibrations.probabilities(_candidates(entries, calibration["n_best"]), values)


def calibration_scores(
    examples: Sequence[Example], predictions: Mapping[str, str], nbest: Mapping[str, Entries], fit: Fit
) -> dict[str, float]:
    """Expected calibration error of the predictions' probabilities (`ece`) and confidences (`calibrated_ece`), in %."""
    if (calibration := fit.get("calibration")) is None:
        return {}
    entries = [nbest[example.id] for example in examples]
    right = np.array([_is_right(example, predictions[example.id]) for example in examples])
    answered = np.array([bool(predictions[example.id]) for example in examples])
    plain = {**calibration, **Calibration()._asdict()}
    found = {}
    for name, values in zip(CALIBRATION_SCORES, (plain, calibration), strict=True):
        span, null = calibrated(entries, values)
        found[name] = calibrations.expected_calibration_error(np.where(answered, span, null), right)
    return found


def _is_right(example: Example, text: str) -> bool:
    """Whether an answer matches exactly, by the rules of v2.0."""
    return bool(squad.judge([answer for answer, _ in example.answers], text)[0])


def _candidates(entries: Sequence[Entries], n_best: int) -> Candidates:
    """The scores of at most `n_best` candidates of each question, "no answer" among them."""
    null: list[float | None] = [next((_score(e) for e in of if not e["text"]), None) for of in entries]
    spans = [
        [_score(e) for e in of if e["text"]][: max(1, n_best - (none is not None))]
        for of, none in zip(entries, null, strict=True)
    ]
    return calibrations.candidates(spans, null)


def _score(entry: Mapping[str, Any]) -> float:
    return float(entry["start_logit"]) + float(entry["end_logit"])
