"""Reads any source as texts or as documents (lists of sentences), and plain text files.

Reading streams: memory holds one line, one row group or, for `layout: documents`, one file.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from bertjax.config.schema.sources import TextFiles
from bertjax.data.sources import squad
from bertjax.data.sources.record_files import missing_field_error
from bertjax.data.sources.registry import SourceKind, hash_files, record_of, split_files, take_slice
from bertjax.data.sources.sentences import split_sentences
from bertjax.errors import UserError
from bertjax.storage import remote
from bertjax.storage.files import expand_globs, read_lines, read_text

T = TypeVar("T")


def read_documents(source: Any, base: Path) -> Iterator[list[str]]:
    """The documents of a source in order, each a list of at least one sentence; UserError where there is none.

    Documents without text are left out. Sources of questions give their contexts, one article per document.
    """
    yield from _require_documents(stream_documents(source, base), source)


def stream_documents(source: Any, base: Path) -> Iterator[list[str]]:
    """`read_documents` of a source that may have none, such as a part of one."""
    read = record_of(source).documents
    found = map(split_sentences, stream_texts(source, base)) if read is None else read(source, base)
    return filter(None, found)


def read_texts(source: Any, base: Path) -> Iterator[str]:
    """The texts of the documents of a source, as written or, where it has only sentences, joined by spaces."""
    yield from _require_documents(stream_texts(source, base), source)


def stream_texts(source: Any, base: Path) -> Iterator[str]:
    """`read_texts` of a source that may have none."""
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
    return (text for text in found if text and not text.isspace())


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
    return path, sum(1 for _ in _blocks(source.model_copy(update={"files": [str(path)]}), base))


def _documents(source: TextFiles, base: Path) -> Iterator[list[str]]:
    if source.layout != "sentences":
        return map(split_sentences, _texts(source, base))
    return ([" ".join(line.split()) for line in lines] for lines in take_slice(_blocks(source, base), source, base))


def _texts(source: TextFiles, base: Path) -> Iterator[str]:
    if source.layout == "sentences":
        return map(" ".join, _documents(source, base))
    if source.layout == "paragraphs":
        return map("\n".join, take_slice(_blocks(source, base), source, base))
    return map(read_text, take_slice(iter(expand_globs(source.files, base)), source, base))


def _blocks(source: TextFiles, base: Path) -> Iterator[list[str]]:
    """The groups of lines between blank lines or ends of files."""
    for path in expand_globs(source.files, base):
        lines = (line for _, line in read_lines(path))
        for is_blank, block in itertools.groupby(lines, key=lambda line: not line or line.isspace()):
            if not is_blank:
                yield list(block)


def _count(source: TextFiles, path: Path) -> int:
    if source.layout == "documents":
        return 1
    return sum(1 for _ in _blocks(source.model_copy(update={"files": [str(path)]}), path.parent))


TEXT = SourceKind(
    content=hash_files,
    is_split=lambda source, wanted: wanted and source.layout != "sentences",
    texts=_texts,
    documents=_documents,
    parts=split_files,
    undivided=_undivided,
    count=_count,
)
