"""Reads files in columns (CoNLL-2003, CoNLL-U, GermEval, WNUT): a word and its labels per line."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bertjax.config.schema.sources import Conll
from bertjax.data.sources.record_files import LocatedRecords
from bertjax.data.sources.registry import SourceKind, hash_files, split_files, take_slice
from bertjax.errors import UserError, escape_unprintable
from bertjax.storage.files import content_suffix, expand_globs, read_lines

TOKENS, TAGS, TEXT = "tokens", "ner_tags", "text"
DOCUMENT_MARK = "-DOCSTART-"  # of CoNLL-2003: a line between documents, not a word
CONLLU = ("id", TOKENS, "lemmas", "upos_tags", "xpos_tags", "feats", "heads", "deprels", "deps", "misc")


def sentences(
    path: Path, fields: Sequence[str] | None = None, comment: str | None = None, *, unlabelled: bool = False
) -> LocatedRecords:
    """(where, {"text": words joined by spaces, column: list of its values}) of each sentence.

    Columns are separated by tabs, in lines without tabs by spaces. `where` has the number of the first line. Of CoNLL-U
    files (by the ending), comments, ranges of words (1-2) and empty nodes (1.1) are passed over. `unlabelled`: a line
    may have a word alone. Raises UserError.
    """
    is_conllu = content_suffix(path) == ".conllu"
    names = fields or (CONLLU if is_conllu else None)
    skip = comment or ("#" if is_conllu else None)
    rows: list[list[str]] = []
    first = 0
    for number, line in read_lines(path):
        if skip is not None and line.startswith(skip):
            continue
        if not line.strip():
            if rows:
                yield f"{path}: line {first}", _record(rows, names)
            rows = []
            continue
        cells = line.strip("\r\n").split("\t") if "\t" in line else re.split(" +", line.strip(" \r\n"))
        cells = [cell.strip(" ") for cell in cells]
        if cells[0] == DOCUMENT_MARK or (is_conllu and not cells[0].isdecimal()):
            continue
        _check(f"{path}: line {number}", cells, names, len(rows[0]) if rows else None, unlabelled)
        first = first if rows else number
        rows.append(cells)
    if rows:
        yield f"{path}: line {first}", _record(rows, names)


def _check(where: str, cells: list[str], names: Sequence[str] | None, before: int | None, unlabelled: bool) -> None:
    if names is not None and len(cells) != len(names):
        shown = escape_unprintable(", ".join(names))[:100]
        raise UserError(f"{where}: {len(cells)} columns, not the {len(names)} named ({shown}); correct the line")
    if names is None and len(cells) < 2 and not unlabelled:
        shown = escape_unprintable(cells[0])[:40]
        raise UserError(
            f"{where}: one column ('{shown}'); a line has a word and its label, separated by a space or tab"
        )
    if before is not None and len(cells) != before:
        raise UserError(f"{where}: {len(cells)} columns, the line before has {before}; correct the line")


def _record(rows: list[list[str]], names: Sequence[str] | None) -> dict[str, Any]:
    columns = list(zip(*rows, strict=True))
    if names is None:
        last = len(columns)
        names = [TOKENS, *(f"column_{number}" for number in range(2, last)), *([TAGS] if last > 1 else [])]
    found = {name: list(column) for name, column in zip(names, columns, strict=True)}
    return {TEXT: " ".join(found.get(TOKENS, ())), **found}


def _records(source: Conll, base: Path, field: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    files = expand_globs(source.files, base)
    return take_slice((one for path in files for one in sentences(path, source.fields, source.comment)), source, base)


CONLL = SourceKind(
    content=hash_files,
    parts=split_files,
    records=_records,
    count=lambda source, path: sum(1 for _ in sentences(path, source.fields, source.comment)),
)
