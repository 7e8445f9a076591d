"""Reads JSON Lines, JSON, TSV, CSV, Parquet and plain lines as streams of (where, record).

`where` names the file and the line or record. Cells of TSV and CSV stay texts. Malformed input raises UserError.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bertjax.data.sources.json_items import ESCAPED_SURROGATE, PIECE, JsonItems
from bertjax.errors import UserError, brief, escape_unprintable
from bertjax.storage import remote
from bertjax.storage.files import MAX_LINE, content_suffix, read_lines, read_pieces

LocatedRecords = Iterator[tuple[str, dict[str, Any]]]

_MAX_CELL = MAX_LINE  # characters; also what an opening quote without an end may take
_SURROGATE = re.compile("[\ud800-\udfff]")


def to_python(value: Any, where: str) -> Any:
    """Bytes as str and numpy values as Python's, at any depth; UserError where bytes are not UTF-8 text."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{where}: holds bytes that are not UTF-8 text; choose a split or file with text") from None
    if isinstance(value, dict):
        return {key: to_python(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_python(item, where) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return to_python(value.tolist(), where)
    return value


def check_characters(record: Any, where: str) -> None:
    """Raise UserError naming the field with half a surrogate pair, which JSON can spell but text cannot hold."""
    try:
        field = _surrogate(record)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply; correct the record") from None
    if field is not None:
        raise UserError(
            f"{where}: '{escape_unprintable(field)[:60]}' holds a lone surrogate, not a character; correct or remove it"
        )


def _surrogate(value: Any) -> str | None:
    """The path (a/b/0) of the first text or key with a lone surrogate."""
    if isinstance(value, str):
        return "" if _SURROGATE.search(value) else None
    if isinstance(value, dict):
        items = list(value.items())
        if bad := next((key for key, _ in items if isinstance(key, str) and _SURROGATE.search(key)), None):
            return bad
    else:
        items = list(enumerate(value)) if isinstance(value, list | tuple) else []
    for key, item in items:
        if (inner := _surrogate(item)) is not None:
            return f"{key}/{inner}".rstrip("/")
    return None


def json_lines(path: Path) -> LocatedRecords:
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "; the file looks like one JSON array: write one object a line" if line[0] == "[" else ""
            reason = f"not valid JSON ({str(error)[:100]})" if isinstance(error, ValueError) else "nested too deeply"
            raise UserError(f"{where}: {reason}{hint or '; write one JSON object a line'}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: is a JSON {type(record).__name__}, not an object; write one JSON object a line")
        if ESCAPED_SURROGATE.search(line):
            check_characters(record, where)
        yield where, record


def json_list(path: Path) -> LocatedRecords:
    """The objects of one JSON list, read item by item: memory holds some of them and not the file."""
    pieces = read_pieces(path, PIECE)
    items = JsonItems(path, next(pieces, ""), pieces)
    if items.peek() != "[":
        _raise_no_list(path, items)
    for number, (record, escaped) in enumerate(items, 1):
        where = f"{path}: item {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where}: is a JSON {type(record).__name__}, not an object; correct or remove it")
        if escaped:
            check_characters(record, where)
        yield where, record


def _raise_no_list(path: Path, items: JsonItems) -> NoReturn:
    content = items.decode_all()
    hint = "; for a SQuAD file use kind: squad" if isinstance(content, dict) and "data" in content else ""
    raise UserError(f"{path}: is a JSON {type(content).__name__}; a list of objects is needed{hint}")


def json_auto(path: Path) -> LocatedRecords:
    """A list of objects or one object a line, by the first character."""
    first = next((line.lstrip()[0] for _, line in read_lines(path) if line.strip()), "")
    return json_list(path) if first == "[" else json_lines(path)


def tsv_rows(path: Path, fields: Sequence[str] | None = None, skip_lines: int = 0) -> LocatedRecords:
    """A line is a record and nothing is a quote, as in the GLUE files. Lines without any text are passed over."""
    rows = ((number, line.split("\t")) for number, line in read_lines(path) if number > skip_lines and line.strip())
    return _named(path, rows, fields)


def find_delimiter(path: Path) -> str:
    """The most common of `,`, `;`, tab and `|` in the first line of a CSV file."""
    header = next((line for _, line in read_lines(path)), "")
    return max(",;\t|", key=header.count)


def csv_rows(
    path: Path, fields: Sequence[str] | None = None, skip_lines: int = 0, delimiter: str = ","
) -> LocatedRecords:
    """RFC 4180: a cell in double quotes may hold commas, line ends and doubled quotes. The first line has the names."""
    csv.field_size_limit(_MAX_CELL)
    lines = (f"{line}\n" for number, line in read_lines(path) if number > skip_lines)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)

    def rows() -> Iterator[tuple[int, list[str]]]:
        while True:
            number = skip_lines + reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise UserError(f"{path}: line {number}: not valid CSV ({error}); correct its quotes") from None
            if row is None:
                return
            if any(cell.strip() for cell in row):
                yield number, row

    return _named(path, rows(), fields)


def _named(path: Path, rows: Iterator[tuple[int, list[str]]], names: Sequence[str] | None) -> LocatedRecords:
    for number, cells in rows:
        where = f"{path}: line {number}"
        if names is None:
            names = cells
            named = [name for name in names if name.strip()]  # pandas' index and Excel's empty columns have no name
            if len(set(named)) < len(named):
                name = escape_unprintable(next(name for name, count in Counter(named).items() if count > 1))[:60]
                raise UserError(f"{where}: two columns are called '{name}'; rename one of them in that line")
        elif len(cells) != len(names):
            shown = escape_unprintable(", ".join(names)[:100])
            raise UserError(f"{where}: {len(cells)} columns, not the {len(names)} named ({shown}); correct the line")
        else:
            yield where, dict(zip(names, cells, strict=True))


def text_lines(path: Path) -> LocatedRecords:
    return ((f"{path}: line {number}", {"text": line}) for number, line in read_lines(path))


def parquet_rows(path: Path, field: str | None = None) -> LocatedRecords:
    """With `field` the other columns are left unread."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with remote.remote_errors(path), path.open("rb") as opened, pq.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            if field is not None and field not in names:
                raise UserError(missing_field_error(str(path), field, names))
            row = 0
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(1024, row_groups=[group], columns=None if field is None else [field]):
                    for record in batch.to_pylist():
                        row += 1
                        yield f"{path}: row {row}", to_python(record, f"{path}: row {row}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable parquet file ({brief(error)}); copy or write it again") from None


def parquet_length(path: Path) -> int:
    """Rows, from the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with remote.remote_errors(path), path.open("rb") as opened:
            return int(pq.read_metadata(opened).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({brief(error)}); copy or write it again") from None


def parquet_label_names(path: Path, field: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel, or a list of them, by id: `datasets` writes the features of a file into its schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with remote.remote_errors(path), path.open("rb") as opened:
            about = (pq.read_schema(opened).metadata or {}).get(b"huggingface")
        feature = json.loads(about)["info"]["features"][field] if about else {}
        names = feature.get("names") or feature.get("feature", {}).get("names")  # the second of a list of labels
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # damage is reported when the records are read
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def missing_field_error(where: str, field: str, names: list[str]) -> str:
    shown = escape_unprintable(", ".join(names[:12])[:120] + (", ..." if len(names) > 12 else ""))
    return f"{where}: no field '{field}'; the fields are: {shown or '(none)'}; set text_field to one of them"


# what `datasets` would read by its builder of that name
READERS_BY_BUILDER = {"csv": csv_rows, "json": json_auto, "parquet": parquet_rows, "text": text_lines}


def read_by_suffix(path: Path) -> LocatedRecords | None:
    """The records of a file by the end of its name, None for an unknown one."""
    suffix = content_suffix(path)
    readers = {
        ".json": json_auto, ".jsonl": json_lines, ".tsv": tsv_rows, ".parquet": parquet_rows, ".txt": text_lines,
        ".csv": lambda path: csv_rows(path, delimiter=find_delimiter(path)),
    }  # fmt: skip
    return readers[suffix](path) if suffix in readers else None  # type: ignore[operator]
