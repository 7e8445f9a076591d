"""Names of classes: the ids of names and numbers, and the names that a data set gives (ClassLabel)."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.data.sources.registry import record_of

UNLABELED = -1  # the id of a label that the data do not disclose, as in the test files of GLUE
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_UNNAMED = re.compile(r"LABEL_(\d+)")  # what transformers calls classes without names


def parse_number(text: str) -> float | None:
    """The number that a text spells, or None; 1e999 is more than a float holds."""
    return number if _NUMBER.fullmatch(text) and math.isfinite(number := float(text)) else None


def parse_class_id(value: Any) -> int | None:
    """The id that a number, or a text that spells one, gives; None for fractions and words. LABEL_3 is 3."""
    found = value
    if isinstance(value, str):
        unnamed = _UNNAMED.fullmatch(value)
        found = float(unnamed[1]) if unnamed else parse_number(value)
    if isinstance(found, float) and not found.is_integer():  # fractions, NaN and infinity
        return None
    return None if found is None else int(found)


def are_integers(names: Sequence[str]) -> bool:
    """Whether every name spells an integer: numbers are then names, not ids."""
    return all(parse_number(name) is not None and parse_class_id(name) is not None for name in names)


def find_class_id(label: str | int | bool | None, names: Sequence[str]) -> int | None:
    """The id of a label among `names`, by name (ignoring case and outer space) or by number; None if unknown.

    A number is an id, or a name if all names are numbers. For -1, null and an empty text the id is UNLABELED.
    """
    if label is None or label == "":
        return UNLABELED
    text = str(label).strip()
    if text in names:
        return list(names).index(text)
    folded = [number for number, name in enumerate(names) if name.strip().casefold() == text.casefold()]
    if folded:
        return folded[0] if len(folded) == 1 else None
    number = parse_class_id(text if isinstance(label, str) else label)
    if number == UNLABELED and not _UNNAMED.fullmatch(text):
        return UNLABELED
    if number is None or not 0 <= number < len(names) or are_integers(names):
        return None
    return number


def format_names(names: Sequence[str], most: int = 100) -> str:
    """Names for a message, shortened to `most` characters."""
    text = ", ".join(names)
    return text if len(text) <= most else text[: most - 3] + "..."


def names_from_source(source: Any, base: Path, field: str) -> tuple[str, ...] | None:
    """The names by id of a ClassLabel `field` of a source; None where the field, or the source, has none."""
    return record_of(source).label_names(source, base, field)


@dataclass(frozen=True)
class ClassSpec:
    """The classes that rows of a classification are made for."""

    count: int | None = None  # objective.num_labels; 1: regression, None: unknown
    names: tuple[str, ...] | None = None  # by id
    required: bool = False  # labels outside `names` are an error; else the ids are those of the data's own names
    keep_unlabeled: bool = False  # keep rows without a label, with weight 0
    multi_label: bool = False  # a text has any number of them

    @classmethod
    def of_objective(
        cls, objective: Any, names: tuple[str, ...] | None = None, *, required: bool = False
    ) -> "ClassSpec":
        """The classes of a section of the configuration; of another objective than classification, an empty one."""
        several = getattr(objective, "multi_label", False)
        return cls(getattr(objective, "num_labels", None), names, required, multi_label=several)

    def as_json(self) -> dict[str, Any]:
        """What a row depends on."""
        names = self.names and list(self.names)
        found = {"count": self.count, "names": names, "required": self.required, "hidden": self.keep_unlabeled}
        return found | ({"multi_label": True} if self.multi_label else {})
