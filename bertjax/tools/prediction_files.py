"""Read the texts of `bertjax predict` from files and write predictions, in chunks, so that files may be large."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bertjax.data.sources.record_files import LocatedRecords, read_by_suffix
from bertjax.errors import StorageError, UserError, escape_unprintable
from bertjax.storage.atomic import replace_file

CHUNK = 4096  # records predicted and written at once
INPUT_SUFFIXES = ".txt, .csv, .tsv, .json, .jsonl or .parquet"
Record = dict[str, Any]


def read_records(
    path: Path, fields: Sequence[str], hint: str = "", located: LocatedRecords | None = None, identified: bool = False,
    filled: bool = False,
) -> Iterator[Record]:  # fmt: skip
    """The records of a file, each with a text in all `fields`; a .txt file has one text a line, the first field.

    `located`: the records where the file is not read by its suffix. `identified`: each needs an `id` of its own.
    `filled`: no text may be empty. Raises UserError, at once for a file that cannot be read or is empty, later for a
    line with a field that is missing or no text; `hint` says how to name another field.
    """
    located = read_by_suffix(path) if located is None else located
    if located is None:
        raise UserError(f"{path}: unknown kind of file; the name must end with {INPUT_SUFFIXES}")
    is_lines = Path(path.name.removesuffix(".gz").removesuffix(".xz").removesuffix(".bz2")).suffix == ".txt"
    if is_lines and len(fields) > 1:
        needed = " and ".join(f"'{field}'" for field in fields)
        raise UserError(f"{path}: a line has one text, {needed} are needed; give a .csv, .tsv or .jsonl file")
    first = next(located, None)
    if first is None:
        raise UserError(f"{path}: contains no text")

    def records() -> Iterator[Record]:
        seen: set[str] = set()
        for where, record in chain([first], located):
            record = {fields[0]: record["text"]} if is_lines else record
            for field in fields:
                if not isinstance(record.get(field), str):
                    raise UserError(_field_error(where, field, record, hint))
                if filled and not record[field].strip():
                    raise UserError(f"{where}: the {field} is empty; give a {field} of at least one word")
            if identified:
                _check_id(where, record, seen)
            yield record

    return records()


def _field_error(where: str, field: str, record: Record, hint: str) -> str:
    if field in record:
        return f"{where}: '{field}' is a {type(record[field]).__name__}, not a text; correct the record"
    names = escape_unprintable(", ".join(map(str, record))[:120])
    return f"{where}: no field '{field}'; the fields are: {names}{hint}"


def _check_id(where: str, record: Record, seen: set[str]) -> None:
    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        problem = f"'id' is {json.dumps(name, default=str)[:40]}" if "id" in record else "no field 'id'"
        raise UserError(f"{where}: {problem}, but a .json file of answers needs ids; write a .jsonl file instead")
    if str(name) in seen:
        raise UserError(f"{where}: id '{escape_unprintable(str(name)[:60])}' is there twice; remove one of the two")
    seen.add(str(name))


def predict_chunks(
    records: Iterable[Record], predict: Callable[[list[Record]], Sequence[Any]], file: Path | None = None
) -> Iterator[Any]:
    """The predictions for all records in order; only one chunk of them is in memory. Errors name the `file`."""
    first = 1
    for chunk in chunks(records):
        try:
            found = predict(chunk)
        except UserError as error:
            if file is None or str(error).startswith(str(file)):
                raise
            place = f"record {first}" if len(chunk) == 1 else f"records {first:,} to {first + len(chunk) - 1:,}"
            raise UserError(f"{file}: {place}: {error}") from None
        yield from found
        first += len(chunk)


def chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    records = iter(records)
    while chunk := list(islice(records, CHUNK)):
        yield chunk


def write_predictions(path: Path, predictions: Iterable[Record]) -> int:
    """Write a .jsonl, .csv, .tsv or .json file -> the number of predictions. The file appears when it is complete.

    Values of .csv and .tsv files that are lists or objects are JSON. A .json file is one object {key: value} of all.
    """
    write = {".jsonl": _write_json_lines, ".json": _write_object}.get(path.suffix, _write_table)
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(replace_file(path))
            file = stack.enter_context(partial.open("w", encoding="utf-8", newline=""))
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
        return write(path, file, predictions)


def _write_json_lines(path: Path, file: TextIO, predictions: Iterable[Record]) -> int:
    count = 0
    for one in predictions:
        file.write(json.dumps(one, ensure_ascii=False) + "\n")
        count += 1
    return count


def _write_object(path: Path, file: TextIO, predictions: Iterable[Record]) -> int:
    count = 0
    for key, value in (item for one in predictions for item in one.items()):
        file.write(("{" if count == 0 else ",") + f"\n  {json.dumps(key, ensure_ascii=False)}: ")
        file.write(json.dumps(value, ensure_ascii=False))
        count += 1
    file.write("\n}\n" if count else "{}\n")
    return count


def _write_table(path: Path, file: TextIO, predictions: Iterable[Record]) -> int:
    writer: Any = None
    names: list[str] = []
    number = 0
    for number, one in enumerate(predictions, 1):
        if writer is None:
            names = list(one)
            writer = csv.writer(file, lineterminator="\n")
            if path.suffix == ".tsv":  # nothing is a quote, as such files are read
                writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
            _write_row(writer, names, path, "the header")
        if len(one) > len(names) or one.keys() - set(names):
            new = min(one.keys() - set(names))
            raise UserError(f"record {number} has a field '{new}' that the first has not; write a .jsonl file instead")
        _write_row(writer, [_cell(one.get(name)) for name in names], path, f"record {number}")
    return number


def _write_row(writer: Any, cells: list[Any], path: Path, what: str) -> None:
    broken = path.suffix == ".tsv" and any(isinstance(cell, str) and set(cell) & set("\t\r\n") for cell in cells)
    if broken:
        raise UserError(f"{path}: {what} has a tab or a line end in a field; write a .csv or .jsonl file instead")
    writer.writerow(cells)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def write_vectors(path: Path, vectors: Iterable[np.ndarray]) -> int:
    """Write vectors, float32 [D], as one .npy array [N, D] -> N. The file appears when it is complete."""
    found = np.stack([*vectors])
    try:
        with replace_file(path) as partial, partial.open("wb") as file:
            np.save(file, found)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    return len(found)


def rounded(value: Any, digits: int = 4) -> Any:
    """The value with all floating-point numbers in it rounded, for printing."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list) else value
