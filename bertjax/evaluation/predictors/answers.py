"""Answer questions with spans of contexts of any length."""

from collections.abc import Iterator, Sequence
from typing import Any

from bertjax.config.schema.data import SpanQa
from bertjax.data.preprocess.span_qa import Example, evaluation_features
from bertjax.errors import UserError
from bertjax.evaluation.evaluators import span_qa
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.evaluation.inference.span_decoding import predict_answers
from bertjax.evaluation.inference.token_rows import check_texts
from bertjax.evaluation.predictors.base import Checkpoint, Predictor, as_restored, check_count, check_number
from bertjax.evaluation.predictors.results import Answer, AnswerCandidate
from bertjax.progress import reporter

WINDOWS_PER_BATCH, WINDOWS_PER_CPU_BATCH = 32, 4  # unless a batch size is given
MAX_WINDOWS_AT_ONCE = 4096  # of which the logits are kept


def answer(
    checkpoint: Checkpoint, question: str, context: str, n_best: int = 3,
    null_threshold: float | None = None, min_probability: float | None = None, overrides: Sequence[str] = (),
) -> Answer:  # fmt: skip
    """`Answerer` for one question to a run, a checkpoint or a restored one; `bertjax.open` keeps it open for many."""
    predictor = Answerer(as_restored(checkpoint, overrides))
    (found,) = predictor([question], [context], n_best, null_threshold, min_probability)
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
    ) -> list[Answer]:  # fmt: skip
        """The answer to each question in the context beside it, with its `n_best` candidates, best first.

        Probabilities are a softmax over all candidates. A model that can predict "no answer" (unanswerable questions in
        its training data, version_2 or `null_threshold`) adds "no_answer". The answer is None, with a "reason" instead
        of a "probability", when the null odds exceed the threshold (default: that of the evaluation) or the best
        probability is below `min_probability`.

        Raises UserError when a text is empty or not Unicode, or the numbers of questions and contexts differ.
        """
        n_best = check_count("n_best", n_best)
        null_threshold = check_number("null_threshold", null_threshold)
        min_probability = check_number("min_probability", min_probability)
        if min_probability is not None and not 0 <= min_probability <= 1:
            raise UserError(f"min_probability: must be from 0 to 1 (got {min_probability})")
        asked = self._examples(check_texts("questions", questions), check_texts("contexts", contexts))
        restored = self.restored
        settings, windows = span_qa.stage_settings(restored.ctx.config, restored.ctx.config.stages[restored.stage])
        version_2 = bool(restored.unanswerable) if settings.version_2 is None else settings.version_2
        version_2 = version_2 or null_threshold is not None
        threshold = settings.null_score_diff_threshold if null_threshold is None else null_threshold
        settings = settings.model_copy(update={"n_best": max(n_best, settings.n_best)})
        windows = _fitting(windows, restored.program.model.max_length)
        on_cpu = restored.program.compute.platform == "cpu"
        most = self.batch_size or (WINDOWS_PER_CPU_BATCH if on_cpu else WINDOWS_PER_BATCH)
        found: list[Answer] = []
        with reporter.ensure_task("answering", len(asked), "questions"):
            for part in _parts(asked, windows.sequence_length):
                features = evaluation_features(part, self.tokenizer, windows)
                size = round_up_batch(min(most, 1 << (len(features) - 1).bit_length()), restored.program)
                start, end = span_qa.compute_span_logits(self._logits, self.params, features, restored.program, size)
                _, nbest, odds = predict_answers(
                    part, features, start, end, n_best=settings.n_best, max_answer_length=settings.max_answer_length,
                    null_score_diff_threshold=threshold, version_2=version_2,
                )  # fmt: skip
                for one in part:
                    picked = _select(one, nbest[one.id], n_best, odds.get(one.id), threshold, min_probability)
                    found.append({"question": one.question, **picked})  # type: ignore[typeddict-item]
                reporter.advance(len(part), "questions")
        return found

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


def _fitting(windows: SpanQa, longest: int | None) -> SpanQa:
    """The windows with profile hf, all of whose candidates are in the context, and not longer than the model's rows."""
    changes: dict[str, Any] = {"profile": "hf"}
    if longest is not None and windows.sequence_length > longest:
        changes |= {
            "sequence_length": longest, "doc_stride": min(windows.doc_stride, max(1, longest // 3)),
            "max_query_length": min(windows.max_query_length, max(1, longest // 4)),
        }  # fmt: skip
    return windows.model_copy(update=changes)


def _parts(asked: Sequence[Example], width: int) -> Iterator[list[Example]]:
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


def _select(
    asked: Example, entries: list[dict[str, Any]], n_best: int, odds: float | None, threshold: float,
    min_probability: float | None,
) -> dict[str, Any]:  # fmt: skip
    """The result of a question from its n-best list and its null odds, if any."""
    candidates: list[AnswerCandidate] = [
        {"text": e["text"], "probability": e["probability"]} for e in entries if e["text"]
    ]  # fmt: skip
    if not candidates:
        raise UserError("the tokenizer finds no token in the context; give a context of at least one word")
    best = candidates[0]
    reason = None
    if odds is not None and odds > threshold:
        reason = f"the null odds, {odds:.4g}, are above the threshold, {threshold:.4g}"
    elif min_probability is not None and best["probability"] < min_probability:
        reason = f"the best candidate's probability, {best['probability']:.4g}, is below {min_probability:.4g}"
    result: dict[str, Any] = {"answer": None, "reason": reason} if reason else {
        "answer": best["text"], "probability": best["probability"]
    }  # fmt: skip
    if odds is not None:
        null = next(e for e in entries if not e["text"])
        result["no_answer"] = {"probability": null["probability"], "null_odds": odds, "threshold": threshold}
    return result | {"candidates": candidates[:n_best]}
