"""Sources of text: every kind of source in a config, read as documents (lists of sentences).

Reading streams: what is held in memory is one line, one row group or, for `layout: documents`, one file. Anything
malformed is a UserError that names the file and the line or key.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bertjax.config.schema.sources import (
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
from bertjax.data.sources import hub, records, sentences, squad
from bertjax.data.sources.record_files import missing_field_error
from bertjax.data.sources.sentences import split_sentences
from bertjax.data.sources.stdlib import docs
from bertjax.errors import UserError
from bertjax.storage import remote
from bertjax.storage.files import expand_globs, read_lines, read_text, sha256_of_files

Source = TextFiles | JsonLines | Json | Tsv | Parquet | HuggingFaceData | TfdsData | StdlibDocs | SquadFiles | StdlibQa
PART_BYTES = 64 << 20
T = TypeVar("T")


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
    yield from _require_documents(stream_documents(source, base), source)


def stream_documents(source: Source, base: Path) -> Iterator[list[str]]:
    """`read_documents` of a source that may be without any, as a part of one may."""
    stream: Iterator[list[str]]
    if isinstance(source, StdlibDocs):
        stream = (found for _, found in docs.documents(source.split))
    elif isinstance(source, TextFiles) and source.layout == "sentences":
        stream = ([line for line in map(_collapsed, lines) if line] for _, lines in _blocks(source, base))
    else:
        stream = (split_sentences(document.text) for document in _texts(source, base))
    yield from (document for document in stream if document)


def read_texts(source: Source, base: Path) -> Iterator[str]:
    """The documents of a source as `read_documents` gives them, each as its text: as it was written, where the source
    holds it so, else its sentences joined by spaces."""
    yield from _require_documents(stream_texts(source, base), source)


def stream_texts(source: Source, base: Path) -> Iterator[str]:
    """`read_texts` of a source that may be without any."""
    if isinstance(source, StdlibDocs) or (isinstance(source, TextFiles) and source.layout == "sentences"):
        yield from (" ".join(document) for document in stream_documents(source, base))
        return
    for document in _texts(source, base):
        if document.text and not document.text.isspace():
            yield document.text


def largest_file(source: TextFiles, base: Path) -> tuple[Path, int]:
    """A source's largest file, and how many blocks of lines blank lines divide it into."""
    path = max(expand_globs(source.files, base), key=lambda path: remote.file_size(path) or 0)
    return path, sum(1 for _ in _blocks(source.model_copy(update={"files": [str(path)]}), base))


def no_text_error(source: Source) -> UserError:
    return UserError(f"{_name(source)}: holds no text at all; check the files and the text_field")


def _require_documents(stream: Iterator[T], source: Source) -> Iterator[T]:
    empty = True
    for found in stream:
        empty = False
        yield found
    if empty:
        raise no_text_error(source)


def split_source(source: Source, base: Path) -> list[tuple[Source, int]]:
    """The source cut into (source, bytes) of about PART_BYTES of files, which one after the other hold what it holds.

    A file is never cut; what is not in files of text is one part of no bytes.
    """
    if not isinstance(source, TextFiles | JsonLines | Json | Tsv | Parquet):
        return [(source, 0)]
    files: list[list[str]] = [[]]
    sizes = [0]
    for path in expand_globs(source.files, base):
        if sizes[-1] >= PART_BYTES:
            files.append([])
            sizes.append(0)
        files[-1].append(str(path) if remote.is_remote(path) else os.path.abspath(path))
        sizes[-1] += remote.file_size(path) or 0
    return [(source.model_copy(update={"files": part}), size) for part, size in zip(files, sizes, strict=True)]


def fingerprint(source: Source, base: Path, version: int = sentences.VERSION) -> str:
    """sha256 over the source's options and content: changes when what `read_documents` yields may change.

    Files count by name, size and content, not by place or date; a Hub dataset by its own fingerprint; the standard
    library by its files. version: of the rules that split sentences.
    """
    if isinstance(source, TextFiles | JsonLines | Json | Tsv | Parquet | SquadFiles):
        content = sha256_of_files(expand_globs(source.files, base))
    elif isinstance(source, HuggingFaceData):
        content = hub.huggingface_fingerprint(source, base)
    elif isinstance(source, TfdsData):
        content = hub.tfds_fingerprint(source, base)
    elif isinstance(source, StdlibDocs | StdlibQa):
        content = f"{docs.VERSION} " + sha256_of_files(docs.source_paths())
    else:
        raise _unknown_kind_error(source, "fingerprint")
    options = json.dumps(source.model_dump(mode="json", exclude={"files"}), sort_keys=True)
    return hashlib.sha256(f"{version}\n{options}\n{content}".encode()).hexdigest()


def match_earlier_version(sources: Sequence[Source], base: Path, fingerprints: Sequence[str]) -> bool:
    """Whether an earlier version of bertjax gave these sources these fingerprints: the same data, read otherwise."""
    earlier = ([fingerprint(source, base, version) for source in sources] for version in range(1, sentences.VERSION))
    return list(fingerprints) in earlier


def _unknown_kind_error(source: Any, function: str) -> TypeError:
    """For whoever adds a kind of source: without a case of its own it would pass for another kind."""
    return TypeError(f"source kind '{getattr(source, 'kind', source)}' has no case in data/sources/text.py: {function}")


def _texts(source: Source, base: Path) -> Iterator[Document]:
    if isinstance(source, TextFiles) and source.layout == "paragraphs":
        for where, lines in _blocks(source, base):
            yield Document(where, "\n".join(lines))
    elif isinstance(source, TextFiles):
        for path in expand_globs(source.files, base):
            yield Document(str(path), read_text(path))
    elif isinstance(source, SquadFiles | StdlibQa):
        yield from _articles(source, base)
    elif isinstance(source, records.Records):
        for where, record in records.stream_records(source, base, source.text_field):
            yield Document(where, _field(record, source.text_field, where))
    else:
        raise _unknown_kind_error(source, "_texts")


def _articles(source: SquadFiles | StdlibQa, base: Path) -> Iterator[Document]:
    """The contexts of each article, once each; the questions are checked on the way."""
    for title, examples in itertools.groupby(squad.read_squad(source, base), key=lambda example: example.title):
        yield Document(title, "\n\n".join(dict.fromkeys(example.context for example in examples)))


def _blocks(source: TextFiles, base: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, lines) of the stretches of lines that blank lines, or the ends of files, separate."""
    for path in expand_globs(source.files, base):
        block: list[str] = []
        for number, line in read_lines(path):
            if line and not line.isspace():
                block.append(line)
            elif block:
                yield f"{path}: line {number - len(block)}", block
                block = []
        if block:
            yield f"{path}: line {number - len(block) + 1}", block


def _collapsed(line: str) -> str:
    return " ".join(line.split())


def _field(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(missing_field_error(where, field, list(record)))
    value = record[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{field}' holds a {type(value).__name__}, not text; set another text_field")
    return value


def _name(source: Source) -> str:
    return ", ".join(source.files)[:150] if hasattr(source, "files") else getattr(source, "name", source.kind)
