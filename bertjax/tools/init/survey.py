"""Count the records, text lengths and labels of the user's data."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertjax.data.sources.class_names import names_from_source, parse_class_id, parse_number
from bertjax.data.sources.records import read_located
from bertjax.errors import UserError, escape_unprintable
from bertjax.tools.init.source import Data

MAX_LABELS = 1000
MANY_NUMBERS = 20  # more different integers than this are values of a regression
MAX_LENGTHS = 200_000  # examples whose lengths are kept
Item = tuple[str, str]  # what an example is told apart by (its text or context), its label or ""


@dataclass
class Survey:
    """What a pass over the examples found.

    Attributes:
        count: examples.
        lengths: characters of the first ones, all texts together.
        labels: how often each label occurs, as text.
    """

    count: int = 0
    lengths: list[int] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    longest_target: int = 0

    def add(self, length: int, label: str = "", target: int = 0) -> None:
        self.count += 1
        self.longest_target = max(self.longest_target, target)
        if len(self.lengths) < MAX_LENGTHS:
            self.lengths.append(length)
        if label:
            self.labels[label] += 1

    def length_at(self, fraction: float) -> int:
        """Characters that this fraction of the examples does not exceed."""
        ordered = sorted(self.lengths) or [0]
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


@dataclass(frozen=True)
class Labels:
    """The classes: their number (1: regression) and, unless they are 0, 1, ..., their names."""

    count: int
    names: tuple[str, ...] | None = None


def record_reader(
    data: Data, base: Path, texts: Sequence[str], label: str | None = None, skipped: list[str] | None = None
) -> Callable[[], Iterator[tuple[dict[str, Any], list[str], str]]]:
    """-> a function that yields (record, its texts, its label as text) of all records.

    A missing label, null, NaN or an empty text is "". With `skipped`, records whose text is null are left out, and the
    list gets their places. Raises UserError for other records without a text.
    """

    def read() -> Iterator[tuple[dict[str, Any], list[str], str]]:
        kinds: set[bool] = set()  # whether labels are texts
        (skipped if skipped is not None else []).clear()
        for where, record in read_located(data.section, base):
            found = [record.get(name) for name in texts]
            if skipped is not None and all(name in record for name in texts) and None in found:
                skipped.append(where)
                continue
            for name, value in zip(texts, found, strict=True):
                if not isinstance(value, str):
                    raise UserError(f"{where}: '{name}' is {_brief(value)}, not a text; correct or remove the record")
            value = record.get(label) if label else None
            if not isinstance(value, str | int | float | None) or value in (math.inf, -math.inf):
                raise UserError(f"{where}: label '{label}' is {_brief(value)}; a text or a number is needed")
            if value not in (None, "", -1) and value == value and not isinstance(value, bool):
                kinds.add(isinstance(value, str))
            if len(kinds) > 1:
                raise UserError(
                    f"{where}: '{label}' is a text in some records and a number in others; write all in one form"
                )
            yield record, found, "" if value is None or value != value else str(value).strip()  # type: ignore[misc]

    return read


def survey_records(read: Callable[[], Iterator[tuple[dict[str, Any], list[str], str]]]) -> Survey:
    survey = Survey()
    for _, texts, label in read():
        survey.add(sum(map(len, texts)), label)
        if len(survey.labels) > MAX_LABELS and any(parse_number(name) is None for name in survey.labels):
            break  # no classes: `choose_labels` reports it
    return survey


def choose_labels(survey: Survey, data: Data, base: Path, column: str) -> Labels:
    """The classes of a column. Raises UserError where its values are no labels."""
    if own := names_from_source(data.section, base, column):
        return Labels(len(own), own)
    values = survey.labels
    numbers = [parse_number(value) for value in values]
    if values and all(number is not None for number in numbers):
        ids = [parse_class_id(value) for value in values]
        if None in ids or len(set(ids)) > MANY_NUMBERS:
            return Labels(1)
        known = sorted(number for number in set(ids) if number is not None)
        if len(known) > 1:
            plain = known == list(range(len(known)))
            return Labels(len(known), None if plain else tuple(map(str, known)))
    names: dict[str, str] = {}
    for value, _ in values.most_common():
        names.setdefault(value.casefold(), value)
    if len(names) < 2:
        only = f"only one value: {next(iter(names.values()))[:40]!r}" if names else "no values"
        raise UserError(f"--label: column '{column}' has {only}; name the column of the labels")
    if len(names) > min(MAX_LABELS, max(20, survey.count // 2)):
        counted = f"{len(names):,} different values in {survey.count:,} records"
        if len(names) > MAX_LABELS:  # `survey_records` stops there
            counted = f"more than {MAX_LABELS:,} different values"
        raise UserError(f"--label: column '{column}' has {counted}, too many for labels; name the column of the labels")
    return Labels(len(names), tuple(sorted(names.values())))


def format_counts(counts: Counter[str], labels: Labels, most: int = 8) -> str:
    """`neg (4,080), pos (4,080)`, the most frequent ones; numbers of named classes by their names."""
    names = labels.names or ()
    by_id = {str(at): name for at, name in enumerate(names)} if not set(counts) & set(names) else {}
    known = {name.casefold(): name for name in names}
    merged: Counter[str] = Counter()
    for name, count in counts.items():  # `Pos` and `pos` are one label
        merged[by_id.get(name, known.get(name.casefold(), name))] += count
    shown = [f"{escape_unprintable(name)[:30]} ({count:,})" for name, count in merged.most_common(most)]
    return ", ".join(shown) + (", ..." if len(merged) > most else "")


def _brief(value: Any) -> str:
    return "missing" if value is None else escape_unprintable(repr(value))[:60]
