"""A survey of the labels in a classification task: one pass over its records, with errors for unusable ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from bertjax.config.schema.data import Classify
from bertjax.data.sources.class_names import UNLABELED, find_class_id, format_names, parse_number
from bertjax.data.sources.record_values import describe_value
from bertjax.errors import UserError, escape_unprintable

LabelKey = str | int | None  # a label without surrounding space; None: hidden
LocatedRecord = tuple[str, dict[str, Any]]
LABELS_OF_COLUMNS = " labels"  # a field that no text is in


@dataclass
class LabelSurvey:
    """The labels in field `name`."""

    name: str
    given: tuple[str, ...] | None = None  # the names of the source's ids
    given_by: str | None = None  # where these come from: labels, source
    occurrences: dict[LabelKey, list[Any]] = field(default_factory=dict)  # {label: [how often, where first]}
    fraction: tuple[float, str] | None = None  # the first label with one, and where
    has_bools: bool = False
    records: int = 0
    complete: bool = True  # whether these are all records; the first ones may lack some of the labels
    several: bool = False  # whether a text has a list of labels
    assigned: int = 0  # labels in these lists, together
    without: int = 0  # records with an empty list
    empty_texts: int = 0  # records without any text

    def add_all(self, labels: Sequence[Any] | None, where: str) -> None:
        """Adds the labels of one record; None: they are hidden."""
        self.records += 1
        if labels is None:
            self.occurrences.setdefault(None, [0, where])[0] += 1
            return
        self.without += not labels
        self.assigned += len(labels)
        for label in labels:
            self._count(label, where)

    def add(self, label: Any, where: str) -> None:
        self.records += 1
        self._count(label, where)

    def _count(self, label: Any, where: str) -> None:
        if isinstance(label, float | np.floating):
            if not isfinite(label):
                raise UserError(f"{where}: '{self.name}' is {label}; give a number, or leave the record out")
            if label != int(label):
                self.fraction = self.fraction or (float(label), where)
                return
        self.has_bools |= isinstance(label, bool | np.bool_)
        entry = self.occurrences.setdefault(label_key(label), [0, where])
        entry[0] += 1

    @property
    def texts(self) -> list[str]:
        return [key for key in self.occurrences if isinstance(key, str)]

    @property
    def numbers(self) -> list[int]:
        return [key for key in self.occurrences if isinstance(key, int)]

    def where(self, key: LabelKey) -> str:
        return str(self.occurrences[key][1])


def label_key(label: Any) -> LabelKey:
    if isinstance(label, str):
        return label.strip() or None
    if isinstance(label, bool | np.bool_):
        return str(bool(label))
    if label is None:
        return None
    return int(label) if label == int(label) else label


def with_label_names(located: Iterable[LocatedRecord], given: Sequence[str], field: str) -> Iterator[LocatedRecord]:
    """Replaces each record's label, or those in a list, by names: one of `given` by id, or None where it is hidden."""
    known: dict[LabelKey, int | None] = {}

    def name_of(where: str, label: Any, *, hidden: bool = True) -> str | None:
        key = label_key(label)
        number = known[key] if key in known else known.setdefault(key, find_class_id(key, given))
        if number is None or (number == UNLABELED and not hidden):
            raise UserError(f"{where}: label '{str(label)[:60]}' is not one of those: {format_names(given)}")
        return None if number == UNLABELED else given[number]

    for where, record in located:
        label = record.get(field)
        if field in record and is_label(label):
            yield where, {**record, field: name_of(where, label)}
        elif isinstance(label, list | tuple) and all(is_label(one) and one is not None for one in label):
            yield where, {**record, field: [name_of(where, one, hidden=False) for one in label]}
        else:
            yield where, record  # reported by `survey_labels`


def is_label(value: Any) -> bool:
    return isinstance(value, str | int | float | np.number | None)


def label_field(options: Classify) -> str:
    """The field of the label, or of the list of labels that `with_label_lists` makes."""
    return LABELS_OF_COLUMNS if options.label_columns else options.label


def holds_several(options: Classify, first: Mapping[str, Any] | None) -> bool:
    """Whether a text may have several labels, by the options and the first record."""
    if options.label_columns or options.label_delimiter:
        return True
    return first is not None and isinstance(first.get(options.label), list | tuple)


def with_label_lists(located: Iterable[LocatedRecord], options: Classify) -> Iterator[LocatedRecord]:
    """Records with a list of labels in `label_field`, or None where they are hidden. Raises UserError.

    An empty list, or an empty text between delimiters, means no label. Columns of nothing but -1 or null are hidden.
    """
    for where, record in located:
        if options.label_columns:
            yield where, {**record, LABELS_OF_COLUMNS: _labels_of_columns(where, record, options.label_columns)}
            continue
        if options.label not in record:
            yield where, record  # reported by `survey_labels`
            continue
        value = record[options.label]
        if options.label_delimiter is not None and isinstance(value, str):
            value = [part.strip() for part in value.split(options.label_delimiter) if part.strip()]
        elif value is not None and not isinstance(value, list | tuple):
            wanted = "a list of labels is needed"
            if options.label_delimiter is not None:
                wanted = f"a text with labels between '{options.label_delimiter}' is needed"
            elif isinstance(value, str):
                wanted += ", or preprocess.label_delimiter to divide the text"
            raise UserError(f"{where}: '{options.label}' is {_shown(value)}; {wanted}")
        for one in value or ():
            if not isinstance(one, str | int | float | np.number) or isinstance(one, bool) or label_key(one) is None:
                raise UserError(
                    f"{where}: '{options.label}' holds {_shown(one)}, which is no label; correct the record"
                )
            if isinstance(one, float) and (not isfinite(one) or one != int(one)):
                raise UserError(f"{where}: '{options.label}' holds {one}, which is no label; correct the record")
        if (twice := _repeated_id(value or ())) is not None:
            raise UserError(
                f"{where}: '{options.label}' holds {twice} twice; a list names the labels that the text has, each "
                "once, and is no vector of 0 and 1: write their names or ids, or a column of 0 and 1 for each label"
            )
        yield where, {**record, options.label: None if value is None else list(value)}


def _repeated_id(labels: Sequence[Any]) -> LabelKey:
    """The first number that is in a list more than once, as in `[0, 1, 0, 0]`, a 0 or 1 for each label."""
    ids = [label_key(label) for label in labels]
    return next((key for key in ids if isinstance(key, int) and ids.count(key) > 1), None)


def _labels_of_columns(where: str, record: Mapping[str, Any], columns: Sequence[str]) -> list[str] | None:
    if missing := [name for name in columns if name not in record]:
        there = ", ".join(record)[:120]
        raise UserError(f"{where}: label column '{missing[0]}' is missing; it has: {there}; name the right columns")
    values = {name: indicator(record[name]) for name in columns}
    if all(value is None for value in values.values()):
        return None
    for name, value in values.items():
        if value not in (0, 1):
            raise UserError(f"{where}: label column '{name}' is {_shown(record[name])}, not 0 or 1; correct the record")
    return [name for name, value in values.items() if value]


def indicator(value: Any) -> float | None:
    """0 or 1; None for a value that is hidden (-1, null or empty), another number for all others."""
    if isinstance(value, str):
        words = {"": -1, "false": 0, "true": 1}
        number = parse_number(value.strip())
        value = words.get(value.strip().casefold(), 2) if number is None else number
    if value is None or not isinstance(value, int | float | np.number | np.bool_):
        return None if value is None else 2
    return None if value == -1 else float(value)


def _shown(value: Any) -> str:
    return f"'{escape_unprintable(value)[:60]}'" if isinstance(value, str) else describe_value(value)


def survey_labels(
    located: Iterable[LocatedRecord], options: Classify, given: Sequence[str] | None, given_by: str | None,
    *, several: bool = False,
) -> LabelSurvey:  # fmt: skip
    """One pass over the records; raises UserError for the first that lacks a text or a label.

    several: the labels are lists, as `with_label_lists` makes them.
    """
    field = label_field(options)
    found = LabelSurvey("label_columns" if options.label_columns else field, tuple(given) if given else None, given_by)
    found.several = several
    texts = [name for name in (options.text_a, options.text_b) if name is not None]
    for where, record in located:
        bad = [name for name in texts if not isinstance(record.get(name), str)]
        if field not in record or not (is_label(record[field]) or several):
            bad.append(field)
        if bad and bad[0] in record:
            kind = "a text or a number" if bad[0] == field else "a text"
            hint = "correct the record"
            if bad[0] == field and isinstance(record[field], list | tuple):
                hint = (
                    "correct it, or for several labels per text set objective.problem_type=multi_label_classification"
                )
            raise UserError(f"{where}: '{bad[0]}' is not {kind} but {describe_value(record[bad[0]])}; {hint}")
        if bad:
            raise UserError(f"{where}: '{bad[0]}' is missing; it has: {', '.join(record)[:120]}; name the right field")
        found.empty_texts += all(not record[name].strip() for name in texts)
        if several:
            found.add_all(record[field], where)
        else:
            found.add(record[field], where)
    return found
