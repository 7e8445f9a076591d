"""Decode start and end logits to answer texts, by the rules of the features' profile.

bert: write_predictions of run_squad.py (google-research/bert). hf: postprocess_qa_predictions of transformers'
examples/pytorch/question-answering/utils_qa.py, except that only valid positions are among the n best and in the
probabilities, a text is listed once, and the best span is searched when no pair of the n best starts and ends is valid.
"""

import functools
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bertjax.data.preprocess.span_qa import Example, Features

NO_SPAN_NULL_ODDS = 1e6  # null odds without a valid span: above any threshold (the reference raises an error)
_CJK = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
        (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F))  # fmt: skip


class Spans(NamedTuple):
    """Candidate spans of one example, best first."""

    window: np.ndarray  # int [C] row of the features
    start: np.ndarray  # int [C]; 0: no answer
    end: np.ndarray  # int [C] inclusive
    start_logit: np.ndarray  # float64 [C]
    end_logit: np.ndarray  # float64 [C]


def predict_answers(
    examples: Sequence[Example], features: Features, start_logits: np.ndarray, end_logits: np.ndarray, *,
    n_best: int = 20, max_answer_length: int = 30, null_score_diff_threshold: float = 0.0, version_2: bool = False,
) -> tuple[dict[str, str], dict[str, list[dict]], dict[str, float]]:  # fmt: skip
    """-> (answer text by id, n-best lists by id, null odds by id); logits are [N, S], one row per window of `features`.

    An n-best entry is {text, probability, start_logit, end_logit}; probabilities are a softmax over the entries. Null
    odds (only with `version_2`): the smallest null score of the windows minus the score of the best answer. "" is
    predicted when they are strictly above the threshold, or without a valid span (profile bert, v1: "empty").
    """
    return predict_from_parts(
        examples, [(features, start_logits, end_logits)], n_best=n_best, max_answer_length=max_answer_length,
        null_score_diff_threshold=null_score_diff_threshold, version_2=version_2,
    )  # fmt: skip


def predict_from_parts(
    examples: Sequence[Example], parts: Iterable[tuple[Features, np.ndarray, np.ndarray]], *,
    n_best: int, max_answer_length: int, null_score_diff_threshold: float, version_2: bool,
) -> tuple[dict[str, str], dict[str, list[dict]], dict[str, float]]:  # fmt: skip
    """`predict_answers` from parts of the windows, in their order, with their logits; memory holds one part."""
    best = [_Best() for _ in examples]
    profile = "bert"
    for features, start_logits, end_logits in parts:
        shape, profile = features.token_to_word.shape, features.profile
        if np.shape(start_logits) != shape or np.shape(end_logits) != shape:
            raise ValueError(f"logits of shape {start_logits.shape}, {end_logits.shape} for windows of shape {shape}")
        bounds = np.searchsorted(features.example_index, np.arange(len(examples) + 1))
        for index in range(len(examples)):
            windows = range(bounds[index], bounds[index + 1])
            best[index].add(windows, index, features, start_logits, end_logits, n_best, max_answer_length)
    predictions: dict[str, str] = {}
    nbest: dict[str, list[dict]] = {}
    null_odds: dict[str, float] = {}
    for example, own in zip(examples, best, strict=True):
        null = own.null or (0.0, 0.0) if version_2 else None
        entries = _nbest_entries(own, profile, n_best, null)
        nbest[example.id] = with_probabilities(entries)
        predictions[example.id] = entries[0][0] if entries else ""
        if null is not None:
            answer = next((entry for entry in entries if entry[0]), None)
            # subtracted one by one as in the reference: the last bit can decide a strict comparison
            odds = NO_SPAN_NULL_ODDS if answer is None else null[0] + null[1] - answer[1] - answer[2]
            null_odds[example.id] = odds
            predictions[example.id] = "" if answer is None or odds > null_score_diff_threshold else answer[0]
    return predictions, nbest, null_odds


Entry = tuple[str, float, float]  # text, start logit, end logit


class _Best:
    """What is kept of the windows of an example: the best spans of distinct texts, and the smallest null score."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []  # highest sum first
        self.fallback: list[Entry] = []  # the best span of the windows (hf), until there is one of the n best
        self.null: tuple[float, float] | None = None

    def add(
        self, windows: range, index: int, features: Features, start_logits: np.ndarray, end_logits: np.ndarray,
        n_best: int, max_answer_length: int,
    ) -> None:  # fmt: skip
        """Add some windows of the example with this index."""
        if not windows:
            return
        null = _null_logits(windows, start_logits, end_logits)
        self.null = null if self.null is None else min(self.null, null, key=sum)
        found = _all_spans(windows, features, start_logits, end_logits, n_best, max_answer_length, _window_spans)
        self.entries = _merge(self.entries, _texts(found, features, index, n_best), n_best)
        if features.profile == "hf" and not self.entries:
            found = _all_spans(windows, features, start_logits, end_logits, n_best, max_answer_length, _best_span)
            self.fallback = _merge(self.fallback, _texts(found, features, index, n_best), n_best)


def _texts(spans: Spans, features: Features, index: int, n_best: int) -> list[Entry]:
    """The first `n_best` spans of distinct texts."""
    entries: dict[str, Entry] = {}
    for window, start, end, start_logit, end_logit in zip(*(column.tolist() for column in spans), strict=True):
        if len(entries) >= n_best:
            break
        text = _span_text(features, index, window, start, end)
        entries.setdefault(text, (text, start_logit, end_logit))
    return list(entries.values())


def _merge(first: list[Entry], second: list[Entry], n_best: int) -> list[Entry]:
    """The best `n_best` of distinct texts, highest sum first; ties in order."""
    if not first or not second:
        return first or second
    entries: dict[str, Entry] = {}
    for entry in sorted([*first, *second], key=lambda entry: -(entry[1] + entry[2])):
        entries.setdefault(entry[0], entry)
    return list(entries.values())[:n_best]


def apply_null_threshold(
    answers: Mapping[str, str], null_odds: Mapping[str, float], threshold: float
) -> dict[str, str]:
    """The answers, "" where the null odds are strictly above the threshold."""
    return {name: "" if null_odds[name] > threshold else text for name, text in answers.items()}


def _best_indexes(logits: np.ndarray, n_best: int) -> np.ndarray:
    return np.argsort(-logits, kind="stable")[:n_best]  # ties by index


def _null_logits(windows: range, start_logits: np.ndarray, end_logits: np.ndarray) -> tuple[float, float]:
    """The [CLS] logits of the window where their sum is smallest."""
    pairs = [(float(start_logits[w, 0]), float(end_logits[w, 0])) for w in windows]
    return min(pairs, key=sum, default=(0.0, 0.0))


def _window_spans(
    window: int, features: Features, start_row: np.ndarray, end_row: np.ndarray, n_best: int, max_answer_length: int
) -> Spans:
    """Valid spans of a window, by rank of the start, then of the end. Only the start needs the maximum context.

    Profile bert takes the n best positions, then drops those outside the context; hf does the reverse.
    """
    may_end = features.token_to_word[window] >= 0
    may_start = may_end & features.max_context[window]
    if features.profile == "hf":
        start_of, end_of = np.flatnonzero(may_start), np.flatnonzero(may_end)
        starts = start_of[_best_indexes(start_row[start_of], n_best)]
        ends = end_of[_best_indexes(end_row[end_of], n_best)]
    else:
        starts, ends = _best_indexes(start_row, n_best), _best_indexes(end_row, n_best)
        starts, ends = starts[may_start[starts]], ends[may_end[ends]]
    length = ends[None, :] - starts[:, None] + 1
    i, j = np.nonzero((length >= 1) & (length <= max_answer_length))
    start, end = starts[i], ends[j]
    return Spans(np.full(len(start), window), start, end, start_row[start], end_row[end])


def _best_span(
    window: int, features: Features, start_row: np.ndarray, end_row: np.ndarray, _: int, max_answer_length: int
) -> Spans:
    """The best valid span of a window, if any."""
    may_end = features.token_to_word[window] >= 0
    starts = np.flatnonzero(may_end & features.max_context[window])
    if not len(starts):
        return _spans([])
    ends_row = np.append(np.where(may_end, end_row, -np.inf), np.full(max_answer_length - 1, -np.inf))
    following = np.lib.stride_tricks.sliding_window_view(ends_row, max_answer_length)[starts]
    best = int(np.argmax(start_row[starts] + following.max(axis=1)))
    start, end = int(starts[best]), int(starts[best] + np.argmax(following[best]))
    return _spans([(window, start, end, start_row[start], end_row[end])])


def _spans(rows: list[tuple[int, int, int, float, float]]) -> Spans:
    columns = zip(*rows, strict=True) if rows else [[]] * 5
    kinds = (np.int64, np.int64, np.int64, np.float64, np.float64)
    return Spans(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def _rank_spans(found: list[Spans], null: tuple[float, float] | None) -> Spans:
    """All spans of an example, highest sum first; ties in order of window and rank, the null answer last."""
    if null is not None:
        found = [*found, _spans([(0, 0, 0, *null)])]
    if not found:
        return _spans([])
    merged = Spans(*(np.concatenate(column) for column in zip(*found, strict=True)))
    order = np.argsort(-(merged.start_logit + merged.end_logit), kind="stable")
    return Spans(*(column[order] for column in merged))


def ranked_spans(
    windows: range, features: Features, start_logits: np.ndarray, end_logits: np.ndarray, *,
    n_best: int, max_answer_length: int, version_2: bool,
) -> Spans:  # fmt: skip
    """All candidates of some windows, logits [N, S], best first, without merging equal texts.

    With `version_2`, "no answer" is among them, with the smallest null score of the windows.
    """
    null = _null_logits(windows, start_logits, end_logits) if version_2 else None
    options = (windows, features, start_logits, end_logits, n_best, max_answer_length)
    found = _all_spans(*options, _window_spans)
    if features.profile == "hf" and not len(found.start):
        found = _all_spans(*options, _best_span)
    return found if null is None else _rank_spans([found], null)


def _all_spans(
    windows: range, features: Features, start_logits: np.ndarray, end_logits: np.ndarray, n_best: int,
    max_answer_length: int, pick: Callable[..., Spans],
) -> Spans:  # fmt: skip
    """What `pick` finds in each window, best first. Logits of any type are summed in float64."""
    rows = ((w, *(np.asarray(x[w], np.float64) for x in (start_logits, end_logits))) for w in windows)
    return _rank_spans([pick(w, features, start, end, n_best, max_answer_length) for w, start, end in rows], None)


def _nbest_entries(best: _Best, profile: str, n_best: int, null: tuple[float, float] | None) -> list[Entry]:
    """At most n_best distinct texts, best first, then the null answer if missing."""
    entries = best.entries or best.fallback
    if null is not None:
        entries = _merge([*entries], [("", *null)], n_best)
        if all(text for text, _, _ in entries):
            entries.append(("", *null))
    return entries or ([("empty", 0.0, 0.0)] if profile == "bert" else [])


def with_probabilities(entries: list[tuple[str, float, float]]) -> list[dict]:
    scores = [start + end for _, start, end in entries]
    weights = [math.exp(score - max(scores)) for score in scores]
    total = sum(weights)
    return [
        {"text": text, "probability": weight / total, "start_logit": start, "end_logit": end}
        for (text, start, end), weight in zip(entries, weights, strict=True)
    ]


def _span_text(features: Features, index: int, window: int, start: int, end: int) -> str:
    """The text of example `index` from position `start` to `end` (inclusive) of a window."""
    first, last = features.token_to_word[window, [start, end]].tolist()
    if features.profile == "hf":
        offsets = features.offsets[index]
        return features.contexts[index][offsets[first, 0] : offsets[last, 1]]
    ids = features.inputs["input_ids"][window, start : end + 1].tolist()
    pieces = " ".join(features.pieces[i] for i in ids).replace(" ##", "").replace("##", "")
    words = tuple(features.words[index][first : last + 1])
    return final_text(" ".join(pieces.split()), words, features.lowercase)


def final_text(predicted: str, words: Sequence[str], lowercase: bool) -> str:
    """The part of the original `words` that reads as the detokenized pieces `predicted` (get_final_text).

    Basic tokenization keeps the number of non-space characters, unless it drops accents or control characters. In that
    case, or if it does not contain `predicted`, all words are the answer.
    """
    original = " ".join(words)
    # basic tokenization works word by word, so the tokens of words are cached
    tokenized = " ".join(filter(None, (basic_tokens(word, lowercase) for word in words)))
    begin = tokenized.find(predicted) if predicted else -1
    positions = [i for i, char in enumerate(original) if char != " "]
    if begin < 0 or len(positions) != len(tokenized) - tokenized.count(" "):
        return original
    before = begin - tokenized.count(" ", 0, begin)  # non-space characters before the answer
    inside = len(predicted) - predicted.count(" ")
    return original[positions[before] : positions[before + inside - 1] + 1]


@functools.lru_cache(maxsize=1 << 17)
def basic_tokens(text: str, lowercase: bool) -> str:
    """BasicTokenizer of tokenization.py: cleaned, CJK characters and punctuation separated, tokens joined by spaces."""
    cleaned = "".join(_clean_char(char) for char in text)
    parted = []
    for token in cleaned.split():
        if lowercase:
            letters = unicodedata.normalize("NFD", token.lower())
            token = "".join(char for char in letters if unicodedata.category(char) != "Mn")
        parted += [f" {char} " if _is_punctuation(char) else char for char in token]
        parted.append(" ")
    return " ".join("".join(parted).split())


@functools.lru_cache(maxsize=1 << 16)
def _clean_char(char: str) -> str:
    """Removes control characters, normalizes spaces, and surrounds CJK characters with spaces."""
    category, code = unicodedata.category(char), ord(char)
    if char in " \t\n\r" or category == "Zs":
        return " "
    if category.startswith("C") or code in (0, 0xFFFD):
        return ""
    return f" {char} " if any(low <= code <= high for low, high in _CJK) else char


@functools.lru_cache(maxsize=1 << 16)
def _is_punctuation(char: str) -> bool:
    # the reference treats all ASCII symbols ($, +, ^ ...) as punctuation
    ascii_sign = 33 <= ord(char) < 127 and not char.isalnum()
    return ascii_sign or unicodedata.category(char).startswith("P")
