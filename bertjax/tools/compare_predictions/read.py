"""Reads predictions: official files, what `bertjax predict` writes, evaluation records and run folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.data.sources.record_files import check_characters, read_by_suffix
from bertjax.errors import UserError, escape_unprintable
from bertjax.evaluation.records import OTHER_DIR
from bertjax.storage.files import content_suffix, read_text

_TABLES = (".jsonl", ".csv", ".tsv")
LABEL_FIELD = "predicted_label"  # that `bertjax predict classify` writes


@dataclass(frozen=True)
class Answers:
    """Answers by the id of their question; "" for no answer."""

    path: Path
    texts: dict[str, str]


def is_labels(path: Path) -> bool:
    """Whether a file has predicted labels, as `bertjax predict classify` writes them.

    Raises UserError for its predictions of several labels and of numbers.
    """
    if not path.is_file() or content_suffix(path) not in _TABLES:
        return False
    located = read_by_suffix(path)
    first = next(located, None) if located is not None else None
    fields = {} if first is None else first[1]
    if other := [field for field in ("predicted_labels", "predicted_value") if field in fields]:
        raise UserError(f"{path}: '{other[0]}': only one label for each text can be compared, and answers")
    return LABEL_FIELD in fields


def read_answers(path: Path, name: str | None = None) -> Answers:
    """The answers of a file or folder.

    A file is {id: text} (.json), the record of an evaluation, or what `bertjax predict answer --output` wrote (.jsonl,
    .csv, .tsv). A run folder has those of its evaluations, of which `name` chooses one. Raises UserError.
    """
    if path.is_dir():
        path = _in_folder(path, name)
    if content_suffix(path) in _TABLES:
        return Answers(path, _from_table(path))
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: not JSON ({error.msg}); write the file again") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON (a number too long, or nested too deeply); write it again") from None
    if isinstance(content, dict) and isinstance(content.get("scores"), dict) and "step" in content:
        beside = path.with_name(f"{path.stem}.predictions.json")
        if not beside.is_file():
            raise UserError(f"{path}: is the record of an evaluation without predictions ({beside.name} is not there)")
        return read_answers(beside)
    return Answers(path, _from_object(path, content))


def _from_object(path: Path, content: Any) -> dict[str, str]:
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is needed, not {type(content).__name__}; write {{id: answer}}")
    for key, text in content.items():
        if not isinstance(text, str):
            kind = type(text).__name__
            hint = "this looks like an n-best file; name the file of predictions" if isinstance(text, list) else (
                "write {id: answer}"
            )  # fmt: skip
            raise UserError(f"{path}: '{escape_unprintable(key)[:60]}': a string is needed, not {kind}; {hint}")
    check_characters(content, str(path))
    return content


def _from_table(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    located = read_by_suffix(path)
    assert located is not None
    for where, record in located:
        for field in ("id", "answer"):
            if field not in record:
                names = escape_unprintable(", ".join(map(str, record))[:120])
                raise UserError(f"{where}: no field '{field}'; the fields are: {names}")
        key, text = str(record["id"]), record["answer"]
        if not isinstance(text, str | None):
            raise UserError(f"{where}: 'answer' is a {type(text).__name__}, not a text; correct the record")
        if key in found:
            raise UserError(f"{where}: id '{escape_unprintable(key)[:60]}' is there twice; remove one of the two")
        found[key] = text or ""
    return found


def _in_folder(folder: Path, name: str | None) -> Path:
    """The predictions of a run, of one of its evaluation folders, or of a folder that the HF Trainer wrote."""
    found = sorted(folder.glob("evaluations/*/*.predictions.json")) or sorted(
        [*folder.glob("*.predictions.json"), *folder.glob("*predictions.json")]
    )
    found = [path for path in dict.fromkeys(found) if path.parent.name != OTHER_DIR and "nbest" not in path.name]
    if name is not None:
        found = [path for path in found if path.name.removesuffix(".predictions.json") == name]
    if len(found) == 1:
        return found[0]
    if not found:
        of = f" of an evaluation '{name}'" if name else ""
        raise UserError(f"{folder}: no predictions{of} in this folder; name a file, or run bertjax evaluate first")
    listed = ", ".join(str(path.relative_to(folder)) for path in found[:6])
    raise UserError(f"{folder}: has several predictions ({listed}); name one of the files, or choose with --name")
