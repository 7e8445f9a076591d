"""Reads extractive question answering data: SQuAD's JSON format and the record format of `datasets` and TFDS."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.config.schema.sources import SquadFiles, StdlibQa
from bertjax.data.sources.record_files import LocatedRecords, check_characters
from bertjax.data.sources.records import read_located
from bertjax.data.sources.registry import SourceKind, hash_files, kinds_with, record_of, take_slice
from bertjax.data.sources.stdlib import docs
from bertjax.errors import UserError, escape_unprintable
from bertjax.storage.files import expand_globs, read_text


@dataclass(frozen=True, slots=True)
class Example:
    """One question. `answers` holds (text, first character in the context); it is empty when `is_impossible`."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]
    is_impossible: bool = False
    title: str = ""


def read_squad(source: Any, base: Path) -> list[Example]:
    """Every question of `source`, in file order; relative names start at `base`.

    Files have SQuAD's format (data > paragraphs > qas); records are {id, title, context, question, answers: {text,
    answer_start}}. Without `is_impossible`, a question without answers is unanswerable. Raises UserError for malformed
    questions, naming file and question, and for a source without any.
    """
    return list(stream_squad(source, base))


def stream_squad(source: Any, base: Path) -> Iterator[Example]:
    """`read_squad` question by question."""
    record = record_of(source)
    if record.questions:
        examples = record.questions(source, base)
    elif record.records:
        examples = (_example(found, f"{where}: ", "") for where, found in read_located(source, base))
    else:
        raise UserError(
            f"source: kind '{source.kind}' holds no questions; use {kinds_with('questions', 'records')} for span_qa"
        )
    empty = True
    for example in examples:
        empty = False
        yield example
    if empty:
        name = record.describe(source)
        raise UserError(f"{name}: no questions in it; name a file with data > paragraphs > qas, or question records")


def read_records_or_questions(source: Any, base: Path) -> LocatedRecords:
    """(where, record) of a source of records; of questions, {id, title, context, question, answers: [text]} of each."""
    record = record_of(source)
    if record.records or not record.questions:
        yield from read_located(source, base)
        return
    for q in stream_squad(source, base):
        fields = {"id": q.id, "title": q.title, "context": q.context, "question": q.question}
        answers = [text for text, _ in q.answers]
        yield f"{record.describe(source)}: question '{q.id}'", fields | {"answers": answers}


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: line {error.lineno}: not JSON ({error.msg}); correct or download it again") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: not JSON (a number too long, or nested too deeply); write it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise UserError(f"{file}: 'data' list missing; name a SQuAD file (for one record a line use kind: jsonl)")
    return content


def read_unanswered(file: Path) -> LocatedRecords:
    """(where, {id, title, question, context, ...}) of a SQuAD file whose questions need no answers, in its order.

    Other fields of a question are kept. Raises UserError, naming file and place, for a file of another form.
    """
    for paragraph in _paragraphs(_load(file), f"{file}: "):
        context = _get(paragraph.content, "context", str, f"{file}: {paragraph.where}")
        for q, qa in enumerate(_get(paragraph.content, "qas", list, f"{file}: {paragraph.where}")):
            where = f"{file}: {paragraph.where}.qas[{q}]"
            _get(qa, "question", str, where)
            title = {"title": paragraph.title} if paragraph.title else {}
            yield where, {**title, **qa, "context": context}


def is_version_2(file: Path) -> bool:
    """Whether a SQuAD file names a version that begins with 2, as "v2.0"."""
    return str(_load(file).get("version")).lower().lstrip("v").startswith("2")


class _Paragraph(NamedTuple):
    file: str  # with ": ", for messages
    where: str
    content: Any
    title: Any


def _paragraphs(content: dict[str, Any], file: str) -> Iterator[_Paragraph]:
    for a, article in enumerate(content["data"]):
        for p, paragraph in enumerate(_get(article, "paragraphs", list, f"{file}data[{a}]")):
            yield _Paragraph(file, f"data[{a}].paragraphs[{p}]", paragraph, article.get("title", ""))


def _questions(paragraph: _Paragraph) -> Iterator[Example]:
    file, where = paragraph.file, paragraph.where
    context = _get(paragraph.content, "context", str, f"{file}{where}")
    shared = {"context": context, "title": paragraph.title}
    for q, qa in enumerate(_get(paragraph.content, "qas", list, f"{file}{where}")):
        if not isinstance(qa, dict):
            raise UserError(f"{file}{where}.qas[{q}]: an object is needed; remove or correct it")
        yield _example(shared | qa, file, f"{where}.qas[{q}]")


def _official(content: dict[str, Any], file: str) -> Iterator[Example]:
    return chain.from_iterable(map(_questions, _paragraphs(content, file)))


def _example(record: dict[str, Any], before: str, place: str) -> Example:
    """A checked question. Errors begin with `before` and, until the id is known, `place`."""
    identity = _get(record, "id", (str, int), f"{before}{place}".removesuffix(": "))
    where = f"{before}question '{_brief(identity)}'"
    context = _get(record, "context", str, where)
    question = _get(record, "question", str, where)
    if not context.strip():
        raise UserError(f"{where}: the context is empty; remove the question")
    answers = [_answer(text, start, context, where) for text, start in _pairs(record, where)]
    impossible = record.get("is_impossible")
    if not isinstance(impossible, bool | None) and impossible not in (0, 1):
        raise UserError(f"{where}: is_impossible is {_brief(impossible)}, not true or false; correct it")
    impossible = not answers if impossible is None else bool(impossible)
    if impossible == bool(answers):
        state = "true, but there are answers" if impossible else "false, but there are no answers"
        raise UserError(f"{where}: is_impossible is {state}; correct one of the two")
    check_characters(record, where)
    title = record.get("title")
    return Example(str(identity), question, context, answers, impossible, title if isinstance(title, str) else "")


def _pairs(record: dict[str, Any], where: str) -> list[tuple[Any, Any]]:
    """(text, answer_start) of a list of objects (official), an object of lists (`datasets`, TFDS) or one object."""
    answers = record.get("answers")
    if isinstance(answers, dict):
        texts, starts = (_get(answers, key, None, f"{where}: answers") for key in ("text", "answer_start"))
        several = [isinstance(values, list | tuple) for values in (texts, starts)]
        if not any(several):
            return [(texts, starts)]
        if not all(several):
            one, many = ("text", "answer_start") if several[1] else ("answer_start", "text")
            raise UserError(f"{where}: answers: '{one}' is one value and '{many}' is a list; make both lists")
        if len(texts) != len(starts):
            raise UserError(f"{where}: {len(texts)} answer texts, {len(starts)} answer_start; correct the record")
        return list(zip(texts, starts, strict=True))
    if isinstance(answers, list):
        return [
            (_get(answer, "text", None, place), _get(answer, "answer_start", None, place))
            for answer, place in ((answer, f"{where}: answers[{n}]") for n, answer in enumerate(answers))
        ]
    raise UserError(f"{where}: 'answers' missing or not a list; give it, empty for an unanswerable question")


def _answer(text: Any, start: Any, context: str, where: str) -> tuple[str, int]:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: an answer's text is empty or not a string; remove that answer")
    if isinstance(start, bool) or not isinstance(start, int):  # 22.0, "22" and true are mistakes
        raise UserError(f"{where}: answer_start {_brief(start)!r} is not an integer; correct it")
    if start < 0 or start + len(text) > len(context):
        raise UserError(
            f"{where}: answer_start {_brief(start)} with {len(text)} characters is outside the context "
            f"({len(context)} characters); correct it (it counts characters from 0)"
        )
    return text, start


def _brief(value: Any) -> Any:
    """A value for a message."""
    if isinstance(value, float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 10**15 else "of many digits"
    return escape_unprintable(str(value)[:60])


def _get(item: Any, key: str, kind: Any, where: str) -> Any:
    """item[key] of the type `kind` (None: any)."""
    value = item.get(key) if isinstance(item, dict) else None
    if value is None or (kind is not None and (not isinstance(value, kind) or isinstance(value, bool))):
        problem = "missing" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{where}: '{key}' is {problem}; correct the record or remove it")
    check_characters({key: value} if isinstance(value, str) else None, where)
    return value


def _squad_questions(source: SquadFiles, base: Path) -> Iterator[Example]:
    files = expand_globs(source.files, base)
    paragraphs = (found for file in files for found in _paragraphs(_load(file), f"{file}: "))
    return chain.from_iterable(map(_questions, take_slice(paragraphs, source, base)))


def _count_paragraphs(source: SquadFiles, path: Path) -> int:
    return sum(1 for _ in _paragraphs(_load(path), f"{path}: "))


def _stdlib_questions(source: StdlibQa, base: Path) -> Iterator[Example]:
    return _official(docs.squad(source.split), f"stdlib_qa ({source.split}): ")


SQUAD = SourceKind(content=hash_files, questions=_squad_questions, count=_count_paragraphs)
STDLIB_QA = SourceKind(content=docs.content, is_split=lambda source, wanted: True, questions=_stdlib_questions)
