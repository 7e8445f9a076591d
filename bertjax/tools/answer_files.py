"""Files of questions and of answers for `bertjax predict answer`."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from bertjax.data.sources.squad import read_unanswered
from bertjax.errors import UserError
from bertjax.evaluation.predictors.base import print_note
from bertjax.storage.files import content_suffix, read_lines
from bertjax.tools import prediction_files as files
from bertjax.tools.prediction_files import Record

_SOURCE_COLUMNS = ("file", "line", "start", "end", "bm25")


def read_questions(path: Path, with_context: bool, identified: bool) -> Iterable[Record]:
    """The records of a file of questions, or of a SQuAD file; `identified`: each needs an `id` of its own.

    Without `with_context` the answers come from documents: a .txt file has one question a line, and contexts in the
    file are not used, which is said. Raises UserError as `read_records` does.
    """
    fields = ["question", "context"] if with_context else ["question"]
    located = read_unanswered(path) if _is_squad(path) else None
    records = files.read_records(path, fields, located=located, identified=identified, filled=True)
    return records if with_context else _without_contexts(records, path)


def _is_squad(path: Path) -> bool:
    """Whether a .json file is one object in the form of SQuAD, and not a list or one record a line."""
    if content_suffix(path) != ".json":
        return False
    line = next((line for _, line in read_lines(path) if line and not line.isspace()), "")
    if not line.lstrip().startswith("{"):
        return False
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return True  # an object of several lines
    return "data" in first


def _without_contexts(records: Iterator[Record], path: Path) -> Iterator[Record]:
    first = next(records, None)
    if first is None:
        return
    if "context" in first:
        print_note(f"{path}: its contexts are not used, because the answers come from --documents")
    yield from chain([first], records)


def shape_of(output: Path) -> Callable[[Record, Any, Path | None], Record]:
    """(record, its answer, file of the record) -> what the output has for it."""
    shapes = {".json": _official, ".jsonl": _nested}
    return shapes.get(output.suffix, _flat)


def _official(record: Record, found: Any, _: Path | None) -> Record:
    """SQuAD's predictions: "" for no answer."""
    return {str(record["id"]): found["answer"] or ""}


def _nested(record: Record, found: Any, file: Path | None) -> Record:
    """The record without its context, and the answer with its candidates."""
    return _joined(record, {key: value for key, value in found.items() if key != "question"}, file)


def _flat(record: Record, found: Any, file: Path | None) -> Record:
    """The record without its context, the answer (empty: none) and its probability, and where documents have it."""
    added: Record = {"answer": found["answer"], "probability": found.get("probability")}
    if any("source" in one for one in [found, *found["candidates"]]) or not found["candidates"]:
        source = found.get("source", {})
        added |= {name: source.get(name) for name in _SOURCE_COLUMNS}
    return _joined(record, added, file)


def _joined(record: Record, added: Record, file: Path | None) -> Record:
    if taken := sorted(added.keys() & record.keys()):
        raise UserError(f"{file}: has a field '{taken[0]}', which the predictions need; rename it")
    return {key: value for key, value in record.items() if key != "context"} | added
