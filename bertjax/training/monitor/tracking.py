"""Write a run's numbers to metrics.jsonl and the terminal, and on request to TensorBoard and Weights & Biases.

Each line of metrics.jsonl is a JSON object with `kind` (train | eval | event), `stage` and `step`. A resumed run first
removes the lines after the restored checkpoint.
"""

import json
import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from bertjax.errors import StorageError
from bertjax.progress import reporter as progress
from bertjax.progress.reporter import Reporter
from bertjax.storage.atomic import open_append, open_no_follow, write_bytes_atomic
from bertjax.storage.nested import flatten
from bertjax.storage.text import check_regular
from bertjax.training.monitor import writers
from bertjax.training.monitor.console import Console

DAMAGED = "metrics-damaged.jsonl"  # beside metrics.jsonl: lines that a resumed run could not read
MAX_SECONDS = 1e10  # three centuries
STAGE_END_EVENTS = ("mixture", "stage_end")  # the events that end a stage


class Tracker:
    """Writer of a run's numbers, a context manager; does nothing on processes other than the primary.

    `stages`: stage names in order, each with its number of steps. `tensorboard`: True (a note if tensorboardX is
    missing), None (used if installed) or False. `config` is shown by Weights & Biases. `reporter`: what shows it all
    (default: the process's).
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        stages: Mapping[str, int],
        tensorboard: bool | None = False,
        wandb: bool = False,
        is_primary: bool = True,
        config: Mapping[str, Any] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.path = Path(run_dir) / "metrics.jsonl"
        self.is_primary = is_primary
        self._file: TextIO | None = None
        self._began = time.monotonic()
        if not is_primary:
            return
        self._console = Console(stages, reporter or progress.current)
        self._tensorboard = self._wandb = None
        if tensorboard is not False:
            notes = self._console if tensorboard else None
            self._tensorboard = writers.open_tensorboard(self.path.parent / "tensorboard", notes)
        if wandb:
            self._wandb = writers.open_wandb(self.path.parent, config or {}, list(stages), self._console)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def show_stage(self, stage: str, step: int) -> AbstractContextManager[None]:
        """Show the steps of a stage inside the block, which begins after `step`."""
        return self._console.stage(stage, step) if self.is_primary else nullcontext()

    def step(self, step: int) -> None:
        """Count a step that was started; nothing is written."""
        if self.is_primary:
            self._console.step(step)

    def leave_out(self, seconds: float) -> None:
        """Leave a time in which steps were compiled out of the pace from which the time left is estimated."""
        if self.is_primary:
            self._console.leave_out(seconds)

    def train(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the numbers of a training step; `elapsed` (seconds over all restarts) is added if missing."""
        if not self.is_primary:
            return
        metrics = {**metrics, "elapsed": metrics.get("elapsed", round(time.monotonic() - self._began, 3))}
        self._write("train", stage, step, metrics)
        self._scalars(stage, step, "train", metrics)
        self._console.train(stage, step, metrics)

    def evaluation(self, stage: str, step: int, name: str, scores: Mapping[str, Any]) -> None:
        """Write the scores of one evaluation."""
        if not self.is_primary:
            return
        self._write("eval", stage, step, {"name": name, "scores": dict(scores)})
        self._scalars(stage, step, name, scores)
        self._console.evaluation(stage, step, name, scores)

    def event(self, stage: str, step: int, event: str, **fields: Any) -> None:
        """Write an event such as start, resume, episode, checkpoint or stage_end."""
        if not self.is_primary:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write("event", stage, step, {"event": event, "time": now, **fields})
        self._console.event(stage, step, event, fields)

    def note(self, text: str) -> None:
        """Show one line about the run; it is not recorded."""
        if self.is_primary:
            self._console.note(text)

    def rewind(self, stages_before: Collection[str], stage: str, step: int, *, scored: bool = True) -> None:
        """Remove lines after `step` of `stage` (-1: all of it) and incomplete lines; call it before writing anything.

        Lines of `stages_before` stay. Events of the end of the stage, which the resumed run writes again, are removed
        at `step` too, and, unless `scored`, the scores of `step`. The file is replaced atomically.
        """
        if not self.is_primary:
            return
        self.close_file()
        if self._tensorboard is not None:
            self._tensorboard.rewind(stages_before, stage, step)
        if not self.path.exists():
            return
        again = {("event", name) for name in STAGE_END_EVENTS} | (set() if scored else {("eval", None)})

        def stays(line: Mapping[str, Any]) -> bool:
            if line["stage"] != stage or line["step"] > step:
                return line["stage"] in stages_before
            return line["step"] < step or (line["kind"], line.get("event")) not in again

        kept, elapsed, damaged = list[bytes](), [0.0], list[bytes]()
        for raw, line in _parse_lines(self.path):
            if line is None and raw.endswith(b"\n"):  # one without an end is what a killed process has left
                damaged.append(raw)
            elif line is not None and stays(line):
                kept.append(raw.rstrip(b"\n") + b"\n")  # as written: it may hold what UTF-8 has no bytes for
                elapsed.append(_seconds(line.get("elapsed")))
        with _storage_errors(self.path):
            if damaged:
                self._set_aside(damaged)
            write_bytes_atomic(self.path, b"".join(kept), durable=True)
        self._began = time.monotonic() - max(elapsed)

    def _set_aside(self, damaged: Sequence[bytes]) -> None:
        """Move lines that cannot be read to a file of their own, and say so."""
        place = self.path.with_name(DAMAGED)
        with _storage_errors(place), open_append(place) as out:
            out.writelines(damaged)
        what = "1 line is" if len(damaged) == 1 else f"{len(damaged)} lines are"
        self._console.note(f"note: {self.path}: {what} damaged; moved to {place.name}")

    def close(self) -> None:
        """Flush everything; may be called more than once."""
        if not self.is_primary:
            return
        self.close_file()
        for sink in (self._tensorboard, self._wandb):
            if sink is not None:
                sink.close()
        self._tensorboard = self._wandb = None

    def close_file(self) -> None:
        """Close metrics.jsonl; the next line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, kind: str, stage: str, step: int, fields: Mapping[str, Any]) -> None:
        head = {"kind": kind, "stage": stage, "step": int(step)}
        line = _line(head | {key: value for key, value in fields.items() if key not in head})
        with _storage_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                torn = _ends_mid_line(self.path)
                self._file = open(self.path, "a", encoding="utf-8", opener=open_no_follow)
                if torn:  # a killed process left an incomplete line
                    self._file.write("\n")
            self._file.write(line)
            self._file.flush()

    def _scalars(self, stage: str, step: int, group: str, values: Mapping[str, Any]) -> None:
        flat = _numbers(values)
        for sink in (self._tensorboard, self._wandb):
            if sink is not None:
                sink.write_scalars(stage, step, group, flat)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl in order; those that are not JSON objects with kind, stage and step are skipped."""
    return (line for _, line in _parse_lines(path) if line is not None)


def count_damaged_lines(path: Path) -> tuple[int, int]:
    """-> (complete lines of a metrics.jsonl that cannot be read, all its complete lines)."""
    found = [line is None for raw, line in _parse_lines(path) if raw.endswith(b"\n")]
    return sum(found), len(found)


def _parse_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a metrics.jsonl, each as written and, unless it is damaged, as read."""
    check_regular(path)
    with path.open("rb") as lines:
        for raw in lines:
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):  # also for invalid UTF-8
                line = None
            yield raw, line if _is_sound(line) else None


def _is_sound(line: Any) -> bool:
    """Whether a line is a JSON object with kind, stage and step."""
    return (
        isinstance(line, dict)
        and type(line.get("step")) is int
        and all(isinstance(line.get(key), str) for key in ("kind", "stage"))
    )


def _seconds(value: Any) -> float:
    """A time of a line that any file may hold; 0 for what is none."""
    return float(value) if _is_number(value) and 0 <= value < MAX_SECONDS else 0.0


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a nested mapping as {"outer/inner": number}."""
    plain = {key: _plain(value) for key, value in flatten(values, "/", lists=False).items()}
    return {key: value for key, value in plain.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Convert a NumPy or JAX scalar to a Python number; return anything else unchanged."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _json(value: Any) -> Any:
    """Convert `value` for JSON, which has no NaN or infinity: null."""
    value = _plain(value)
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(_json(fields), ensure_ascii=False, allow_nan=False) + "\n"


def _ends_mid_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that names the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: could not be written ({error.strerror or error})") from error
