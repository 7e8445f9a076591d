"""Records (dicts) out of JSON lines, Parquet, Hugging Face `datasets` and TFDS, streamed.

What is held in memory is one line or one row group. Anything malformed is a UserError that names the file and the line.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bertjax.config.data_schema import HuggingFaceData, JsonLines, Parquet, TfdsData
from bertjax.data import hub
from bertjax.data.files import expand, read_lines
from bertjax.errors import UserError

Records = JsonLines | Parquet | HuggingFaceData | TfdsData


def read_records(source: Any, base: Path) -> Iterator[dict[str, Any]]:
    """The records of a jsonl, parquet, huggingface or tfds source in order, with bytes decoded to str."""
    if not isinstance(source, Records):
        raise UserError(f"source of kind '{source.kind}': has no fields; use jsonl, parquet, huggingface or tfds")
    return (record for _, record in stream(source, base, None))


def stream(source: Records, base: Path, field: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
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
                raise UserError(missing(str(path), field, names))
            row = 0
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(1024, row_groups=[group], columns=None if field is None else [field]):
                    for record in batch.to_pylist():
                        row += 1
                        yield f"{path}: row {row}", hub.to_python(record, f"{path}: row {row}")
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a readable parquet file ({reason}); copy or write it again") from None


def missing(where: str, field: str, names: list[str]) -> str:
    shown = ", ".join(names[:12])[:120] + (", ..." if len(names) > 12 else "")
    return f"{where}: no field '{field}'; the fields are: {shown or '(none)'}; set text_field to one of them"
