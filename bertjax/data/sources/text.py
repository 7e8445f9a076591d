"""Reads any source as texts or as documents (lists of sentences), and plain text files.

Reading streams: memory holds one line, one row group or a piece of a document.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from bertjax.config.schema.sources import TextFiles
from bertjax.data.sources import squad
from bertjax.data.sources.pieces import (
    MAX_CHARACTERS,
    UnfinishedText,
    cut_lines,
    cut_text,
    is_last,
    split_documents,
)
from bertjax.data.sources.record_files import missing_field_error
from bertjax.data.sources.registry import SourceKind, hash_files, record_of, split_files, take_slice
from bertjax.errors import UserError
from bertjax.storage import remote
from bertjax.storage.files import expand_globs, read_lines, read_pieces

T = TypeVar("T")
BLANK = "blank"


def read_documents(source: Any, base: Path) -> Iterator[list[str]]:
    """The documents of a source in order, each a list of at least one sentence; UserError where there is none.

    Documents without text are left out. Sources of questions give their contexts, one article per document.
    """
    yield from _require_documents(stream_documents(source, base), source)


def stream_documents(source: Any, base: Path, blank: Counter[str] | None = None) -> Iterator[list[str]]:
    """`read_documents` of a source that may have none, such as a part of one.

    A document of more than `pieces.MAX_CHARACTERS` comes in several lists, of which all but the last are
    `UnfinishedDocument`s. `blank`: counts those without text under BLANK.
    """
    read = record_of(source).documents
    if read is None:
        yield from filter(None, split_documents(stream_texts(source, base, blank)))
        return
    for document in read(source, base):
        if document:
            yield document
        elif blank is not None:
            blank[BLANK] += 1


def read_texts(source: Any, base: Path) -> Iterator[str]:
    """The texts of the documents of a source, as written or, where it has only sentences, joined by spaces."""
    yield from _require_documents(stream_texts(source, base), source)


def stream_texts(source: Any, base: Path, blank: Counter[str] | None = None) -> Iterator[str]:
    """`read_texts` of a source that may have none.

    A text of more than `pieces.MAX_CHARACTERS` comes in pieces, of which all but the last are `UnfinishedText`s.
    `blank`: counts those without text under BLANK.
    """
    record = record_of(source)
    if record.texts:
        found = record.texts(source, base)
    elif record.documents:
        found = map(" ".join, record.documents(source, base))
    elif record.records:
        field = getattr(source, "text_field", "text")
        found = (_field(fields, field, where) for where, fields in record.records(source, base, field))
    else:
        found = _contexts(source, base)
    for text in found:
        for piece in cut_text([text]) if is_last(text) and len(text) > MAX_CHARACTERS else (text,):
            if piece and not piece.isspace():
                yield piece
            elif blank is not None:
                blank[BLANK] += 1


def no_text_error(source: Any) -> UserError:
    return UserError(f"{record_of(source).describe(source)}: holds no text at all; check the files and the text_field")


def _require_documents(stream: Iterator[T], source: Any) -> Iterator[T]:
    empty = True
    for found in stream:
        empty = False
        yield found
    if empty:
        raise no_text_error(source)


def _field(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(missing_field_error(where, field, list(record)))
    value = record[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{field}' holds a {type(value).__name__}, not text; set another text_field")
    return value


def _contexts(source: Any, base: Path) -> Iterator[str]:
    """The contexts of each article, once each; all questions are checked."""
    for _, examples in itertools.groupby(squad.read_squad(source, base), key=lambda example: example.title):
        yield "\n\n".join(dict.fromkeys(example.context for example in examples))


def _undivided(source: TextFiles, base: Path) -> tuple[Path, int] | None:
    if source.layout != "documents":
        return None
    path = max(expand_globs(source.files, base), key=lambda path: remote.file_size(path) or 0)
    return path, sum(map(is_last, _blocks(source.model_copy(update={"files": [str(path)]}), base)))


def _documents(source: TextFiles, base: Path) -> Iterator[list[str]]:
    if source.layout != "sentences":
        return split_documents(_texts(source, base))
    blocks = take_slice(_blocks(source, base), source, base, is_last)
    return (type(lines)([" ".join(line.split()) for line in lines]) for lines in blocks)


def _texts(source: TextFiles, base: Path) -> Iterator[str]:
    if source.layout == "sentences":
        return (_joined(" ", lines) for lines in _documents(source, base))
    if source.layout == "paragraphs":
        return (_joined("\n", lines) for lines in take_slice(_blocks(source, base), source, base, is_last))
    files = take_slice(iter(expand_globs(source.files, base)), source, base)
    return (piece for path in files for piece in cut_text(read_pieces(path, MAX_CHARACTERS)))


def _joined(between: str, lines: list[str]) -> str:
    text = between.join(lines)
    return text if is_last(lines) else UnfinishedText(text + between)


def _blocks(source: TextFiles, base: Path) -> Iterator[list[str]]:
    """The groups of lines between blank lines or ends of files; long ones in pieces."""
    for path in expand_globs(source.files, base):
        lines = (line for _, line in read_lines(path))
        for is_blank, block in itertools.groupby(lines, key=lambda line: not line or line.isspace()):
            if not is_blank:
                yield from cut_lines(block)


def _count(source: TextFiles, path: Path) -> int:
    if source.layout == "documents":
        return 1
    return sum(map(is_last, _blocks(source.model_copy(update={"files": [str(path)]}), path.parent)))


TEXT = SourceKind(
    content=hash_files,
    is_split=lambda source, wanted: wanted and source.layout != "sentences",
    texts=_texts,
    documents=_documents,
    parts=split_files,
    undivided=_undivided,
    count=_count,
)
