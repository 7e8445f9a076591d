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
PENDING_EVAL = "unscored"  # in a step's meta data: it was saved before its evaluations had ended
LOWEST = ("loss", "perplexity", "mse", "ece")  # ends of the names of scores whose lowest value is best
SCORES = "scores.json"  # in a step's folder: scores of evaluations that ended after it was saved


def committed_steps(folder: Path) -> list[int]:
    """Steps whose folder has its final name and is not empty, oldest first.

    A damaged step is listed too: without it, a run whose only checkpoint is damaged would start from scratch.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if _is_step(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(entry.name) for entry in entries if not _is_empty(entry.path))


def num_bytes(leaves: Mapping[str, Any]) -> int:
    """Bytes of arrays, or abstract arrays, {path: array}."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())


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
    """The last `keep_last` steps, multiples of `keep_every`, the best of each score, and the last one restored."""
    ordered = sorted(steps)
    keep = set(ordered[-policy.keep_last :])
    if policy.keep_every:
        keep.update(step for step in ordered if step % policy.keep_every == 0)
    there = {step: scores.get(step, {}) for step in ordered}
    best = [best_step(score, policy.best_mode, there) for score in policy.best_metrics]
    return keep | {step for step in (*best, verified) if step is not None}


def best_step(score: str, best_mode: str, scores: Mapping[int, Mapping[str, float]]) -> int | None:
    """The step whose `score` is the "highest" or "lowest" ("auto": by its name), the newer of equals; NaN never is."""
    known = {step: of[score] for step, of in scores.items() if score in of}
    ranked = [(sign(score, best_mode) * value, step) for step, value in known.items() if not math.isnan(value)]
    return max(ranked)[1] if ranked else None


def sign(score: str, best_mode: str) -> int:
    """1 for a score whose highest value is best, -1 for the lowest; "auto": by its name."""
    if best_mode == "auto":
        best_mode = "lowest" if score.endswith(LOWEST) else "highest"
    return 1 if best_mode == "highest" else -1


def write_scores(folder: Path, step: int, scores: Mapping[str, float]) -> None:
    """Write the scores of a step that was saved before its evaluations had ended."""
    found = {name: float(score) for name, score in scores.items()}
    atomic.write_json_atomic(folder / str(step) / SCORES, found, indent=None, durable=True)


def read_scores(step_folder: Path) -> dict[str, float] | None:
    """The scores written by `write_scores`; None if there are none or they cannot be read."""
    try:
        return dict(json.loads((step_folder / SCORES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def has_pending_eval(folder: Path, meta: Mapping[str, Any]) -> bool:
    """Whether evaluations of the step with these meta data are still to be done."""
    return bool(meta.get(PENDING_EVAL)) and read_scores(folder / str(meta["step"])) is None


def delete(folder: Path, step: int) -> None:
    """Delete a step; it is renamed first, so that a crash leaves no half-deleted step listed."""
    trash = folder / TRASH / f"{step}-{time.time_ns()}"
    trash.parent.mkdir(exist_ok=True)
    os.rename(folder / str(step), trash)
    shutil.rmtree(trash, ignore_errors=True)


def select_step(folder: Path, reasons: Mapping[int, str], named: int | None) -> int:
    """The step named, or the newest one not known to be damaged (`reasons`).

    Raises UserError when the step named is missing or damaged or there is no step, StorageError when all are damaged.
    """
    steps = committed_steps(folder)
    bad = {step: reason for step, reason in reasons.items() if step in steps}  # not those deleted meanwhile
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
    """Warn of each damaged step and move it to quarantine/, once a `good` one is read (else a run could start over)."""
    for step in sorted(set(reasons) & set(committed_steps(folder)), reverse=True):
        place = "left in place"
        if move:
            target = folder / QUARANTINE / str(step)
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                target = target.with_name(f"{step}-{time.time_ns()}")
            os.rename(folder / str(step), target)
            place = f"moved to {target.relative_to(folder)}"
        log.warning("%s: step %d is damaged (%s): %s, step %d is used", folder, step, reasons[step], place, good)


def remove_unfinished(folder: Path, step: int) -> None:
    """Remove the files of a failed save of this step."""
    for path in folder.glob(f"{step}{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished saves and deletions and empty step folders. Only the writer that holds the lock may call it."""
    for entry in list(os.scandir(folder)):
        if UNFINISHED in entry.name or entry.name == TRASH:
            shutil.rmtree(entry.path, ignore_errors=True)
        elif _is_step(entry.name) and entry.is_dir() and _is_empty(entry.path):
            os.rmdir(entry.path)


def fsync_unfinished(folder: Path) -> None:
    """Flush a save that is about to get its final name to the disk."""
    for path in folder.glob(f"*{UNFINISHED}*"):
        fsync_tree(path)


def fsync_tree(path: Path) -> None:
    """Flush a folder and everything below it to the disk."""
    for parent, _, files in os.walk(path):
        for name in [*files, "."]:
            atomic.fsync_path(os.path.join(parent, name))
