"""A survey of the labels in a classification task: one pass over its records, with errors for unusable ones."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from bertjax.config.schema.data import Classify
from bertjax.data.sources.class_names import UNLABELED, find_class_id, format_names
from bertjax.data.sources.record_values import describe_value
from bertjax.errors import UserError

LabelKey = str | int | None  # a label without surrounding space; None: hidden
LocatedRecord = tuple[str, dict[str, Any]]


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

    def add(self, label: Any, where: str) -> None:
        self.records += 1
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
    """Replaces each record's label by its name, one of `given` by id, or by None where it is hidden."""
    known: dict[LabelKey, int | None] = {}
    for where, record in located:
        label = record.get(field)
        if field not in record or not isinstance(label, str | int | float | np.number | None):
            yield where, record  # reported by `survey_labels`
            continue
        key = label_key(label)
        number = known[key] if key in known else known.setdefault(key, find_class_id(key, given))
        if number is None:
            raise UserError(f"{where}: label '{str(label)[:60]}' is not one of those: {format_names(given)}")
        yield where, {**record, field: None if number == UNLABELED else given[number]}


def survey_labels(
    located: Iterable[LocatedRecord], options: Classify, given: Sequence[str] | None, given_by: str | None
) -> LabelSurvey:
    """One pass over the records; raises UserError for the first that lacks a text or a label."""
    found = LabelSurvey(options.label, tuple(given) if given else None, given_by)
    texts = [name for name in (options.text_a, options.text_b) if name is not None]
    for where, record in located:
        bad = [name for name in texts if not isinstance(record.get(name), str)]
        if options.label not in record or not isinstance(record[options.label], str | int | float | np.number | None):
            bad.append(options.label)
        if bad and bad[0] in record:
            kind = "a text or a number" if bad[0] == options.label else "a text"
            raise UserError(
                f"{where}: '{bad[0]}' is not {kind} but {describe_value(record[bad[0]])}; correct the record"
            )
        if bad:
            raise UserError(f"{where}: '{bad[0]}' is missing; it has: {', '.join(record)[:120]}; name the right field")
        found.add(record[options.label], where)
    return found
