"""Records (dicts) out of JSON lines, JSON, TSV, Parquet, Hugging Face `datasets` and TFDS, streamed.

What is held in memory is one line, one row group or, for JSON, one file. Anything malformed is a UserError that names
the file and the line.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bertjax.config.schema.sources import HuggingFaceData, Json, JsonLines, Parquet, TfdsData, Tsv
from bertjax.data.sources import hub
from bertjax.data.sources.record_files import (
    LocatedRecords,
    json_lines,
    json_list,
    parquet_rows,
    tsv_rows,
)
from bertjax.errors import UserError
from bertjax.storage.files import expand_globs

__all__ = ["Records", "read_located", "read_records", "stream_records"]

Records = JsonLines | Json | Tsv | Parquet | HuggingFaceData | TfdsData
KINDS_TEXT = "jsonl, json, tsv, parquet, huggingface or tfds"


def read_records(source: Any, base: Path) -> Iterator[dict[str, Any]]:
    """The records of a source of one of `KINDS_TEXT` in order, with bytes decoded to str."""
    return (record for _, record in read_located(source, base))


def read_located(source: Any, base: Path) -> LocatedRecords:
    """(where it is, record) of `read_records`. Raises UserError for sources without fields."""
    if not isinstance(source, Records):
        raise UserError(f"source of kind '{source.kind}': has no fields; use {KINDS_TEXT}")
    return stream_records(source, base, None)


def stream_records(source: Records, base: Path, field: str | None) -> LocatedRecords:
    """(where, record); with `field` a columnar file may leave the other columns unread."""
    if isinstance(source, HuggingFaceData):
        return hub.huggingface_records(source, base)
    if isinstance(source, TfdsData):
        return hub.tfds_records(source, base)
    read: Callable[[Path], LocatedRecords]
    if isinstance(source, Parquet):
        read = partial(parquet_rows, field=field)
    elif isinstance(source, Tsv):
        read = partial(tsv_rows, fields=source.fields, skip_lines=source.skip_lines)
    elif isinstance(source, JsonLines | Json):
        read = json_lines if isinstance(source, JsonLines) else json_list
    else:
        raise TypeError(f"source kind '{source.kind}' has no case in data/sources/records.py: stream")
    return (found for path in expand_globs(source.files, base) for found in read(path))
