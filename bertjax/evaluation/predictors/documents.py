"""Answer questions from a folder of documents: BM25 selects passages (the retriever), the model reads them."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertjax.config.schema.data import SpanQa
from bertjax.config.schema.evaluation import SquadEvaluation
from bertjax.data.preprocess.span_qa import Example, Features, evaluation_features
from bertjax.errors import UserError
from bertjax.evaluation.inference.span_decoding import NO_SPAN_NULL_ODDS, ranked_spans, with_probabilities
from bertjax.evaluation.inference.token_rows import check_texts
from bertjax.evaluation.predictors.answers import Answerer, Rule, check_fraction, parts_of, select_answer
from bertjax.evaluation.predictors.base import check_count, print_note
from bertjax.evaluation.predictors.results import Answer, AnswerSource
from bertjax.evaluation.retrieval.index import PassageIndex
from bertjax.progress import reporter

TOP_PASSAGES, N_BEST = 10, 5
_QUESTIONS_AT_ONCE = 256  # whose passages are held as text
NO_PASSAGE = "no document has a word of the question"


class Hit(NamedTuple):
    """A passage of a question."""

    number: int
    score: float  # BM25


class DocumentAnswerer(Answerer):
    """`Answerer`, and answers from documents with the same programs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._index: PassageIndex | None = None

    def open_index(self, documents: Path, text_field: str = "text") -> PassageIndex:
        """The index of a folder or file. That of the last call is used again while its files have not changed."""
        index = self._index
        if index is None or index.root != documents or not index.is_current(text_field):
            self._index = None  # frees it
            index = PassageIndex(documents, text_field)
            print_note(index.summary())
            self._index = index
        return index

    def from_documents(
        self, questions: Sequence[str], documents: Path, n_best: int = N_BEST, top_passages: int = TOP_PASSAGES,
        null_threshold: float | None = None, min_probability: float | None = None,
        min_confidence: float | None = None, text_field: str = "text",
    ) -> list[Answer]:  # fmt: skip
        """The answer to each question in the `top_passages` that BM25 ranks first for it, with its source.

        The passages of a question are scored together, as the windows of one document are: one n-best list, of which
        a text is in once and whose probabilities are a softmax over all passages; the null score is the smallest of
        all windows (SQuAD 2.0's rule for long documents). Candidates that overlap a better one in the same place are
        not listed. A question without a passage has no answer. Raises UserError as `Answerer` and `PassageIndex` do.
        """
        top_passages = check_count("top_passages", top_passages)
        rule = self.rule(
            check_count("n_best", n_best), null_threshold, check_fraction("min_probability", min_probability),
            check_fraction("min_confidence", min_confidence),
        )  # fmt: skip
        asked = check_texts("questions", questions)
        for number, question in enumerate(asked):
            if not question.strip():
                of = f" of item {number}" if len(asked) > 1 else ""
                raise UserError(f"the question{of} is empty; give a question of at least one word")
        index = self.open_index(documents, text_field)
        settings, windows = self.decoding(rule)
        found: list[Answer] = []
        with reporter.ensure_task("answering", len(asked), "questions"):
            for first in range(0, len(asked), _QUESTIONS_AT_ONCE):
                part = asked[first : first + _QUESTIONS_AT_ONCE]
                entries = self._read_passages(part, index, top_passages, settings, windows, rule.version_2)
                for i, question in enumerate(part):
                    picked = _pick(entries.get(i), rule)
                    found.append({"question": question, **picked})  # type: ignore[typeddict-item]
                reporter.advance(len(part), "questions")
        return found

    def _read_passages(
        self, questions: Sequence[str], index: PassageIndex, top_passages: int, settings: SquadEvaluation,
        windows: SpanQa, version_2: bool,
    ) -> dict[int, list[dict[str, Any]]]:  # fmt: skip
        """The n-best list of each question that has a passage, by the number of the question."""
        hits = [[Hit(*hit) for hit in index.search(question, top_passages)] for question in questions]
        texts = index.texts(hit.number for listed in hits for hit in listed)
        examples = [
            Example(f"{i} {hit.number}", question, texts[hit.number], [])
            for i, (question, listed) in enumerate(zip(questions, hits, strict=True))
            for hit in listed
        ]
        found: dict[int, list[dict[str, Any]]] = {}
        for some in _parts(examples, windows.sequence_length):
            features = evaluation_features(some, self.tokenizer, windows, by_text=True)
            logits = self.span_logits(features)
            for i, examples_of in groupby(enumerate(some), key=lambda pair: _question(pair[1])):
                places = [place for place, _ in examples_of]
                sources = [_Place(index, hit, texts[hit.number]) for hit in hits[i]]
                found[i] = _entries(features, places, logits, sources, settings, version_2)
        return found


def _question(example: Example) -> int:
    return int(example.id.partition(" ")[0])


def _parts(examples: Sequence[Example], width: int) -> Iterator[list[Example]]:
    """The examples in parts of a limited number of windows; all passages of a question are in one part."""
    held: list[Example] = []
    for part in parts_of(examples, width):
        held += part
        last = _question(held[-1])
        closed = [one for one in held if _question(one) != last]
        if closed:
            yield closed
            held = held[len(closed) :]
    if held:
        yield held


class _Place(NamedTuple):
    """A passage of a question, with its text."""

    passages: PassageIndex
    hit: Hit
    text: str

    def source(self, start: int, end: int) -> AnswerSource:
        """Of the characters [start, end) of the passage."""
        where = self.passages.source(self.hit.number)
        found: dict[str, Any] = {"file": str(where.file)} | ({"line": where.line} if where.line else {})
        found |= {"start": where.start + start, "end": where.start + end}
        found |= {"passage": self.text, "passage_start": where.start, "bm25": self.hit.score}
        return found  # type: ignore[return-value]


def _entries(
    features: Features, places: Sequence[int], logits: Sequence[np.ndarray], sources: Sequence[_Place],
    settings: SquadEvaluation, version_2: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The n-best list of a question over its passages, the examples `places` of the features, in their order.

    As `span_decoding.predict_answers` makes it of the windows of one document; "no answer" has the text "".
    """
    bounds = np.searchsorted(features.example_index, [places[0], places[-1] + 1])
    spans = ranked_spans(
        range(*bounds.tolist()), features, *logits, n_best=settings.n_best,
        max_answer_length=settings.max_answer_length, version_2=version_2,
    )  # fmt: skip
    entries: dict[str, tuple[str, float, float]] = {}
    found: dict[str, AnswerSource] = {}
    null = None
    for window, first, last, start_logit, end_logit in zip(*(column.tolist() for column in spans), strict=True):
        if first == 0:
            null = ("", start_logit, end_logit)
        if len(entries) >= settings.n_best:
            continue
        example = int(features.example_index[window])
        text = ""
        if first > 0:
            offsets = features.offsets[example]
            begin, end = (int(features.token_to_word[window, place]) for place in (first, last))
            start, stop = int(offsets[begin, 0]), int(offsets[end, 1])
            place = sources[example - places[0]]
            text = place.text[start:stop]
            if text not in entries:
                found[text] = place.source(start, stop)
        entries.setdefault(text, (text, start_logit, end_logit))
    if null is not None:
        entries.setdefault("", null)
    listed = with_probabilities(list(entries.values()))
    return [one | ({"source": found[one["text"]]} if one["text"] else {}) for one in listed]


def _pick(entries: list[dict[str, Any]] | None, rule: Rule) -> dict[str, Any]:
    """The result of a question from its n-best list."""
    texts = [one for one in entries or () if one["text"]]
    if not texts:
        return {"answer": None, "reason": NO_PASSAGE, "candidates": []}
    assert entries is not None
    odds = None
    if rule.version_2:
        null = next(one for one in entries if not one["text"])
        odds = null["start_logit"] + null["end_logit"] - texts[0]["start_logit"] - texts[0]["end_logit"]
        odds = min(odds, NO_SPAN_NULL_ODDS)
    result = select_answer(entries, odds, rule)
    kept: list[dict[str, Any]] = []
    for one in texts:
        if not any(_overlap(one["source"], other["source"]) for other in kept):
            kept.append(one)
    result["candidates"] = [
        {name: one[name] for name in ("text", "probability", "source")} for one in kept[: rule.n_best]
    ]
    return result | ({"source": texts[0]["source"]} if result["answer"] is not None else {})


def _overlap(one: AnswerSource, other: AnswerSource) -> bool:
    same = (one["file"], one.get("line")) == (other["file"], other.get("line"))
    return same and one["start"] < other["end"] and other["start"] < one["end"]
