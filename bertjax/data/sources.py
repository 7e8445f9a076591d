"""Sources of text: every kind of source in a config, read as documents (lists of sentences) or as records (dicts).

Reading streams: what is held in memory is one line, one row group or, for `layout: documents`, one file. Anything
malformed is a UserError that names the file and the line or key.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bertjax.config.data_schema import (
    HuggingFaceData,
    JsonLines,
    Parquet,
    SquadFiles,
    StdlibDocs,
    StdlibQa,
    TextFiles,
    TfdsData,
)
from bertjax.data import hub, questions, sentences, stdlib_docs
from bertjax.data.files import expand, read_lines, read_text, sha256_of_files
from bertjax.data.sentences import split_sentences
from bertjax.errors import UserError

Source = TextFiles | JsonLines | Parquet | HuggingFaceData | TfdsData | StdlibDocs | SquadFiles | StdlibQa
Records = JsonLines | Parquet | HuggingFaceData | TfdsData


@dataclasses.dataclass(frozen=True)
class Document:
    """`text` has its paragraphs apart by blank lines; `id` says where it was found, for messages."""

    id: str
    text: str


def read_documents(source: Source, base: Path) -> Iterator[list[str]]:
    """The documents of a source in order, each a list of at least one sentence.

    Relative names start at `base`. Documents without text (an empty or null field) are left out; a source without any
    document is a UserError. Sources of questions (`squad`, `stdlib_qa`) give their contexts, one article a document.
    """
    empty = True
    stream: Iterator[list[str]]
    if isinstance(source, StdlibDocs):
        stream = (found for _, found in stdlib_docs.documents(source.split))
    elif isinstance(source, TextFiles) and source.layout == "sentences":
        stream = _sentence_files(source, base)
    else:
        stream = (split_sentences(document.text) for document in _texts(source, base))
    for document in stream:
        if document:
            empty = False
            yield document
    if empty:
        raise UserError(f"{_name(source)}: holds no text at all; check the files and the text_field")


def read_records(source: Source, base: Path) -> Iterator[dict[str, Any]]:
    """The records of a jsonl, parquet, huggingface or tfds source in order, with bytes decoded to str."""
    if not isinstance(source, Records):
        raise UserError(f"source of kind '{source.kind}': has no fields; use jsonl, parquet, huggingface or tfds")
    return (record for _, record in _records(source, base, None))


def fingerprint(source: Source, base: Path) -> str:
    """sha256 over the source's options and content: changes when what `read_documents` yields may change.

    Files count by name, size and content, not by place or date; a Hub dataset by its own fingerprint; the standard
    library by its files.
    """
    if isinstance(source, TextFiles | JsonLines | Parquet | SquadFiles):
        content = sha256_of_files(expand(source.files, base))
    elif isinstance(source, HuggingFaceData):
        content = hub.huggingface_fingerprint(source, base)
    elif isinstance(source, TfdsData):
        content = hub.tfds_fingerprint(source, base)
    else:
        content = f"{stdlib_docs.VERSION} " + sha256_of_files(stdlib_docs.source_paths())
    options = json.dumps(source.model_dump(mode="json", exclude={"files"}), sort_keys=True)
    return hashlib.sha256(f"{sentences.VERSION}\n{options}\n{content}".encode()).hexdigest()


def _texts(source: Source, base: Path) -> Iterator[Document]:
    if isinstance(source, TextFiles):
        for path in expand(source.files, base):
            yield Document(str(path), read_text(path))
    elif isinstance(source, SquadFiles | StdlibQa):
        yield from _articles(source, base)
    elif isinstance(source, Records):
        for where, record in _records(source, base, source.text_field):
            yield Document(where, _field(record, source.text_field, where))


def _articles(source: SquadFiles | StdlibQa, base: Path) -> Iterator[Document]:
    """The contexts of each article, once each; the questions are checked on the way."""
    for title, examples in itertools.groupby(questions.read_squad(source, base), key=lambda example: example.title):
        yield Document(title, "\n\n".join(dict.fromkeys(example.context for example in examples)))


def _sentence_files(source: TextFiles, base: Path) -> Iterator[list[str]]:
    """One sentence a line; a blank line, or the end of a file, ends a document."""
    for path in expand(source.files, base):
        document: list[str] = []
        for _, line in read_lines(path):
            sentence = " ".join(line.split())
            if sentence:
                document.append(sentence)
            elif document:
                yield document
                document = []
        if document:
            yield document


def _records(source: Records, base: Path, field: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record); with `field` a columnar file may leave the other columns unread."""
    if isinstance(source, HuggingFaceData):
        return hub.huggingface_records(source, base)
    if isinstance(source, TfdsData):
        return hub.tfds_records(source, base)
    read: Callable[[Path, str | None], Iterator[tuple[str, dict[str, Any]]]]
    read = _json_lines if isinstance(source, JsonLines) else _parquet_rows
    return (found for path in expand(source.files, base) for found in read(path, field))


def _json_lines(path: Path, field: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "; the file looks like one JSON array: write one object a line" if line[0] == "[" else ""
            reason = _json_error(error) if isinstance(error, ValueError) else "nested too deeply"
            raise UserError(f"{where}: {reason}{hint or '; write one JSON object a line'}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: is a JSON {type(record).__name__}, not an object; write one JSON object a line")
        yield where, record


def _json_error(error: ValueError) -> str:
    return f"not valid JSON ({str(error)[:100]})"


def _parquet_rows(path: Path, field: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field is not None and field not in names:
                raise UserError(_missing(str(path), field, names))
            row = 0
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(1024, row_groups=[group], columns=None if field is None else [field]):
                    for record in batch.to_pylist():
                        row += 1
                        yield f"{path}: row {row}", hub.to_python(record, f"{path}: row {row}")
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a readable parquet file ({reason}); copy or write it again") from None


def _field(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(_missing(where, field, list(record)))
    value = record[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{field}' holds a {type(value).__name__}, not text; set another text_field")
    return value


def _missing(where: str, field: str, names: list[str]) -> str:
    shown = ", ".join(names[:12])[:120] + (", ..." if len(names) > 12 else "")
    return f"{where}: no field '{field}'; the fields are: {shown or '(none)'}; set text_field to one of them"


def _name(source: Source) -> str:
    return ", ".join(source.files)[:150] if hasattr(source, "files") else getattr(source, "name", source.kind)
