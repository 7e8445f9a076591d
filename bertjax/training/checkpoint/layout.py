"""Manage checkpoint steps as folders, on disk or in an object store: list, select, keep, delete and quarantine."""

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import StorageError, UserError
from bertjax.storage import atomic, folders

log = logging.getLogger(__name__)
UNFINISHED = ".orbax-checkpoint-tmp"
PENDING_EVAL = "unscored"  # in a step's meta data: it was saved before its evaluations had ended
LOWEST = ("loss", "perplexity", "mse", "ece")  # ends of the names of scores whose lowest value is best
SCORES = "scores.json"  # in a step's folder: scores of evaluations that ended after it was saved


def committed_steps(folder: Path) -> list[int]:
    """Complete steps, oldest first: on disk those whose folder has its final name and is not empty.

    A damaged step is listed too: without it, a run whose only checkpoint is damaged would start from scratch. Raises
    StorageError and UserError for an object store that cannot be read.
    """
    return sorted(map(int, folders.complete_folders(folder, _is_step)))


def num_bytes(leaves: Mapping[str, Any]) -> int:
    """Bytes of arrays, or abstract arrays, {path: array}."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name))


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
    found = folders.read_json(step_folder / SCORES)
    return found if isinstance(found, dict) else None


def has_pending_eval(folder: Path, meta: Mapping[str, Any]) -> bool:
    """Whether evaluations of the step with these meta data are still to be done."""
    return bool(meta.get(PENDING_EVAL)) and read_scores(folder / str(meta["step"])) is None


def delete(folder: Path, step: int) -> None:
    """Delete a step so that a crash leaves no half-deleted step listed."""
    folders.delete_folder(folder, str(step))


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
        place = folders.quarantine_folder(folder, str(step), reasons[step]) if move else "left in place"
        log.warning("%s: step %d is damaged (%s): %s, step %d is used", folder, step, reasons[step], place, good)


def make_room(folder: Path, step: int) -> None:
    """Before a step is saved, remove what an object store holds under its name: it is incomplete or in quarantine."""
    folders.make_room(folder, str(step))


def remove_unfinished(folder: Path, step: int) -> None:
    """Remove the files of a failed save of this step."""
    folders.remove_unfinished(folder, str(step), UNFINISHED)


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished saves and deletions and empty step folders. Only the writer that holds the lock may call it."""
    folders.remove_leftovers(folder, UNFINISHED, _is_step)


def flush_unfinished(folder: Path) -> None:
    """Flush a save that is about to be committed to the disk."""
    folders.flush_unfinished(folder, UNFINISHED)
