"""Finds the documents of a folder and reads them: text files, and records of JSON lines.

What is left out is counted by reason. Text keeps every character of its file: `text[start:end]` of the file, decoded as
UTF-8 without translation of line ends, is what an answer's position says.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bertjax.data.sources.record_files import json_lines, missing_field_error
from bertjax.errors import UserError, escape_unprintable
from bertjax.storage.files import DECODE_ERRORS, OPENERS, content_suffix, open_binary

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst")
RECORDS_SUFFIX = ".jsonl"
MAX_BYTES = 1 << 30  # of one text file, which is read at once


class Document(NamedTuple):
    """A text file, or the text of a record: `line` is that of the record, 0 for a text file."""

    line: int
    text: str


@dataclass
class LeftOut:
    """Files and documents that are not searched: how many for each reason, and the first of them."""

    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)

    def count(self, reason: str, name: str) -> None:
        number, first = self.reasons.get(reason, (0, name))
        self.reasons[reason] = (number + 1, first)

    def __str__(self) -> str:
        listed = [f"{reason}: {number:,} (first: {first})" for reason, (number, first) in self.reasons.items()]
        return escape_unprintable("; ".join(listed))


def find_files(root: Path, left_out: LeftOut) -> list[Path]:
    """The document files below a folder, or the one file `root`, in the order of their paths.

    Links to files are followed and links to folders are not: a loop would have no end. Hidden files are left out.
    Raises UserError for a path that does not exist, a file of another kind, and a folder without a document file.
    """
    if root.is_file():
        if not _is_document(root):
            raise UserError(f"{root}: is not a document: {_kinds()}, possibly compressed")
        return [root]
    if not root.is_dir():
        raise UserError(f"{root}: no such file or folder")
    found: list[Path] = []
    unreadable = lambda error: left_out.count("folders that cannot be read", _name(Path(error.filename), root))  # noqa: E731
    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders.sort()
        for name in folders:
            if name.startswith("."):
                left_out.count("hidden", _name(Path(folder, name), root))
            elif Path(folder, name).is_symlink():
                left_out.count("links to folders", _name(Path(folder, name), root))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(names):
            path = Path(folder, name)
            if reason := _unfit(path):
                left_out.count(reason, _name(path, root))
            else:
                found.append(path)
    if not found:
        more = f"; left out: {left_out}" if left_out.reasons else ""
        raise UserError(f"{root}: no document in this folder ({_kinds()}, possibly compressed){more}")
    return found


def _kinds() -> str:
    return f"{', '.join(TEXT_SUFFIXES)} or {RECORDS_SUFFIX}"


def _unfit(path: Path) -> str | None:
    """Why a file of the folder is no document."""
    if path.name.startswith("."):
        return "hidden"
    if not _is_document(path):
        return "files of other kinds"
    if not path.exists():
        return "broken links"
    return None if path.is_file() else "no regular files"


def _is_document(path: Path) -> bool:
    return content_suffix(path).lower() in (*TEXT_SUFFIXES, RECORDS_SUFFIX)


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def read_documents(path: Path, root: Path, text_field: str, left_out: LeftOut) -> Iterator[Document]:
    """The documents of one file. Text files that are not UTF-8, or cannot be read, are counted in `left_out`.

    Raises UserError for JSON lines that are malformed or have no text in `text_field`, naming the line, and for
    compressed files that are damaged.
    """
    if content_suffix(path).lower() == RECORDS_SUFFIX:
        for number, text in _records(path, text_field):
            if not text or text.isspace():
                left_out.count("records without text", f"{_name(path, root)}: line {number}")
            else:
                yield Document(number, text)
        return
    try:
        data = _read_bytes(path)
    except PermissionError:
        left_out.count("files that cannot be read", _name(path, root))
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        left_out.count("files that are not UTF-8 text", f"{_name(path, root)}, byte {error.start + 1}")
        return
    if "\0" in text:
        left_out.count("binary files", _name(path, root))
    elif not text or text.isspace():
        left_out.count("files without text", _name(path, root))
    else:
        yield Document(0, text)


def read_lines_of(path: Path, text_field: str, lines: set[int]) -> dict[int, str]:
    """The texts of some documents of a file by their `line`."""
    if lines == {0}:
        return {0: _read_bytes(path).decode("utf-8")}
    found: dict[int, str] = {}
    for number, text in _records(path, text_field):
        if number in lines:
            found[number] = text
            if len(found) == len(lines):
                break
    return found


def _records(path: Path, text_field: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each record."""
    for where, record in json_lines(path):
        text = record.get(text_field)
        if text is None:
            if text_field not in record:
                error = missing_field_error(where, text_field, list(record)).partition("; set text_field")[0]
                raise UserError(f"{error}; name the field with the text with --column")
            text = ""
        if not isinstance(text, str):
            raise UserError(f"{where}: '{text_field}' is a {type(text).__name__}, not a text; correct the record")
        yield int(where.rpartition(" ")[2]), text


def _read_bytes(path: Path) -> bytes:
    try:
        with open_binary(path) as file:
            data = file.read(MAX_BYTES + 1)
    except UserError as error:  # it says which permission is missing
        if not os.access(path, os.R_OK):
            raise PermissionError(str(error)) from None
        raise
    except DECODE_ERRORS as error:
        kind = f"the {path.suffix} data is cut short or damaged" if path.suffix in OPENERS else "cannot be read"
        raise UserError(f"{path}: {kind} ({error}); copy or compress it again") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes; split it into several files, or write .jsonl")
    return data
