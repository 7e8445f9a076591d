"""transformers' postprocess_qa_predictions (examples/pytorch/question-answering/utils_qa.py), written out by its rules.

Where bertjax's profile hf differs on purpose the line says so; everything else is the script's order of steps.
"""

from collections.abc import Sequence

import numpy as np


def postprocess_qa_predictions(
    context: str, windows: Sequence[dict], start_logits: np.ndarray, end_logits: np.ndarray, *,
    version_2: bool, n_best_size: int, max_answer_length: int, null_score_diff_threshold: float,
) -> tuple[str, list[dict], float | None]:  # fmt: skip
    """(prediction, n-best list, null score difference) of one example.

    A window is {"offset_mapping": [(start, stop) or None...], "token_is_max_context": [bool...]}.
    """
    min_null = None
    prelim = []
    for window, starts, ends in zip(windows, start_logits, end_logits, strict=True):
        offsets, max_context = window["offset_mapping"], window["token_is_max_context"]
        null_score = starts[0] + ends[0]
        if min_null is None or min_null["score"] > null_score:
            min_null = {"offsets": (0, 0), "score": null_score, "start_logit": starts[0], "end_logit": ends[0]}
        # differs: positions that cannot be answered with are masked before the cut, in the script after it
        inside = np.array([offset is not None for offset in offsets])
        starts, ends = np.where(inside & max_context, starts, -np.inf), np.where(inside, ends, -np.inf)
        for start in np.argsort(starts)[-1 : -n_best_size - 1 : -1].tolist():
            for end in np.argsort(ends)[-1 : -n_best_size - 1 : -1].tolist():
                if offsets[start] is None or offsets[end] is None or not max_context[start]:
                    continue
                if end < start or end - start + 1 > max_answer_length:
                    continue
                prelim.append(
                    {
                        "offsets": (offsets[start][0], offsets[end][1]),
                        "score": starts[start] + ends[end],
                        "start_logit": starts[start],
                        "end_logit": ends[end],
                    }
                )
    if version_2 and min_null is not None:
        prelim.append(min_null)
    predictions: list[dict] = []
    for entry in sorted(prelim, key=lambda x: x["score"], reverse=True):
        entry["text"] = context[slice(*entry.pop("offsets"))]
        # differs: a text is listed once, with its best score
        if len(predictions) < n_best_size and entry["text"] not in [known["text"] for known in predictions]:
            predictions.append(entry)
    if version_2 and min_null is not None and not any(p["text"] == "" for p in predictions):
        predictions.append(min_null)
    # differs: no {"text": "empty", "start_logit": 0.0, "end_logit": 0.0} where there is no other prediction
    scores = np.array([p.pop("score") for p in predictions])
    exp_scores = np.exp(scores - np.max(scores))
    for probability, entry in zip(exp_scores / exp_scores.sum(), predictions, strict=True):
        entry["probability"] = probability
    if not version_2:
        return predictions[0]["text"], predictions, None
    best = next(p for p in predictions if p["text"])
    null_score = min_null["start_logit"] + min_null["end_logit"]
    difference = null_score - best["start_logit"] - best["end_logit"]
    return "" if difference > null_score_diff_threshold else best["text"], predictions, difference
