"""Sources of text: every kind of source in a config, read as documents (lists of sentences).

Reading streams: what is held in memory is one line, one row group or, for `layout: documents`, one file. Anything
malformed is a UserError that names the file and the line or key.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.config.data_schema import (
    HuggingFaceData,
    Json,
    JsonLines,
    Parquet,
    SquadFiles,
    StdlibDocs,
    StdlibQa,
    TextFiles,
    TfdsData,
    Tsv,
)
from bertjax.data import hub, questions, records, sentences, stdlib_docs
from bertjax.data.files import expand, read_lines, read_text, sha256_of_files
from bertjax.data.sentences import split_sentences
from bertjax.errors import UserError

Source = TextFiles | JsonLines | Json | Tsv | Parquet | HuggingFaceData | TfdsData | StdlibDocs | SquadFiles | StdlibQa


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


def read_texts(source: Source, base: Path) -> Iterator[str]:
    """The documents of a source as `read_documents` gives them, each as its text: as it was written, where the source
    holds it so, else its sentences joined by spaces."""
    if isinstance(source, StdlibDocs) or (isinstance(source, TextFiles) and source.layout == "sentences"):
        yield from (" ".join(document) for document in read_documents(source, base))
        return
    empty = True
    for document in _texts(source, base):
        if document.text and not document.text.isspace():
            empty = False
            yield document.text
    if empty:
        raise UserError(f"{_name(source)}: holds no text at all; check the files and the text_field")


def fingerprint(source: Source, base: Path) -> str:
    """sha256 over the source's options and content: changes when what `read_documents` yields may change.

    Files count by name, size and content, not by place or date; a Hub dataset by its own fingerprint; the standard
    library by its files.
    """
    if isinstance(source, TextFiles | JsonLines | Json | Tsv | Parquet | SquadFiles):
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
    elif isinstance(source, records.Records):
        for where, record in records.stream(source, base, source.text_field):
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


def _field(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(records.missing(where, field, list(record)))
    value = record[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{field}' holds a {type(value).__name__}, not text; set another text_field")
    return value


def _name(source: Source) -> str:
    return ", ".join(source.files)[:150] if hasattr(source, "files") else getattr(source, "name", source.kind)
