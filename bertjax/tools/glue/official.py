"""Read the files that gluebenchmark.com publishes, as (where, record) with the fields of the Hub's data set.

The files are tables with tabs in which quotes are ordinary characters. Some differ: CoLA's have no header, MRPC comes
as Microsoft published it with a list of the pairs that are for development, and some lines of QQP lack columns.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bertjax.data.sources.official_files import COLUMNS
from bertjax.data.sources.record_files import LocatedRecords
from bertjax.errors import UserError, escape_unprintable
from bertjax.storage.files import read_lines
from bertjax.tools.glue.tasks import AX, GlueTask

COLA_COLUMNS = ["source", "label", "mark", "sentence"]
FILE_NAMES = {
    "train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv", "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv", "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}  # fmt: skip
AX_FILES = ("diagnostic-full.tsv", "diagnostic.tsv", "AX.tsv", "test.tsv")  # the first one has labels
MRPC_FILES = {"train": "msr_paraphrase_train.txt", "validation": "msr_paraphrase_train.txt"}
MRPC_FILES |= {"test": "msr_paraphrase_test.txt"}
MRPC_DEV_IDS = "dev_ids.tsv"
NO_GOLD = "-"  # a label of MNLI on which its annotators did not agree
LeftOut = Counter[str]  # reason -> records that are left out


def find_split(task: GlueTask, folder: Path, split: str) -> list[Path]:
    """The files of a split in a task's official folder; [] if they are not there. MRPC may need two.

    Raises UserError for MRPC's original file without the list of pairs for development.
    """
    if (found := folder / FILE_NAMES.get(split, "")).is_file():
        return [found]
    if task.name != "mrpc" or not (found := folder / MRPC_FILES[split]).is_file():
        return []
    if split == "test":
        return [found]
    if not (ids := folder / MRPC_DEV_IDS).is_file():
        raise UserError(
            f"{found}: {MRPC_DEV_IDS} is missing, the list of pairs for development (GLUE's download script fetches "
            "it); add it, or give train.tsv and dev.tsv instead"
        )
    return [found, ids]


def read_split(task: GlueTask, split: str, files: Sequence[Path], left_out: LeftOut) -> LocatedRecords:
    """(where, {texts, label, index}) of a split; tests have no label, and the label of AX may be missing.

    Labels are names of classes, of regressions numbers. Raises UserError with file and line for what cannot be read.
    """
    kind = split if split == AX else task.name
    labelled = not split.startswith("test")
    rows = _read_table(files[0], kind, left_out)
    if len(files) > 1:
        pairs = {tuple(line.split("\t")[:2]) for _, line in read_lines(files[1])}
        rows = _choose_pairs(rows, pairs, split == "validation", files[1])
    for position, (where, row) in enumerate(rows):
        record: dict[str, Any] = {name: _cell(row, kind, name, where) for name in task.texts}
        if labelled and (split != AX or _column(row, kind, "label") is not None):
            label = parse_label(task, _cell(row, kind, "label", where), where)
            if label is None:
                left_out["without a gold label"] += 1
                continue
            record["label"] = label
        yield where, record | {"index": _index(row, position, where) if not labelled or split == AX else position}


def _read_table(path: Path, kind: str, left_out: LeftOut) -> Iterator[tuple[str, dict[str, str]]]:
    lines: Iterator[tuple[int, list[str]]]
    lines = ((number, line.split("\t")) for number, line in read_lines(path) if line.strip())
    first, names = next(lines, (0, []))
    if kind == "cola" and "sentence" not in names:  # the header of the test file has it
        lines, names = chain([(first, names)], lines), COLA_COLUMNS
    for number, cells in lines:
        if len(cells) < len(names) and kind == "qqp":  # run_classifier.py and transformers pass over them
            left_out[f"lines with fewer than {len(names)} columns"] += 1
            continue
        if len(cells) != len(names):
            raise UserError(
                f"{path}: line {number}: {len(cells)} columns, not {len(names)} as in line {first}; correct the line"
            )
        yield f"{path}: line {number}", dict(zip(names, cells, strict=True))


def _column(row: dict[str, str], kind: str, name: str) -> str | None:
    """The published name of a column."""
    return next((one for one in (*COLUMNS.get(f"glue_{kind}", {}).get(name, ()), name) if one in row), None)


def _cell(row: dict[str, str], kind: str, name: str, where: str) -> str:
    if (column := _column(row, kind, name)) is None:
        wanted = " or ".join((*COLUMNS.get(f"glue_{kind}", {}).get(name, ()), name))
        there = escape_unprintable(", ".join(row)[:120])
        raise UserError(f"{where}: no column {wanted}; the first line of the file names: {there}")
    return row[column]


def _index(row: dict[str, str], position: int, where: str) -> int:
    """The number that the server knows an example of a test by."""
    text = next((row[name].strip() for name in ("index", "id") if name in row), str(position))
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{where}: index is {ascii(text[:40])}; it must be a number")
    return int(text)


def _choose_pairs(
    rows: Iterator[tuple[str, dict[str, str]]], pairs: set[tuple[str, ...]], inside: bool, ids: Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows whose pair of ids is in the list, or those whose is not; as GLUE's download script divides MRPC."""
    missing = set(pairs)
    for where, row in rows:
        pair = (_cell(row, "mrpc", "#1 ID", where), _cell(row, "mrpc", "#2 ID", where))
        missing.discard(pair)
        if (pair in pairs) == inside:
            yield where, row
    if missing:
        shown = escape_unprintable(" ".join(min(missing)))[:60]
        raise UserError(f"{ids}: {len(missing):,} pairs are not in the data, such as {shown}")


def parse_label(task: GlueTask, value: Any, where: str) -> str | float | None:
    """The name of a class, by name or id; the number of a regression, 0 to 5; None for a pair without a gold label."""
    text = str(value).strip()
    if not task.labels:
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 5:
            raise UserError(f"{where}: the score is {ascii(text[:40])}; it must be a number from 0 to 5")
        return number
    if text.lower() in task.labels:
        return text.lower()
    if text.isascii() and text.isdecimal() and int(text) < len(task.labels):
        return task.labels[int(text)]
    if text == NO_GOLD and task.name == "mnli":
        return None
    known = ", ".join(f"{number}={name}" for number, name in enumerate(task.labels))
    raise UserError(f"{where}: the label is {ascii(text[:40])}; the labels of {task.title} are {known}")
