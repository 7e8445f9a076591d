"""Reads records (dicts) of any source that has them, and the kinds of record files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bertjax.data.sources import record_files
from bertjax.data.sources.record_files import LocatedRecords
from bertjax.data.sources.registry import SourceKind, hash_files, kinds_with, record_of, split_files, take_slice
from bertjax.errors import UserError
from bertjax.storage.files import expand_globs, read_lines


def read_records(source: Any, base: Path) -> Iterator[dict[str, Any]]:
    """The records of a source in order, with bytes decoded to str."""
    return (record for _, record in read_located(source, base))


def read_located(source: Any, base: Path) -> LocatedRecords:
    """(where it is, record) of `read_records`. Raises UserError for sources without fields."""
    return stream_records(source, base, None)


def stream_records(source: Any, base: Path, field: str | None) -> LocatedRecords:
    """`read_located`; with `field`, a columnar file may leave the other columns unread."""
    if (read := record_of(source).records) is None:
        raise UserError(f"source of kind '{source.kind}': has no fields; use {kinds_with('records')}")
    return read(source, base, field)


def _file_kind(read: Callable[[Any, Path, str | None], LocatedRecords], **facts: Any) -> SourceKind:
    """A kind whose files `read` (source, path, field) reads one by one."""

    def records(source: Any, base: Path, field: str | None) -> LocatedRecords:
        files = expand_globs(source.files, base)
        return take_slice((found for path in files for found in read(source, path, field)), source, base)

    facts = {"count": lambda source, path: sum(1 for _ in read(source, path, None))} | facts
    return SourceKind(content=hash_files, parts=split_files, records=records, **facts)


def _count_lines(source: Any, path: Path) -> int:
    return sum(1 for _, line in read_lines(path) if line and not line.isspace())


JSONL = _file_kind(lambda source, path, field: record_files.json_lines(path), count=_count_lines)
JSON = _file_kind(lambda source, path, field: record_files.json_list(path))
TSV = _file_kind(lambda source, path, field: record_files.tsv_rows(path, source.fields, source.skip_lines))
CSV = _file_kind(
    lambda source, path, field: record_files.csv_rows(path, source.fields, source.skip_lines, source.delimiter)
)
PARQUET = _file_kind(
    lambda source, path, field: record_files.parquet_rows(path, field),
    count=lambda source, path: record_files.parquet_length(path),
    label_names=lambda source, base, field: record_files.parquet_label_names(
        expand_globs(source.files, base)[0], field
    ),
)
