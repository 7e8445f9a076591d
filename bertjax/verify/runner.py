"""Checks, which yield (what, found, expected) triples, and their comparison.

Expected numbers are the reference's output (`goldens/` name the program), published values or values of its formula;
none is a copy of our output.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

GOLDENS = resources.files("bertjax.verify") / "goldens"
Comparisons = Iterator[tuple[str, Any, Any]]


@dataclass(frozen=True)
class NotCompared:
    """Found instead of a value that this installation cannot compute."""

    reason: str


@dataclass(frozen=True)
class Check:
    name: str  # dotted
    source: str  # the program or paper whose semantics it is
    run: Callable[[], Comparisons]


@dataclass(frozen=True)
class Result:
    """How many values were compared, what differs and what was not compared, one line each."""

    check: Check
    compared: int
    mismatches: list[str]
    skipped: list[str]

    @property
    def passed(self) -> bool:
        return self.compared > 0 and not self.mismatches

    def as_lines(self) -> list[str]:
        verdict = "FAIL" if self.mismatches else "pass" if self.passed else "skip"
        head = f"{verdict}  {self.check.name:<28}{self.compared:>4}  {self.check.source}"
        more = [f"      and {len(self.mismatches) - 5} more"] if len(self.mismatches) > 5 else []
        left = [f"      not compared: {line}" for line in self.skipped]
        return [head, *(f"      {line}" for line in self.mismatches[:5]), *more, *left]

    def as_dict(self) -> dict[str, Any]:
        about = {"check": self.check.name, "source": self.check.source, "compared": self.compared}
        return about | {"wrong": self.mismatches, "skipped": self.skipped, "passed": self.passed}


def run_check(check: Check) -> Result:
    compared, wrong, skipped = 0, [], []
    for what, found, expected in check.run():
        if isinstance(found, NotCompared):
            skipped.append(f"{what}: {found.reason}")
            continue
        compared += 1
        if not matches(found, expected):
            wrong.append(f"{what}: {str(found)[:80]}, should be {str(expected)[:80]}")
    return Result(check, compared, wrong, skipped)


def matches(found: Any, expected: Any) -> bool:
    """Equal; numbers with a fraction to six digits, inside lists and mappings too."""
    if isinstance(expected, float):
        return isinstance(found, int | float) and math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(expected)
        return same and all(map(matches, found, expected))
    if isinstance(expected, dict):
        same = isinstance(found, dict) and found.keys() == expected.keys()
        return same and all(matches(found[key], value) for key, value in expected.items())
    return bool(found == expected)


def load_golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))
