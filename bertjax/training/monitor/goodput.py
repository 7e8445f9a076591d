"""Record and sum up how a run's time was spent over all restarts: productive steps, repeated steps, everything else.

Lines are only appended to goodput.jsonl. A *life* is one process; its lines give the seconds of each phase so far and
the position (stage, step) reached. Time after the last line of a killed life counts as time between attempts.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.errors import StorageError
from bertjax.progress.text import duration, percent
from bertjax.storage.atomic import open_append
from bertjax.storage.text import check_regular, read_bytes
from bertjax.training.monitor.phases import COMPILE, EVALUATION, PHASES, PREPARE, SAVE, STARTUP, STEP, Phases

FILE_NAME = "goodput.jsonl"
MIN_WRITE_SECONDS = 1.0  # seconds between two lines, at least
MAX_NUMBER = 2**53  # of what a line counts
MAX_WRITE_SHARE = 0.01  # time between two lines as a share of the life so far
Position = tuple[int, int]  # number of the stage, step in it


@dataclass(frozen=True)
class GoodputSummary:
    """Seconds by use; `wall` is from the first life's start to the last line."""

    productive: float
    lost: float  # steps that a later life repeated, and unfinished steps
    preparation: float  # of the tokenizer and the data
    startup: float  # imports, connecting processes, making or restoring the parameters
    compilation: float  # with the first step of each episode
    evaluation: float
    checkpoint: float
    idle: float  # between attempts
    wall: float
    attempts: int

    @property
    def goodput(self) -> float:
        """The productive share of the time."""
        return self.productive / self.wall if self.wall else 0.0

    def __str__(self) -> str:
        lost = "steps done again after a restart" if self.attempts > 1 else "an unfinished step"
        parts = {
            "training steps": self.productive, lost: self.lost, "preparing data": self.preparation,
            "starting": self.startup, "compiling": self.compilation, "evaluating": self.evaluation,
            "saving": self.checkpoint, "between restarts": self.idle,
        }  # fmt: skip
        shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds >= 0.5)
        restarts = f" with {self.attempts - 1} restart{'s' * (self.attempts > 2)}" if self.attempts > 1 else ""
        return f"goodput {percent(self.goodput)} of {duration(self.wall)}{restarts}: {shown or 'nothing yet'}"


def summarize(lines: Iterable[Mapping[str, Any]]) -> GoodputSummary | None:
    """Add up the lines of a goodput.jsonl; None without any.

    A life that starts before a position reached earlier undoes the steps in between; a stretch of steps that it starts
    within is divided evenly. Step time without a new position is an unfinished step and lost, except in a `settled`
    line, where it belongs to the previous steps.
    """
    spent = dict.fromkeys(PHASES, 0.0)
    stretches: list[tuple[Position, Position, float]] = []
    lost = idle = first = 0.0
    attempts, before, last = 0, None, spent
    for line in lines:
        place, seconds = (int(line["stage"]), int(line["step"])), line["seconds"]
        if before is None or line["life"] != before["life"]:
            attempts += 1
            first = line["started"] if before is None else first
            idle += max(0.0, line["started"] - before["time"]) if before else 0.0
            last = dict.fromkeys(PHASES, 0.0)
        if line["resumed"]:
            undone, stretches = _cut(stretches, place)
            lost += undone
        for phase in PHASES:
            spent[phase] += seconds.get(phase, 0.0) - last.get(phase, 0.0)
        in_steps, last = seconds[STEP] - last[STEP], seconds
        reached = (before["stage"], before["step"]) if before and not line["resumed"] else place
        settled = before and line.get("settled")
        if settled:
            reached = place = (before["stage"], before["step"])
        if settled or place > reached:
            stretches.append((reached, place, in_steps))
        else:
            lost += in_steps
        before = line
    if before is None:
        return None
    productive = sum(seconds for _, _, seconds in stretches)
    wall = before["time"] - first
    return GoodputSummary(
        productive, lost, spent[PREPARE], spent[STARTUP], spent[COMPILE], spent[EVALUATION], spent[SAVE], idle, wall,
        attempts,
    )  # fmt: skip


def _cut(
    stretches: list[tuple[Position, Position, float]], place: Position
) -> tuple[float, list[tuple[Position, Position, float]]]:
    """-> (seconds of the steps after `place`, the stretches up to it)."""
    lost, kept = 0.0, []
    for begin, end, seconds in stretches:
        if end <= place:
            kept.append((begin, end, seconds))
        elif begin >= place or begin[0] != place[0]:
            lost += seconds
        else:
            share = (place[1] - begin[1]) / (end[1] - begin[1])
            kept.append((begin, place, share * seconds))
            lost += (1 - share) * seconds
    return lost, kept


def read(folder: Path) -> GoodputSummary | None:
    """The summary of a run folder; None when it has none. Incomplete lines are skipped."""
    return summarize(_lines(folder / FILE_NAME))


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    try:
        written = read_bytes(path).splitlines()
    except OSError:
        return
    for raw in written:
        try:
            line = json.loads(raw)
            counts = [line[name] for name in ("life", "stage", "step", "resumed")]
            times = [line["started"], line["time"], *line["seconds"].values()]
            times += [line["seconds"][phase] for phase in PHASES if phase != PREPARE]  # earlier versions have none
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if all(isinstance(x, int) for x in counts) and all(map(_is_sound, [*counts, *times])):
            yield line


def _is_sound(value: Any) -> bool:
    """Whether a value is a number of the size of a count or a time; NaN is none."""
    return isinstance(value, int | float) and abs(value) <= MAX_NUMBER


class GoodputLog:
    """Writer of the lines of one life, on the primary process only. Raises StorageError."""

    def __init__(self, folder: Path, phases: Phases, *, is_primary: bool) -> None:
        self.path, self.phases, self.is_primary = folder / FILE_NAME, phases, is_primary
        self._place: Position = (0, 0)
        self._settled = False
        self._next = 0.0
        if is_primary:
            before = list(_lines(self.path))
            self._life = before[-1]["life"] + 1 if before else 0
            # The second run of one process must not overlap with the life of the first.
            self._started = max([phases.started, *(line["time"] for line in before[-1:])])

    def start_stage(self, stage: int, step: int) -> None:
        """Record that a stage starts or resumes at this step."""
        self._place = (stage, step)
        self._write(resumed=True)
        self._settled = False

    def record_step(self, stage: int, step: int, *, last: bool = False) -> None:
        """Record a finished step; a line is written when one is due, and for the last step of a stage."""
        self._place = (stage, step)
        if last or time.monotonic() >= self._next:
            self._write()

    def end_steps(self) -> None:
        """Record that no step is unfinished, and none starts before the next `start_stage`."""
        self._settled = True

    def close(self) -> None:
        """Write the last line of this life."""
        if self._next:  # a stage has started
            self._write()

    def _write(self, *, resumed: bool = False) -> None:
        if not self.is_primary:
            return
        seconds = self.phases.seconds()
        seconds[STARTUP] = max(0.0, seconds[STARTUP] - (self._started - self.phases.started))
        age = sum(seconds.values())
        self._next = time.monotonic() + max(MIN_WRITE_SECONDS, MAX_WRITE_SHARE * age)
        line = {
            "kind": "goodput", "life": self._life, "started": round(self._started, 3), "time": round(time.time(), 3),
            "stage": self._place[0], "step": self._place[1], "resumed": resumed,
            **({"settled": True} if self._settled else {}),
            "seconds": {phase: round(spent, 3) for phase, spent in seconds.items()},
        }  # fmt: skip
        try:
            check_regular(self.path)
            with open_append(self.path) as out:
                if out.tell() and (out.seek(-1, 2), out.read(1))[1] != b"\n":
                    out.write(b"\n")  # a killed process left an incomplete line
                out.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise StorageError(f"{self.path}: could not be written ({error.strerror or error})") from error
