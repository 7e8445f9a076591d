"""Find labels of which a text may have several: a list, a text with a delimiter, or a column of 0 and 1 for each."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bertjax.config.schema.data import Classify
from bertjax.data.preprocess.label_survey import indicator, label_field, with_label_lists, with_label_names
from bertjax.data.sources.class_names import are_integers, names_from_source
from bertjax.data.sources.records import read_located
from bertjax.errors import UserError, escape_unprintable
from bertjax.tools.init import columns
from bertjax.tools.init.source import Data
from bertjax.tools.init.survey import MAX_LABELS

DELIMITERS = ("|", ";", ",")
Labelled = tuple[dict[str, Any], list[str], list[str] | None]  # a record, its texts, its labels (None: hidden)


def find_several(sample: columns.Records, label: str | None) -> dict[str, Any] | None:
    """Options of `preprocess` for several labels per text; None where a text has one. `label`: as the user gave it.

    `a,b,c` names columns; without a name, columns of nothing but 0 and 1 are the labels if no other column is.
    """
    if label is not None and "," in label and label not in columns.column_names(sample):
        found = [columns.find_column(sample, "--label", name.strip()) for name in label.split(",") if name.strip()]
        return {"label_columns": found}
    try:
        column = columns.choose_label(sample, label)
    except UserError:
        binary = _binary_columns(sample) if label is None else []
        if binary:
            return {"label_columns": binary}
        column = next((name for name in columns.column_names(sample) if _holds_lists(sample, name)), "")
        if label is not None or not column:
            return None
    if _holds_lists(sample, column):
        return {"label": column}
    values = [value for one in sample if isinstance(value := one.get(column), str)]
    if (shown := _written_list(values)) is not None:
        raise UserError(
            f"--label: column '{column}' holds lists that are written as texts ({shown}); write JSON lines with real "
            "lists, or the labels alone with | between them"
        )
    delimiter = find_delimiter(values)
    return None if delimiter is None else {"label": column, "label_delimiter": delimiter}


def find_delimiter(values: Sequence[str]) -> str | None:
    """What divides labels in texts: their parts must be fewer than the different texts, and some be alone.

    So `a, b`, `a` and `b` are combinations of two labels, while `Food, drink` and `Sport` are two names.
    """
    for delimiter in DELIMITERS:
        cells = {value.strip() for value in values if value.strip()}
        several = [cell for cell in cells if delimiter in cell]
        parts = {part.strip() for cell in cells for part in cell.split(delimiter)}
        if several and "" not in parts and len(parts) < len(cells) and parts & (cells - set(several)):
            return delimiter
    return None


def _binary_columns(sample: columns.Records) -> list[str]:
    """The columns of 0 and 1, if two or more have both. With them those of 0 alone: labels that are rare."""
    found: dict[str, set[float | None]] = {}
    for name in columns.column_names(sample):
        values = [one.get(name) for one in sample]
        if not any(isinstance(value, list | dict) for value in values):
            found[name] = {indicator(value) for value in values} - {None}
    if sum(values == {0, 1} for values in found.values()) < 2:
        return []
    return [name for name, values in found.items() if values in ({0, 1}, {0})]


def _written_list(values: Sequence[str]) -> str | None:
    """The first of values such as `['a', 'b']`, as pandas writes lists into CSV files; None for others."""
    cells = [cell for value in values if (cell := value.strip())]
    if not cells or not all(cell[0] == "[" and cell[-1] == "]" for cell in cells):
        return None
    return escape_unprintable(next((cell for cell in cells if len(cell) > 2), cells[0]))[:60]


def _holds_lists(sample: columns.Records, name: str) -> bool:
    values = [value for one in sample if (value := one.get(name)) is not None]
    return bool(values) and all(
        isinstance(value, list) and all(isinstance(one, str | int | float) for one in value) for value in values
    )


def sets_reader(
    data: Data, base: Path, texts: Sequence[str], options: dict[str, Any], skipped: list[str]
) -> tuple[Callable[[], Iterator[Labelled]], tuple[str, ...] | None]:
    """(a function that yields all records with a text, the names of the data set's ids).

    `skipped` gets the places of records whose text is null. Raises UserError, when read, for labels that are none.
    """
    section = Classify.model_validate({"kind": "classify", **options})
    names = None if section.label_columns else names_from_source(data.section, base, section.label)
    field = label_field(section)

    def read() -> Iterator[Labelled]:
        skipped.clear()
        located = with_label_lists(read_located(data.section, base), section)
        for where, record in with_label_names(located, names, field) if names else located:
            found = [record.get(name) for name in texts]
            if None in found:
                skipped.append(where)
                continue
            if bad := next((name for name, one in zip(texts, found, strict=True) if not isinstance(one, str)), None):
                raise UserError(f"{where}: '{bad}' is not a text; correct or remove the record")
            labels = record.get(field)
            own = {name: value for name, value in record.items() if name != field or not section.label_columns}
            yield own, found, None if labels is None else [str(one).strip() for one in labels]  # type: ignore[misc]

    return read, names


def survey_sets(read: Callable[[], Iterator[Labelled]]) -> tuple[Counter[str], int, int, list[int]]:
    """-> (texts of each label, texts without a label, texts whose labels are hidden, lengths of all texts)."""
    counts: Counter[str] = Counter()
    without = hidden = 0
    lengths: list[int] = []
    for _, texts, labels in read():
        lengths.append(sum(map(len, texts)))
        without += labels == []
        hidden += labels is None
        counts.update(dict.fromkeys(labels or (), 1))
        if len(counts) > MAX_LABELS:
            raise UserError(f"--label: there are more than {MAX_LABELS:,} labels; name the column of the labels")
    return counts, without, hidden, lengths


def order_labels(counts: Counter[str], names: Sequence[str] | None) -> tuple[int, list[str] | None]:
    """(number of labels, their names by id; None where they are ids). Raises UserError for fewer than two labels."""
    if names is not None:
        return len(names), list(names)
    if len(counts) < 2:
        raise UserError("--label: the texts have fewer than two labels; name the column of the labels")
    ids = sorted(map(int, counts)) if are_integers(list(counts)) else []
    if ids and ids[0] >= 0 and ids[-1] < 2 * len(ids):
        return ids[-1] + 1, None
    return len(counts), sorted(counts)
