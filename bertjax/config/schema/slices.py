"""Parts of a source by record order, in the grammar of TFDS and `datasets`: `[:90%]`, `[90%:]`, `[-500:]`."""

import re
from typing import NamedTuple

_SLICE = re.compile(r"\[\s*(-?\d{1,18}%?)?\s*:\s*(-?\d{1,18}%?)?\s*\]")
_NAMED = re.compile(r"([^\[\]]+)(\[.*\])?")


class Slice(NamedTuple):
    """Bounds as written: empty, a number of records or a percentage; negative ones count from the end."""

    start: str
    stop: str

    @property
    def needs_total(self) -> bool:
        return any(bound.startswith("-") or bound.endswith("%") for bound in self)

    def bounds(self, total: int | None) -> tuple[int, int | None]:
        """(first, end) record numbers of `total` records; `total` may be None if `needs_total` is false.

        A percentage p is record round(p * total / 100), as in both libraries, so `[:p%]` and `[p%:]` are disjoint.
        """

        def place(bound: str, default: int | None) -> int | None:
            if not bound:
                return default
            number = int(bound.removesuffix("%"))
            if total is None:
                return number
            if bound.endswith("%"):
                number = round(number * total / 100)
            return min(max(number + total if bound.startswith("-") else number, 0), total)

        return place(self.start, 0) or 0, place(self.stop, total)


def parse_slice(text: str) -> Slice:
    """Raises ValueError for text that is no slice, or one that is empty whatever the data."""
    found = _SLICE.fullmatch(text.strip())
    if found is None:
        raise ValueError("must be '[FROM:TO]' with numbers of records or percentages, such as '[:90%]' or '[1000:]'")
    made = Slice(found[1] or "", found[2] or "")
    for bound in made:
        if bound.endswith("%") and not -100 <= int(bound[:-1]) <= 100:
            raise ValueError(f"{bound} is more than 100%")
    if not made.start and not made.stop:
        raise ValueError("takes everything; leave it out")
    first, last = (-1 if bound.startswith("-") else 1 for bound in (made.start or "0", made.stop or "-0"))
    same_unit = made.start.endswith("%") == made.stop.endswith("%") or made.start in ("", "0")
    numbers = [int((bound or "0").removesuffix("%")) for bound in made]
    if made.stop and first == last and same_unit and numbers[0] >= numbers[1]:
        raise ValueError("takes no record: its start is not before its end")
    return made


def parse_split(text: str) -> tuple[str, Slice | None]:
    """(name, slice) of `train[:80%]`, (name, None) of anything that is not a name with one slice."""
    found = _NAMED.fullmatch(text.strip())
    if found is None or found[2] is None:
        return text, None
    return found[1], parse_slice(found[2])
