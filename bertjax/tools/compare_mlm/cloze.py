"""Cloze sets: texts with masked words and their answers, read from a file or chosen from a text."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bertjax.data.sources.record_files import json_lines
from bertjax.errors import UserError
from bertjax.evaluation.predictors.masked_scores import MaskedRow, MaskScorer, find_piece, mask_rows
from bertjax.evaluation.predictors.masks import MASK
from bertjax.evaluation.retrieval.terms import Unit
from bertjax.storage import atomic
from bertjax.storage.files import content_suffix, read_lines
from bertjax.tools.compare_mlm.texts import TextSample, find_words

STOP_WORDS = 50  # the most frequent words of the text, which are not masked; later ones are often its subject
STOP_SHARE = 0.1  # of the different words: the most that are stop words
MIN_LETTERS, MIN_WORDS = 3, 5  # of a masked word, and of a sentence
_CHUNK = 256  # sentences encoded at once
_JSONL = ".jsonl"


@dataclass(frozen=True)
class ClozeItem:
    """A text and the answers to its [MASK]s, in order."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class ClozeSet:
    """Items with their rows for both models, and how many were left out for each reason."""

    items: list[ClozeItem]
    rows: tuple[list[MaskedRow], list[MaskedRow]]
    left_out: Counter[str]


def read_cloze(path: Path) -> list[ClozeItem]:
    """The items of a file, at least one.

    A .jsonl file has objects {"text": "... [MASK] ...", "answer": "word"}; any other file has lines of a text, a tab
    and the answer. A text with several masks has as many answers: a list, or more tabs. UserError names the line.
    """
    read = _json_items if content_suffix(path) == _JSONL else _line_items
    items = list(read(path))
    if not items:
        raise UserError(f"{path}: holds no cloze item; a line is a text with {MASK}, a tab and the word")
    return items


def _line_items(path: Path) -> Iterator[ClozeItem]:
    for number, line in read_lines(path):
        if line.strip():
            text, *answers = line.rstrip("\r\n").split("\t")
            yield _item(f"{path}: line {number}", text, answers, "after a tab")


def _json_items(path: Path) -> Iterator[ClozeItem]:
    for where, record in json_lines(path):
        answers = record.get("answer")
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(record.get("text"), str):
            raise UserError(f"{where}: no field 'text' with a text; write it")
        if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
            raise UserError(f"{where}: no field 'answer' with a word, or a list of words; write it")
        yield _item(where, record["text"], answers, "in 'answer'")


def _item(where: str, text: str, answers: Sequence[str], place: str) -> ClozeItem:
    masks = text.count(MASK)
    if not masks:
        raise UserError(f"{where}: contains no {MASK}; write {MASK} in place of the word")
    answers = tuple(answer.strip() for answer in answers)
    if len(answers) != masks or not all(answers):
        given = sum(map(bool, answers))
        raise UserError(f"{where}: {masks} {MASK} and {given} answers; give a word for each {MASK} {place}")
    return ClozeItem(text, answers)


def write_cloze(path: Path, items: Sequence[ClozeItem]) -> None:
    """Write items to a file that `read_cloze` reads."""
    if content_suffix(path) == _JSONL:
        records = ({"text": item.text, "answer": _single(item.answers)} for item in items)
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
    else:
        lines = ["\t".join((item.text, *item.answers)) for item in items]
    atomic.write_text_atomic(path, "".join(f"{line}\n" for line in lines))


def _single(answers: tuple[str, ...]) -> str | list[str]:
    return answers[0] if len(answers) == 1 else list(answers)


def fitting_items(items: Sequence[ClozeItem], scorers: tuple[MaskScorer, MaskScorer]) -> ClozeSet:
    """The items whose answers are one piece in both tokenizers and whose text both models can read."""
    given = [(item.text, item.answers) for item in items]
    a, b = (mask_rows(scorer.tokenizer, given, scorer.room()) for scorer in scorers)
    found = ClozeSet([], ([], []), Counter())
    for item, *rows in zip(items, a, b, strict=True):
        if reasons := [row for row in rows if isinstance(row, str)]:
            found.left_out[reasons[0]] += 1
            continue
        found.items.append(item)
        for side, row in zip(found.rows, rows, strict=True):
            assert isinstance(row, MaskedRow)
            side.append(row)
    return found


def stop_words(frequencies: Counter[str]) -> set[str]:
    """The 50 most frequent words of a text, at most a tenth of its different words; equals in alphabetical order."""
    most = min(STOP_WORDS, int(STOP_SHARE * len(frequencies)))
    return set(sorted(frequencies, key=lambda word: (-frequencies[word], word))[:most])


def choose_cloze(sample: TextSample, scorers: tuple[MaskScorer, MaskScorer], limit: int, seed: int) -> ClozeSet:
    """At most `limit` items from a sample of sentences: the same for the same text, tokenizers and seed.

    Sentences come in the order of the sample, each once, if they have 5 words or more and both models can read them.
    In each, one word is masked: the first, in a random order, of its words with 3 letters or more that are not stop
    words (`stop_words`) and are one piece in both tokenizers. Words joined to others by a hyphen or an apostrophe are
    not taken. `left_out` counts the words that were drawn and are not one piece, and sentences that are too long.
    """
    draw = random.Random(seed)
    stop = stop_words(sample.frequencies)
    found = ClozeSet([], ([], []), Counter())
    waiting = (s for s in dict.fromkeys(sample.sentences) if s.count(" ") + 1 >= MIN_WORDS and MASK not in s)
    while len(found.items) < limit and (chunk := list(islice(waiting, _CHUNK))):
        drawn = [item for item in _draw_words(chunk, stop, draw, scorers, found.left_out) if item is not None]
        fitting = fitting_items(drawn, scorers)
        found.left_out.update(fitting.left_out)
        for item, *rows in list(zip(fitting.items, *fitting.rows, strict=True))[: limit - len(found.items)]:
            found.items.append(item)
            for side, row in zip(found.rows, rows, strict=True):
                side.append(row)
    return found


def _draw_words(
    sentences: Sequence[str], stop: set[str], draw: random.Random, scorers: tuple[MaskScorer, MaskScorer],
    left_out: Counter[str],
) -> Iterator[ClozeItem | None]:  # fmt: skip
    """An item of each sentence, None for one without a word to mask; counts the words that are not one piece."""
    encoded = [scorer.tokenizer.encode_batch_offsets(list(sentences)) for scorer in scorers]
    for number, sentence in enumerate(sentences):
        words = [unit for unit in find_words(sentence) if _is_content(unit, stop)]
        draw.shuffle(words)
        for word in words:
            span = (word.start, word.end)
            if all(
                find_piece(scorer.tokenizer, sentence, side[number], span) is not None
                for scorer, side in zip(scorers, encoded, strict=True)
            ):
                text = sentence[: word.start] + MASK + sentence[word.end :]
                yield ClozeItem(text, (sentence[word.start : word.end],))
                break
            left_out["not one piece"] += 1
        else:
            yield None


def _is_content(word: Unit, stop: set[str]) -> bool:
    return len(word.term) >= MIN_LETTERS and word.term not in stop
