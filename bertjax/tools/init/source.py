"""Find out what kind of data the user's files hold."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertjax.config.schema.sources import SOURCES
from bertjax.data.sources.record_files import find_delimiter
from bertjax.data.sources.records import read_located
from bertjax.data.sources.registry import record_of
from bertjax.errors import UserError, escape_unprintable
from bertjax.storage.files import OPENERS, expand_globs, read_lines, read_text

KINDS = {
    ".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".tsv": "tsv", ".tab": "tsv", ".csv": "csv", ".parquet": "parquet",
    **dict.fromkeys((".conll", ".conllu", ".iob", ".iob2", ".bio"), "conll"),
}  # fmt: skip
MAX_NAME = 60  # characters of a column name


@dataclass(frozen=True)
class Data:
    """A source, as the section of the configuration and as the keys to write.

    Attributes:
        section: the source, checked.
        keys: its options for the YAML file.
        size: bytes of its files as stored; 0 for data sets.
    """

    section: Any
    keys: dict[str, Any]
    size: int

    @property
    def holds(self) -> str:
        """`text`, `questions` or `records`."""
        record = record_of(self.section)
        return "records" if record.records else "questions" if record.questions else "text"

    @property
    def described(self) -> str:
        return record_of(self.section).describe(self.section)

    def replace(self, **keys: Any) -> "Data":
        """The same source with other options."""
        return make_data({**self.keys, **keys}, self.size)


def make_data(keys: dict[str, Any], size: int) -> Data:
    """A source of the given options. Raises UserError for invalid ones."""
    section = SOURCES.get(keys["kind"])
    if section is None:
        raise UserError(f"data of kind '{keys['kind']}' are not supported; convert them to JSON lines or TSV")
    try:
        return Data(section.model_validate(keys), keys, size)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def open_files(
    files: Sequence[str],
    base: Path,
    fields: Sequence[str] | None = None,
    *,
    in_columns: bool = False,
    tables: bool = True,
) -> Data:
    """The source that files or globs make. `fields` names the columns of a table without a header.

    `in_columns`: text files, and those with an unknown ending, have a word and its labels per line. `tables`: a text
    file may be a table of which only the name says otherwise.

    Raises UserError for missing files, files of different kinds and unknown ones.
    """
    paths = expand_globs(list(files), base)
    kinds = {_find_kind(path, in_columns, tables): path for path in paths}
    if len(kinds) > 1:
        (one, a), (other, b) = list(kinds.items())[:2]
        raise UserError(f"{a} holds {one} and {b} {other}; name files of one kind")
    keys: dict[str, Any] = {"kind": next(iter(kinds)), "files": list(files)}
    if keys["kind"] == "csv" and (delimiter := find_delimiter(paths[0])) != ",":
        keys["delimiter"] = delimiter
    if fields is not None:
        if keys["kind"] not in ("csv", "tsv", "conll"):
            raise UserError(f"--fields: only for tables (CSV, TSV); {paths[0]} holds {keys['kind']}")
        keys["fields"] = list(fields)
    elif keys["kind"] == "text":
        keys["layout"] = find_layout(paths)
    return make_data(keys, sum(path.stat().st_size for path in paths))


def _find_kind(path: Path, in_columns: bool, tables: bool) -> str:
    suffix = Path(path.stem).suffix if path.suffix in {*OPENERS, ".zst"} else path.suffix
    kind = KINDS.get(suffix.lower())
    if in_columns and kind in (None, "text"):
        return "conll"
    if kind == "text" and tables and _is_table(path):
        return "tsv"
    if kind is None:
        raise UserError(f"{path}: cannot tell its format; known endings: {' '.join(KINDS)}, also compressed; rename it")
    return _kind_of_json(path) if kind == "json" else kind


def _is_table(path: Path) -> bool:
    """Whether the first lines of a text file have the same number of tabs (such as SICK_train.txt), without blank lines
    at their end, and the first of them two names or more, which indented lines do not have."""
    lines = [line.rstrip("\r\n") for _, line in islice(read_lines(path), 20)]
    while lines and not lines[-1].strip():
        del lines[-1]
    tabs = {line.count("\t") for line in lines}
    return len(lines) > 1 and len(tabs) == 1 and sum(bool(name.strip()) for name in lines[0].split("\t")) > 1


def _kind_of_json(path: Path) -> str:
    """`json` for a list, `jsonl` for an object a line, `squad` for an object with a list `data`."""
    first = next((line.strip() for _, line in read_lines(path) if line.strip()), "")
    if first.startswith("["):
        return "json"
    try:
        if "data" not in json.loads(first):
            return "jsonl"
    except (ValueError, RecursionError, TypeError):
        pass
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({str(error)[:80]})") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        return "squad"
    raise UserError(
        f"{path}: expected a list of objects, an object a line, or SQuAD's format (data > paragraphs > qas)"
    )


def find_layout(paths: Sequence[Path]) -> str:
    """The `layout` of text files: `sentences`, `paragraphs` or `documents`.

    Blank lines separate documents unless there are many files. Lines of such a document are sentences if most end like
    one, are short and follow each other.
    """
    lines = [line.strip() for _, line in islice(read_lines(paths[0]), 20_000)]
    blocks = sum(not line and bool(before) for before, line in zip(lines, lines[1:], strict=False))
    if not blocks or len(paths) > 20:
        return "documents"
    texts = [line for line in lines if line]
    ended = sum(line.endswith((".", "!", "?", '"', "'", ":", ";", "”", ".)")) for line in texts)
    short = sum(len(line.split()) < 60 for line in texts)
    several = len(texts) > 1.5 * (blocks + 1)
    return "sentences" if several and ended > 0.8 * len(texts) and short > 0.9 * len(texts) else "paragraphs"


def sample_records(data: Data, base: Path, count: int = 1000) -> list[dict[str, Any]]:
    """The first records. Raises UserError for none, and for a table whose first line is not a header."""
    sample = [record for _, record in islice(read_located(data.section, base), count)]
    if not sample:
        raise UserError(f"{data.described}: holds no records")
    names = list(sample[0])
    if data.keys["kind"] in ("csv", "tsv") and "fields" not in data.keys and (odd := _not_a_name(names)) is not None:
        raise UserError(
            f"{data.described}: the first line has '{escape_unprintable(odd)[:40]}', which is no column name; if it is "
            f"not a header, name the {len(names)} columns: --fields a,b,..."
        )
    return sample


def _not_a_name(names: Sequence[str]) -> str | None:
    """The first cell of a header that looks like data: a number or a sentence, or all are empty.

    Single columns may have no name, such as the index that pandas writes.
    """
    for name in [name for name in names if name.strip()] or names[:1]:
        number = name.strip().lstrip("+-").replace(".", "", 1).isdecimal()
        if not name.strip() or number or len(name) > MAX_NAME or len(name.split()) > 6:
            return name
    return None
