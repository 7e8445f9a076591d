"""Reading extractive question answering data: official SQuAD JSON and the record form of `datasets` and TFDS."""

import json
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.config.data_schema import SquadFiles, StdlibQa
from bertjax.data.files import expand, read_text
from bertjax.data.records import Records, read_records
from bertjax.errors import UserError

QaSource = SquadFiles | StdlibQa | Records


@dataclass(frozen=True, slots=True)
class Example:
    """One question. `answers` holds (text, first character in the context); it is empty when `is_impossible`."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]
    is_impossible: bool = False
    title: str = ""


def read_squad(source: QaSource, base: Path) -> list[Example]:
    """Every question of `source`, in file order; relative names start at `base`.

    `squad` and `stdlib_qa` give the official form (data > paragraphs > qas); `jsonl`, `json`, `parquet`, `huggingface`
    and `tfds` give one record a question: {id, title, context, question, answers: {text, answer_start}}. Without
    `is_impossible` a question that has no answers is unanswerable.

    Raises UserError, naming the file and the question, for missing keys, wrong types and answers that are not where
    `answer_start` says a text could be; also when there is no question at all.
    """
    if isinstance(source, SquadFiles):
        files = expand(source.files, base)
        examples = [example for file in files for example in _official(_load(file), str(file))]
        name = str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    elif isinstance(source, StdlibQa):
        from bertjax.data import stdlib_docs  # reads the standard library only when asked to

        name = f"stdlib_qa ({source.split})"
        examples = list(_official(stdlib_docs.squad(source.split), name))
    elif isinstance(source, Records):
        name = source.name if hasattr(source, "name") else ", ".join(source.files[:3])
        records = enumerate(read_records(source, base), 1)
        examples = [_example(record, name, f"record {n}") for n, record in records]
    else:
        raise UserError(
            f"source: kind '{source.kind}' holds no questions; "
            "use squad, stdlib_qa, jsonl, json, parquet, huggingface or tfds for span_qa"
        )
    if not examples:
        raise UserError(f"{name}: no questions in it; name a file with data > paragraphs > qas, or question records")
    return examples


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: line {error.lineno}: not JSON ({error.msg}); mend or re-download the file") from None
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise UserError(f"{file}: 'data' list missing; name a SQuAD file (for one record a line use kind: jsonl)")
    return content


def _official(content: dict[str, Any], name: str) -> Iterator[Example]:
    for a, article in enumerate(content["data"]):
        for p, paragraph in enumerate(_get(article, "paragraphs", list, name, f"data[{a}]")):
            where = f"data[{a}].paragraphs[{p}]"
            shared = {"context": _get(paragraph, "context", str, name, where), "title": article.get("title", "")}
            for q, qa in enumerate(_get(paragraph, "qas", list, name, where)):
                if not isinstance(qa, dict):
                    raise UserError(f"{name}: {where}.qas[{q}]: an object is needed; remove or mend it")
                yield _example(shared | qa, name, f"{where}.qas[{q}]")


def _example(record: dict[str, Any], name: str, where: str) -> Example:
    """A question with everything about it checked; `where` names it until its id is known."""
    identity = _get(record, "id", (str, int), name, where)
    where = f"question '{identity}'"
    context = _get(record, "context", str, name, where)
    question = _get(record, "question", str, name, where)
    if not context.strip():
        raise UserError(f"{name}: {where}: the context is empty; remove the question")
    answers = [_answer(text, start, context, name, where) for text, start in _pairs(record, name, where)]
    impossible = record.get("is_impossible")
    impossible = not answers if impossible is None else bool(impossible)
    if impossible == bool(answers):
        state = "true, but there are answers" if impossible else "false, but there are no answers"
        raise UserError(f"{name}: {where}: is_impossible is {state}; mend one of the two")
    title = record.get("title")
    return Example(str(identity), question, context, answers, impossible, title if isinstance(title, str) else "")


def _pairs(record: dict[str, Any], name: str, where: str) -> list[tuple[Any, Any]]:
    """(text, answer_start) pairs out of a list of objects (official) or an object of lists (`datasets`, TFDS)."""
    answers = record.get("answers")
    if isinstance(answers, dict):
        texts, starts = (_get(answers, key, None, name, f"{where}: answers") for key in ("text", "answer_start"))
        texts, starts = list(texts), list(starts)  # numpy arrays from TFDS
        if len(texts) != len(starts):
            raise UserError(f"{name}: {where}: {len(texts)} answer texts, {len(starts)} answer_start; mend the record")
        return list(zip(texts, starts, strict=True))
    if isinstance(answers, list):
        places = [f"{where}: answers[{n}]" for n in range(len(answers))]
        return [
            (_get(answer, "text", None, name, place), _get(answer, "answer_start", None, name, place))
            for answer, place in zip(answers, places, strict=True)
        ]
    raise UserError(f"{name}: {where}: 'answers' missing or not a list; give it, empty for an unanswerable question")


def _answer(text: Any, start: Any, context: str, name: str, where: str) -> tuple[str, int]:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{name}: {where}: an answer's text is empty or not a string; remove that answer")
    try:
        position = operator.index(start)  # int or a numpy integer; 22.0 and "22" are mistakes
    except TypeError:
        raise UserError(f"{name}: {where}: answer_start {start!r} is not a whole number; mend it") from None
    if position < 0 or position + len(text) > len(context):
        raise UserError(
            f"{name}: {where}: answer_start {position} with {len(text)} characters is outside the context "
            f"({len(context)} characters); mend it (it counts characters from 0)"
        )
    return text, position


def _get(item: Any, key: str, kind: Any, name: str, where: str) -> Any:
    """item[key] of the type `kind` (None: any)."""
    value = item.get(key) if isinstance(item, dict) else None
    if value is None or (kind is not None and not isinstance(value, kind)):
        problem = "missing" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{name}: {where}: '{key}' is {problem}; mend the record or remove it")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no tokenizer takes it
            raise UserError(f"{name}: {where}: '{key}' holds a lone surrogate, not a character; mend it") from None
    return value
