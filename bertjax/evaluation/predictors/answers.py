"""Answer questions with spans of contexts of any length."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertjax.config.schema.data import SpanQa
from bertjax.config.schema.evaluation import SquadEvaluation
from bertjax.data.preprocess.span_qa import Example, Features, feature_parts
from bertjax.errors import UserError, escape_unprintable
from bertjax.evaluation import fitted
from bertjax.evaluation.evaluators import span_qa
from bertjax.evaluation.inference.answer_fit import calibrated
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.evaluation.inference.span_decoding import predict_from_parts
from bertjax.evaluation.inference.token_rows import check_texts
from bertjax.evaluation.metrics.calibration import MIN_QUESTIONS
from bertjax.evaluation.predictors.base import Checkpoint, Predictor, as_restored, check_count, check_number
from bertjax.evaluation.predictors.results import Answer, AnswerCandidate
from bertjax.progress import reporter

WINDOWS_PER_BATCH, WINDOWS_PER_CPU_BATCH = 32, 4  # unless a batch size is given
MAX_WINDOWS_AT_ONCE = 4096  # of which the logits are kept


class Rule(NamedTuple):
    """What decides about an answer."""

    n_best: int
    version_2: bool  # whether there may be no answer
    threshold: float
    calibration: Mapping[str, Any] | None
    min_probability: float | None
    min_confidence: float | None


def answer(
    checkpoint: Checkpoint, question: str, context: str, n_best: int = 3,
    null_threshold: float | None = None, min_probability: float | None = None, overrides: Sequence[str] = (),
    min_confidence: float | None = None,
) -> Answer:  # fmt: skip
    """`Answerer` for one question to a run, a checkpoint or a restored one; `bertjax.open` keeps it open for many."""
    predictor = Answerer(as_restored(checkpoint, overrides))
    (found,) = predictor([question], [context], n_best, null_threshold, min_probability, min_confidence)
    return found


class Answerer(Predictor):
    """Answers questions by the settings of the stage's evaluation."""

    head = "qa"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._logits = span_qa.make_span_logits_fn(self.restored.program)

    def __call__(
        self, questions: Sequence[str], contexts: Sequence[str], n_best: int = 3,
        null_threshold: float | None = None, min_probability: float | None = None,
        min_confidence: float | None = None,
    ) -> list[Answer]:  # fmt: skip
        """The answer to each question in the context beside it, with its `n_best` candidates, best first.

        Probabilities are a softmax over all candidates. A checkpoint with a fitted calibration adds "confidence", the
        probability that the answer, or "no answer" where that is given, is right. A model that can predict "no answer"
        (unanswerable questions in its training data, version_2, a threshold that was swept or `null_threshold`) adds
        "no_answer". The answer is None, with a "reason" instead of a "probability", when the null odds exceed the
        threshold (default: the one that was swept, else that of the evaluation), or the best candidate's probability is
        below `min_probability` or its confidence below `min_confidence`.

        Raises UserError when a text is empty or not Unicode, when the numbers of questions and contexts differ, and for
        `min_confidence` without a calibration.
        """
        rule = self.rule(
            check_count("n_best", n_best), null_threshold, check_fraction("min_probability", min_probability),
            check_fraction("min_confidence", min_confidence),
        )  # fmt: skip
        asked = self._examples(check_texts("questions", questions), check_texts("contexts", contexts))
        settings, windows = self.decoding(rule)
        found: list[Answer] = []
        with reporter.ensure_task("answering", len(asked), "questions"):
            for part in parts_of(asked, windows.sequence_length):
                found_in = feature_parts(part, self.tokenizer, windows, MAX_WINDOWS_AT_ONCE, by_text=True)
                _, nbest, odds = predict_from_parts(
                    part, ((features, *self.span_logits(features)) for features in found_in), n_best=settings.n_best,
                    max_answer_length=settings.max_answer_length, null_score_diff_threshold=rule.threshold,
                    version_2=rule.version_2,
                )  # fmt: skip
                for one in part:
                    if not any(entry["text"] for entry in nbest[one.id]):
                        of = f" of '{escape_unprintable(one.question[:60])}'" if len(asked) > 1 else ""
                        raise UserError(
                            f"the tokenizer finds no token in the context{of}; give a context of at least one word"
                        )
                    picked = select_answer(nbest[one.id], odds.get(one.id), rule)
                    found.append({"question": one.question, **picked})  # type: ignore[typeddict-item]
                reporter.advance(len(part), "questions")
        return found

    def rule(
        self, n_best: int, null_threshold: float | None, min_probability: float | None, min_confidence: float | None
    ) -> Rule:
        """What decides about the answers: options given here first, then what the checkpoint keeps and its settings."""
        restored = self.restored
        settings, _ = span_qa.stage_settings(restored.ctx.config, restored.ctx.config.stages[restored.stage])
        given = check_number("null_threshold", null_threshold)
        threshold, swept = fitted.null_threshold(restored, settings)
        version_2 = bool(restored.unanswerable) if settings.version_2 is None else settings.version_2
        version_2 = version_2 or swept or given is not None or isinstance(settings.null_threshold, float)
        found = fitted.pick_fit(restored, settings)
        calibration = None if found is None else found[1]["calibration"]
        if calibration is not None and calibration["with_null"] and not version_2:
            calibration = None  # of other candidates
        if min_confidence is not None and calibration is None:
            raise UserError(
                f"min_confidence: {restored.where} keeps no calibration; make one with bertjax evaluate "
                f"--keep-threshold on at least {MIN_QUESTIONS} questions, or use min_probability"
            )
        threshold = threshold if given is None else given
        return Rule(n_best, version_2, threshold, calibration, min_probability, min_confidence)

    def decoding(self, rule: Rule) -> tuple[SquadEvaluation, SpanQa]:
        """The settings of the evaluation, with enough candidates for the rule, and the windows of a context."""
        restored = self.restored
        settings, windows = span_qa.stage_settings(restored.ctx.config, restored.ctx.config.stages[restored.stage])
        candidates = max(rule.n_best, settings.n_best, (rule.calibration or {}).get("n_best", 0))
        windows = fit_windows(windows, restored.program.model.max_length)
        return settings.model_copy(update={"n_best": candidates}), windows

    def span_logits(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        """Start and end logits of all windows, float32 [N, S]. Raises UserError where they are not finite."""
        on_cpu = self.restored.program.compute.platform == "cpu"
        most = self.batch_size or (WINDOWS_PER_CPU_BATCH if on_cpu else WINDOWS_PER_BATCH)
        size = round_up_batch(min(most, 1 << (len(features) - 1).bit_length()), self.restored.program)
        start, end = span_qa.compute_span_logits(self._logits, self.params, features, self.restored.program, size)
        if not (np.isfinite(start).all() and np.isfinite(end).all()):
            raise UserError(
                f"{self.restored.where}: its scores are NaN or infinite, so it has no answers; take a step before the "
                "training diverged"
            )
        return start, end

    def _examples(self, questions: list[str], contexts: list[str]) -> list[Example]:
        if len(questions) != len(contexts):
            raise UserError(f"contexts: there are {len(contexts)} for {len(questions)} questions; give one for each")
        several = len(questions) > 1
        for name, texts in (("question", questions), ("context", contexts)):
            for number, text in enumerate(texts):
                if not text.strip():
                    of = f" of item {number}" if several else ""
                    raise UserError(f"the {name}{of} is empty; give a {name} of at least one word")
        pairs = zip(questions, contexts, strict=True)
        return [Example(id=str(i), question=q, context=c, answers=[]) for i, (q, c) in enumerate(pairs)]


def fit_windows(windows: SpanQa, longest: int | None) -> SpanQa:
    """The windows with profile hf, all of whose candidates are in the context, and not longer than the model's rows."""
    changes: dict[str, Any] = {"profile": "hf"}
    if longest is not None and windows.sequence_length > longest:
        changes |= {
            "sequence_length": longest, "doc_stride": min(windows.doc_stride, max(1, longest // 3)),
            "max_query_length": min(windows.max_query_length, max(1, longest // 4)),
        }  # fmt: skip
    return windows.model_copy(update=changes)


def parts_of(asked: Sequence[Example], width: int) -> Iterator[list[Example]]:
    """The questions in parts of a limited number of windows, by a low estimate of the characters in one."""
    part: list[Example] = []
    windows = 0
    for one in asked:
        windows += 1 + len(one.context) // width
        part.append(one)
        if windows >= MAX_WINDOWS_AT_ONCE:
            yield part
            part, windows = [], 0
    if part:
        yield part


def check_fraction(name: str, value: float | None) -> float | None:
    value = check_number(name, value)
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{name}: must be from 0 to 1 (got {value})")
    return value


def select_answer(entries: list[dict[str, Any]], odds: float | None, rule: Rule) -> dict[str, Any]:
    """The result of a question from its n-best list and its null odds, if any."""
    candidates: list[AnswerCandidate] = [
        {"text": e["text"], "probability": e["probability"]} for e in entries if e["text"]
    ]  # fmt: skip
    best, probability = candidates[0]["text"], candidates[0]["probability"]
    right = null_right = None
    if rule.calibration is not None:
        right, null_right = (float(values[0]) for values in calibrated([entries], rule.calibration))
        null_right = null_right if rule.calibration["with_null"] else None
    result: dict[str, Any] = {"answer": None}
    if odds is not None and odds > rule.threshold:
        result["reason"] = f"the null odds, {odds:.4g}, are above the threshold, {rule.threshold:.4g}"
        result |= {} if null_right is None else {"confidence": null_right}
    elif rule.min_probability is not None and probability < rule.min_probability:
        result["reason"] = f"the best candidate's probability, {probability:.4g}, is below {rule.min_probability:.4g}"
    elif right is not None and rule.min_confidence is not None and right < rule.min_confidence:
        result["reason"] = f"the best candidate's confidence, {right:.4g}, is below {rule.min_confidence:.4g}"
    else:
        result = {"answer": best, "probability": probability} | ({} if right is None else {"confidence": right})
    if odds is not None:
        null = next(e for e in entries if not e["text"])
        result["no_answer"] = {"probability": null["probability"], "null_odds": odds, "threshold": rule.threshold}
        result["no_answer"] |= {} if null_right is None else {"confidence": null_right}
    return result | {"candidates": candidates[: rule.n_best]}
