"""Records (dicts) out of JSON lines, JSON, TSV, Parquet, Hugging Face `datasets` and TFDS, streamed.

What is held in memory is one line, one row group or, for JSON, one file. Anything malformed is a UserError that names
the file and the line.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bertjax.config.data_schema import HuggingFaceData, Json, JsonLines, Parquet, TfdsData, Tsv
from bertjax.data import hub, remote
from bertjax.data.files import expand, read_lines, read_text
from bertjax.errors import UserError

Records = JsonLines | Json | Tsv | Parquet | HuggingFaceData | TfdsData
KINDS = "jsonl, json, tsv, parquet, huggingface or tfds"
Located = Iterator[tuple[str, dict[str, Any]]]


def read_records(source: Any, base: Path) -> Iterator[dict[str, Any]]:
    """The records of a source of one of `KINDS` in order, with bytes decoded to str."""
    return (record for _, record in read_located(source, base))


def read_located(source: Any, base: Path) -> Located:
    """(where it stands, record) of `read_records`. Raises UserError for sources without fields."""
    if not isinstance(source, Records):
        raise UserError(f"source of kind '{source.kind}': has no fields; use {KINDS}")
    return stream(source, base, None)


def stream(source: Records, base: Path, field: str | None) -> Located:
    """(where, record); with `field` a columnar file may leave the other columns unread."""
    if isinstance(source, HuggingFaceData):
        return hub.huggingface_records(source, base)
    if isinstance(source, TfdsData):
        return hub.tfds_records(source, base)
    read: Callable[[Path], Located]
    if isinstance(source, Parquet):
        read = partial(_parquet_rows, field=field)
    elif isinstance(source, Tsv):
        read = partial(_tsv_rows, source=source)
    else:
        read = _json_lines if isinstance(source, JsonLines) else _json_list
    return (found for path in expand(source.files, base) for found in read(path))


def _json_lines(path: Path) -> Located:
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


def _json_list(path: Path) -> Located:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        hint = "for one object a line use kind: jsonl" if error.msg == "Extra data" else "mend it or write it again"
        raise UserError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}); {hint}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON (a number too long, or nested too deeply); write it again") from None
    if not isinstance(content, list):
        hint = "; for a SQuAD file use kind: squad" if isinstance(content, dict) and "data" in content else ""
        raise UserError(f"{path}: is a JSON {type(content).__name__}; a list of objects is needed{hint}")
    for number, record in enumerate(content, 1):
        if not isinstance(record, dict):
            raise UserError(f"{path}: item {number}: is a JSON {type(record).__name__}, not an object; mend it")
        yield f"{path}: item {number}", record


def _tsv_rows(path: Path, source: Tsv) -> Located:
    """Cells as text; nothing is a quote. Lines without any text are passed over."""
    names = source.fields
    for number, line in read_lines(path):
        if number <= source.skip_lines or not line.strip():
            continue
        cells, where = line.split("\t"), f"{path}: line {number}"
        if names is None:
            names = cells
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(f"{where}: two columns are called '{twice[0]}'; name all of them with 'fields'")
        elif len(cells) != len(names):
            shown = ", ".join(names)[:100]
            raise UserError(f"{where}: {len(cells)} columns, not the {len(names)} named ({shown}); mend the line")
        else:
            yield where, dict(zip(names, cells, strict=True))


def _json_error(error: ValueError) -> str:
    return f"not valid JSON ({str(error)[:100]})"


def _parquet_rows(path: Path, field: str | None) -> Located:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with remote.reaching(path), path.open("rb") as opened, pq.ParquetFile(opened) as file:
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
