"""The texts and scores of records, with errors for those that lack one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from bertjax.config.schema.data import TextPairs
from bertjax.data.sources.class_names import parse_number
from bertjax.data.sources.record_values import describe_value
from bertjax.errors import UserError, escape_unprintable

LocatedRecord = tuple[str, dict[str, Any]]


class TextPair(NamedTuple):
    """The texts of a record in the order of a row, and its score: the cosine that it stands for."""

    texts: tuple[str, ...]
    score: float | None


@dataclass
class PairSurvey:
    """Counts of the records of a task."""

    records: int = 0
    empty: int = 0  # with an empty text: left out


def to_pairs(located: Iterable[LocatedRecord], options: TextPairs, survey: PairSurvey) -> Iterator[TextPair]:
    """The pairs of records, without those that have an empty text. Raises UserError for one that lacks a field."""
    for where, record in located:
        survey.records += 1
        pair = TextPair(tuple(_text(where, record, name) for name in options.fields), _score(where, record, options))
        if all(text.strip() for text in pair.texts):
            yield pair
        else:
            survey.empty += 1


def _text(where: str, record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if isinstance(value, str):
        return value
    if name in record:
        raise UserError(f"{where}: '{name}' is not a text but {describe_value(value)}; correct the record")
    raise UserError(f"{where}: '{name}' is missing; it has: {', '.join(record)[:120]}; name the right field")


def _score(where: str, record: dict[str, Any], options: TextPairs) -> float | None:
    """The score of a record as a cosine, -1 to 1; with a `score_range` 0 to 1."""
    if (name := options.score) is None:
        return None
    if name not in record:
        raise UserError(f"{where}: '{name}' is missing; it has: {', '.join(record)[:120]}; name the right field")
    value = record[name]
    number = parse_number(value.strip()) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not isfinite(number):
        shown = f"'{escape_unprintable(value)[:60]}'" if isinstance(value, str) else describe_value(value)
        raise UserError(f"{where}: '{name}' is not a number but {shown}; correct the record")
    low, high = options.score_range or (-1.0, 1.0)
    if not low <= number <= high:
        hint = "correct the record or the range" if options.score_range else "name it: score_range: [lowest, highest]"
        raise UserError(f"{where}: '{name}' is {number}, outside of {low:g} to {high:g}; {hint}")
    return float(number) if options.score_range is None else (float(number) - low) / (high - low)
