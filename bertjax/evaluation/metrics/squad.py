"""SQuAD scores by the rules of the official evaluate-v1.1.py and evaluate-v2.0.py (rajpurkar/SQuAD-explorer)."""

import functools
import json
import math
import re
import string
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.sources.squad import Example
from bertjax.errors import UserError, escape_unprintable
from bertjax.progress import reporter
from bertjax.storage.files import expand_globs, read_text

Gold = Mapping[str, Any] | Sequence[Any]  # the official object, its "data" list, or a list of Example
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


# the keys of `score`
V1_SCORES = ("exact_match", "f1", "exact", "total")
V2_SCORES = (
    "exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total", "NoAns_exact", "NoAns_f1", "NoAns_total",
    "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh",
)  # fmt: skip


def score(
    gold: Gold, predictions: Mapping[str, str], na_prob: Mapping[str, float] | None = None, na_prob_thresh: float = 1.0,
    version_2: bool | None = None,
) -> dict[str, float]:  # fmt: skip
    """Scores in percent, with the official keys. `version_2` None: whether `gold` says so, has a question without
    answers, or `na_prob` is given. Raises UserError without a question, prediction or no-answer probability to score.

    v1.1: {exact_match, f1}, and the v2.0 keys {exact, total}; a question without a prediction counts 0. v2.0: {exact,
    f1, total}, HasAns_* and NoAns_*, and with `na_prob` best_exact, best_exact_thresh, best_f1, best_f1_thresh; a
    no-answer probability strictly above `na_prob_thresh` replaces the prediction by "". As in the official script, a
    question without a prediction is in no total, but best_* count it if it is unanswerable; where the script then fails
    with a KeyError, HasAns_* and NoAns_* cover the predicted questions.
    """
    questions = _questions(gold)
    if not questions:
        raise UserError("gold: contains no questions; name the data set of the predictions")
    if version_2 is None:
        named = str(gold.get("version")).lower() if isinstance(gold, Mapping) else ""
        unanswerable = not all(answers for _, answers in questions)
        version_2 = na_prob is not None or unanswerable or named.lstrip("v").startswith("2")
    if version_2:
        return _score_v2(questions, predictions, na_prob, na_prob_thresh)
    return _score_v1(questions, predictions)


def score_command(
    gold_path: str | Path, predictions_path: str | Path, na_prob_file: str | Path | None = None,
    na_prob_thresh: float = 1.0,
) -> dict[str, float]:  # fmt: skip
    """`score` for files (gold: JSON, may be compressed); reports questions without a prediction on stderr.

    Raises UserError for files that are missing, not JSON, or not of the official form.
    """
    gold = _object(Path(gold_path))
    predictions = _object(Path(predictions_path))
    for key, text in predictions.items():
        if not isinstance(text, str):
            kind = type(text).__name__
            where = f"{predictions_path}: '{escape_unprintable(key)[:60]}'"
            raise UserError(f"{where}: a string is needed, not {kind}; write {{id: answer}}")
    na_prob = _object(Path(na_prob_file)) if na_prob_file is not None else None
    for key, value in (na_prob or {}).items():
        if not _is_number(value):
            where = f"{na_prob_file}: '{escape_unprintable(key)[:60]}'"
            shown = escape_unprintable(repr(value))[:60]
            raise UserError(f"{where}: a number is needed, not {shown}; write {{id: number}}")
    try:
        questions = _questions(gold)
        if not all(isinstance(text, str) for _, answers in questions for text in answers) or not all(
            isinstance(key, str | int) for key, _ in questions
        ):
            raise TypeError
    except (KeyError, TypeError, AttributeError) as error:
        what = f"key {error} is missing" if isinstance(error, KeyError) else "a list or an object is of another type"
        raise UserError(f"{gold_path}: {what}; the form is data > paragraphs > qas > id, answers > text") from None
    missing = [key for key, _ in questions if key not in predictions]
    try:
        scores = score(gold, predictions, na_prob, na_prob_thresh)
    except UserError as error:
        raise UserError(f"{gold_path}, {predictions_path}: {error}") from None
    if missing:
        effect = "count 0" if "exact_match" in scores else "are left out of the totals"
        share = f"{len(missing)} of {len(questions)} questions"
        reporter.say(f"{share} have no prediction and {effect} (first: {missing[0]})")
    return scores


def _is_number(value: Any) -> bool:
    """Whether a value has a float that is not NaN; an integer of many digits has none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max if isinstance(value, int) else not math.isnan(value)


def _object(path: Path) -> dict[str, Any]:
    file = expand_globs([str(path)], Path())[0]
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: line {error.lineno}: not JSON ({error.msg}); write the file again") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: not JSON (a number too long, or nested too deeply); write it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: a JSON object is needed, not {type(content).__name__}; write {{key: value}}")
    return content


def _questions(gold: Gold) -> list[tuple[str, list[str]]]:
    """(id, gold answer texts) in file order."""
    articles = gold["data"] if isinstance(gold, Mapping) else gold
    if all(isinstance(item, Example) for item in articles):
        return [(example.id, [text for text, _ in example.answers]) for example in articles]
    every = (qa for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"])
    return [(qa["id"], [answer["text"] for answer in qa["answers"]]) for qa in every]


def _score_v1(questions: list[tuple[str, list[str]]], predictions: Mapping[str, str]) -> dict[str, float]:
    exact = f1 = 0.0
    for key, answers in questions:
        if key in predictions:
            exact += max((_exact(answer, predictions[key]) for answer in answers), default=0)
            f1 += max((_f1(answer, predictions[key], both_empty=0) for answer in answers), default=0)
    total = len(questions)
    exact, f1 = 100.0 * exact / total, 100.0 * f1 / total
    return {"exact_match": exact, "f1": f1, "exact": exact, "total": total}


def _score_v2(
    questions: list[tuple[str, list[str]]], predictions: Mapping[str, str], na_prob: Mapping[str, float] | None,
    threshold: float,
) -> dict[str, float]:  # fmt: skip
    has_answer = {key: bool(answers) for key, answers in questions}
    judged = {key: judge(answers, predictions[key]) for key, answers in questions if key in predictions}
    exact_raw: dict[str, float] = {key: exact for key, (exact, _) in judged.items()}
    f1_raw = {key: f1 for key, (_, f1) in judged.items()}
    if not exact_raw:
        raise UserError("predictions: none is for a question of the gold data; check that the files belong together")
    if na_prob is not None and (absent := [key for key in exact_raw if key not in na_prob]):
        raise UserError(f"na_prob: question '{absent[0]}' has a prediction but no number; give one for each prediction")

    def thresholded(raw: dict[str, float]) -> dict[str, float]:
        given = na_prob if na_prob is not None else dict.fromkeys(raw, 0.0)
        return {k: float(not has_answer[k]) if given[k] > threshold else value for k, value in raw.items()}

    exact, f1 = thresholded(exact_raw), thresholded(f1_raw)
    scores = _means(exact, f1, list(exact), "")
    scores |= _means(exact, f1, [key for key in exact if has_answer[key]], "HasAns_")
    scores |= _means(exact, f1, [key for key in exact if not has_answer[key]], "NoAns_")
    if na_prob is not None:
        for name, raw in (("exact", exact_raw), ("f1", f1_raw)):
            best, best_thresh = _best_threshold(predictions, raw, na_prob, has_answer)
            scores |= {f"best_{name}": best, f"best_{name}_thresh": best_thresh}
    return scores


def _means(exact: dict[str, float], f1: dict[str, float], keys: list[str], prefix: str) -> dict[str, float]:
    if not keys:
        return {}
    mean_exact, mean_f1 = (100.0 * sum(values[key] for key in keys) / len(keys) for values in (exact, f1))
    return {f"{prefix}exact": mean_exact, f"{prefix}f1": mean_f1, f"{prefix}total": len(keys)}


def _best_threshold(
    predictions: Mapping[str, str], raw: dict[str, float], na_prob: Mapping[str, float], has_answer: dict[str, bool]
) -> tuple[float, float]:
    """(best mean in percent, its threshold): starts with no answers, then answers questions from the lowest
    probability up, ties in file order (find_best_thresh)."""
    current: float = sum(not answerable for answerable in has_answer.values())
    best, threshold = current, 0.0
    for key in sorted(na_prob, key=lambda k: na_prob[k]):
        if key not in raw:
            continue
        current += raw[key] if has_answer[key] else -bool(predictions[key])
        if current > best:
            best, threshold = current, na_prob[key]
    return 100.0 * best / len(raw), threshold


def judge(answers: Sequence[str], predicted: str) -> tuple[int, float]:
    """(exact match 0 or 1, F1 from 0 to 1) of a prediction by the rules of v2.0; without answers "" is right."""
    golds = [answer for answer in answers if normalize(answer)] or [""]
    exact = max(_exact(answer, predicted) for answer in golds)
    return exact, max(_f1(answer, predicted, both_empty=1) for answer in golds)


def find_null_threshold(
    examples: Sequence[Example], answers: Mapping[str, str], null_odds: Mapping[str, float]
) -> tuple[float, float]:
    """Sweep the threshold on the null odds -> (the best one, the F1 in percent with it), as find_best_thresh does.

    answers: the best answer to each question, also where "no answer" is likelier. Questions whose odds are strictly
    above the threshold are not answered. Unlike in the official sweep, equal odds count together, and where it is best
    to answer nothing the threshold is below all odds (there it is 0.0, for probabilities): with the threshold that is
    returned, predictions have exactly this F1. Of equal ones the lowest is returned.
    """
    odds = np.array([null_odds[example.id] for example in examples], np.float64)
    gains = np.array([_gain(example, answers[example.id]) for example in examples], np.float64)
    order = np.argsort(odds, kind="stable")
    odds, reached = odds[order], np.cumsum(gains[order])
    last: Any = np.append(odds[1:] != odds[:-1], True)  # of equal odds
    odds, reached = odds[last], reached[last]
    nothing = sum(not example.answers for example in examples)
    best = int(np.argmax(reached))
    if reached[best] <= 0:
        return float(odds[0]) - 1.0, 100.0 * nothing / len(examples)
    return float(odds[best]), 100.0 * float(nothing + reached[best]) / len(examples)


def _gain(example: Example, answer: str) -> float:
    """What a question adds to the F1 if it is answered, against no answer."""
    if not example.answers:
        return -float(bool(answer))
    return judge([text for text, _ in example.answers], answer)[1]


@functools.lru_cache(maxsize=1 << 16)
def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space (normalize_answer)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _exact(gold: str, predicted: str) -> int:
    return int(normalize(gold) == normalize(predicted))


def _f1(gold: str, predicted: str, both_empty: int) -> float:
    """Two empty texts agree in v2.0 (both_empty 1) but score 0 in v1.1."""
    gold, predicted = normalize(gold), normalize(predicted)
    return word_f1(gold, predicted) if gold or predicted else both_empty


def word_f1(gold: str, predicted: str) -> float:
    """Harmonic mean of precision and recall over shared words."""
    gold_words, predicted_words = gold.split(), predicted.split()
    shared = sum((Counter(gold_words) & Counter(predicted_words)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted_words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)
