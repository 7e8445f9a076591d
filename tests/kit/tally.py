"""The figures of the reliability tests, and their table.

    BERTJAX_TALLY=tally.jsonl make test-soak
    python tests/kit/tally.py tally.jsonl

A test that passes calls `add`, which appends a line to the file that BERTJAX_TALLY names. The second command prints
the lines as a table in Markdown, one row for each fault.
"""

import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADER = ("fault", "in", "how it is injected", "tried", "lost or silent", "detected", "recovery, s", "command")


def add(
    fault: str, how: str, tried: int, *, lost: int = 0, detected: int | None = None, where: str = "disk",
    recovery: Sequence[float] = (),
) -> None:  # fmt: skip
    """Record what a test has found.

    lost: checkpoints that were lost, steps that differ, or faults that nothing reported. detected: faults that were
    reported; None where the run shall just go on. recovery: seconds from each start to its first step.
    """
    path = os.environ.get("BERTJAX_TALLY")
    if path is None:
        return
    test = os.environ["PYTEST_CURRENT_TEST"].split(" (")[0].split("[")[0]
    line = {
        "fault": fault, "how": how, "tried": tried, "lost": lost, "detected": detected, "where": where,
        "recovery": [round(seconds, 2) for seconds in recovery], "test": test,
    }  # fmt: skip
    with Path(path).open("a", encoding="utf-8") as file:  # one write: several workers add lines
        file.write(json.dumps(line) + "\n")


def rows(lines: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The sums of the lines with the same fault and place, in the order of their first ones."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["fault"], line["where"], line["how"]), []).append(line)
    found = []
    for (fault, where, how), group in groups.items():
        seconds = [second for line in group for second in line["recovery"]]
        detected = [line["detected"] for line in group if line["detected"] is not None]
        tests = dict.fromkeys(line["test"] for line in group)
        found.append(
            (
                fault, where, how, str(sum(line["tried"] for line in group)),
                str(sum(line["lost"] for line in group)), str(sum(detected)) if detected else "",
                f"{statistics.median(seconds):.1f} (at most {max(seconds):.1f})" if seconds else "",
                "<br>".join(f"`pytest {test}`" for test in tests),
            )
        )  # fmt: skip
    return found


def main(path: str) -> None:
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    for row in (HEADER, ("---",) * len(HEADER), *rows(lines)):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main(sys.argv[1])
