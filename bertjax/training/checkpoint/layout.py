"""Manage checkpoint steps as folders on disk: list, select, keep, delete and quarantine them."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import StorageError, UserError
from bertjax.storage import atomic

log = logging.getLogger(__name__)
TRASH = "trash"
QUARANTINE = "quarantine"
UNFINISHED = ".orbax-checkpoint-tmp"
PENDING_EVAL = "unscored"  # in a step's meta: it was saved before its evaluations had ended
SCORES = "scores.json"  # in a step's folder: what they gave when they were done later


def committed_steps(folder: Path) -> list[int]:
    """Steps whose folder has its final name and holds something, oldest first.

    A step gets its final name by one rename when all of it is written. One that was damaged later is listed all the
    same: leaving it out could make a run with a single damaged checkpoint start again from nothing.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if _is_step(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(entry.name) for entry in entries if not _is_empty(entry.path))


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name))


def _is_empty(path: str) -> bool:
    try:
        return not os.listdir(path)
    except OSError:  # deleted since it was listed
        return True


def steps_to_keep(
    policy: CheckpointPolicy, steps: Iterable[int], scores: Mapping[int, Mapping[str, float]], verified: int | None
) -> set[int]:
    """The last `keep_last` steps, multiples of `keep_every`, the best of each score, the last one restored."""
    ordered = sorted(steps)
    keep = set(ordered[-policy.keep_last :])
    if policy.keep_every:
        keep.update(step for step in ordered if step % policy.keep_every == 0)
    there = {step: scores.get(step, {}) for step in ordered}
    best = [best_step(score, policy.best_mode, there) for score in policy.best_metrics]
    return keep | {step for step in (*best, verified) if step is not None}


def best_step(score: str, best_mode: str, scores: Mapping[int, Mapping[str, float]]) -> int | None:
    """The step whose `score` is the "highest" or "lowest" ("auto": by its name), the newer of equals; None without one.

    NaN is no score. Of several tasks trained together each can have a step of its own that is the best.
    """
    if best_mode == "auto":
        best_mode = "lowest" if score.endswith(("loss", "perplexity")) else "highest"
    sign = 1 if best_mode == "highest" else -1
    known = {step: of[score] for step, of in scores.items() if score in of}
    ranked = [(sign * value, step) for step, value in known.items() if not math.isnan(value)]
    return max(ranked)[1] if ranked else None


def write_scores(folder: Path, step: int, scores: Mapping[str, float]) -> None:
    """Keeps the scores of a step that was saved before its evaluations had ended."""
    found = {name: float(score) for name, score in scores.items()}
    atomic.write_json_atomic(folder / str(step) / SCORES, found, indent=None, durable=True)


def read_scores(step_folder: Path) -> dict[str, float] | None:
    """What `write_scores` kept; None where there is nothing, or nothing that can be read."""
    try:
        return dict(json.loads((step_folder / SCORES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def has_pending_eval(folder: Path, meta: Mapping[str, Any]) -> bool:
    """Whether evaluations of the step with this meta are still to be done."""
    return bool(meta.get(PENDING_EVAL)) and read_scores(folder / str(meta["step"])) is None


def delete(folder: Path, step: int) -> None:
    """Deletes a step: out of the way in one rename first, so that a crash leaves no half-deleted step listed."""
    trash = folder / TRASH / f"{step}-{time.time_ns()}"
    trash.parent.mkdir(exist_ok=True)
    os.rename(folder / str(step), trash)
    shutil.rmtree(trash, ignore_errors=True)


def select_step(folder: Path, reasons: Mapping[int, str], named: int | None) -> int:
    """The step named, or the newest one not found damaged (`reasons`) so far.

    A step that a writer deleted while it was being read is not damaged, it is forgotten. Raises UserError for a step
    that is not there, or named and damaged, and when there is no step at all; StorageError when all are damaged.
    """
    steps = committed_steps(folder)
    bad = {step: reason for step, reason in reasons.items() if step in steps}
    if left := [step for step in steps if step not in bad and named in (None, step)]:
        return left[-1]
    if named in bad:
        raise UserError(f"{folder / str(named)}: damaged ({bad[named]}); name another step or none")
    if named is not None:
        there = ", ".join(map(str, steps[-8:])) or "none"
        raise UserError(f"{folder}: there is no step {named}; complete steps: {there}")
    if not bad:
        raise UserError(f"{folder}: there is no checkpoint here; train first, or name another run")
    reason = bad[max(bad)].replace(f"{folder}/", "")[:120]
    raise StorageError(f"{folder}: every step is damaged, the newest by {reason}; nothing was moved")


def quarantine(folder: Path, reasons: Mapping[int, str], good: int, *, move: bool) -> None:
    """Warns of each damaged step, and moves it to quarantine/ for a person to look at.

    Only once a good step is read: had the damaged ones been moved before, a run without a good one would restart.
    """
    for step in sorted(set(reasons) & set(committed_steps(folder)), reverse=True):
        place = f"moved to {_move_to_quarantine(folder, step).relative_to(folder)}" if move else "left in place"
        log.warning("%s: step %d is damaged (%s): %s, step %d is used", folder, step, reasons[step], place, good)


def _move_to_quarantine(folder: Path, step: int) -> Path:
    target = folder / QUARANTINE / str(step)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        target = target.with_name(f"{step}-{time.time_ns()}")
    os.rename(folder / str(step), target)
    return target


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed writer left: unfinished saves, deletions not finished, empty step folders.

    Only the writer that holds the lock may call it: in another process's hands it destroys a running save.
    """
    for entry in list(os.scandir(folder)):
        if UNFINISHED in entry.name or entry.name == TRASH:
            shutil.rmtree(entry.path, ignore_errors=True)
        elif _is_step(entry.name) and entry.is_dir() and _is_empty(entry.path):
            os.rmdir(entry.path)


def remove_unfinished(folder: Path, step: int) -> None:
    """Removes what a failed save of this step left, and with it the space it took."""
    for path in folder.glob(f"{step}{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def fsync_unfinished(folder: Path) -> None:
    """Forces a save that is about to get its final name to the disk."""
    for path in folder.glob(f"*{UNFINISHED}*"):
        fsync_tree(path)


def fsync_tree(path: Path) -> None:
    """Forces a folder and all below it to the disk: a rename is only as durable as what it names."""
    for parent, _, files in os.walk(path):
        for name in [*files, "."]:
            atomic.fsync_path(os.path.join(parent, name))
