"""Checkpoints of a training run: the one module that knows Orbax.

A step is a folder with three Orbax items: `state` (the arrays), `meta` (what a reader needs to know) and `digest`
(shape, dtype and digest of every array); it gets its final name in one rename. Orbax has no checksum over array data,
so what is read back is compared with the digests before anybody sees it.

Built on `AsyncCheckpointer` and not on `CheckpointManager`: the manager lists a step before it is committed, skips a
save silently after a fallback, replaces an existing folder, and offers no hook after the commit (its
`post_finalization_callback` runs before the rename). The folders are the ones a `CheckpointManager` reads.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import StorageError, UserError
from bertjax.models import param_paths
from bertjax.parallel.multihost.primary import any_error, is_primary, run_on_primary
from bertjax.storage import atomic
from bertjax.training.checkpoint import layout
from bertjax.training.checkpoint.integrity import (
    CorruptStepError,
    check_digests,
    check_structure,
    seal,
    unwrap_prng_key,
    verify,
    wrap_prng_key,
)
from bertjax.training.checkpoint.locate import CheckpointRef
from bertjax.training.checkpoint.lock import WriterLock
from bertjax.training.checkpoint.orbax_event_loop import orbax_event_loop

log = logging.getLogger(__name__)

# Orbax logs each failure with its traceback besides raising it; ours are one line each.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)

# Signs that the machine failed and not the file: nothing is moved away for want of memory or of a permission.
_MACHINE_ERRORS = ("RuntimeError: RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "Permission denied", "Too many open files")


class CheckpointManager:
    """The checkpoints in one folder.

    A writer (the default) holds the folder's lock until `close`; a `read_only` one changes nothing on disk and may run
    beside a writer. Under several processes each makes its own and calls `save`, `restore`, `restore_params`, `wait`
    and `close` at the same points; `committed_steps`, `best_step` and `meta` only read files.

    `on_commit(step, seconds)` is called on process 0, from a background thread, once a step is on disk under its final
    name; `seconds` is the time since `save` was called. Raises UserError when another process writes here, StorageError
    when the folder cannot be written.

    `names`: {step: name of its folder} of steps that were copied to another name; there are then no others.
    """

    def __init__(
        self,
        folder: Path,
        policy: CheckpointPolicy,
        *,
        read_only: bool = False,
        on_commit: Callable[[int, float], None] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.policy = policy
        self.read_only = read_only
        self._names = dict(names or {})
        self._on_commit = on_commit
        self._verified: int | None = None  # the last step read back whole
        self._newest: int | None = None  # the last step saved or restored
        self._scores: dict[int, dict[str, float]] = {}
        self._saving: threading.Thread | None = None
        self._failure: Exception | None = None
        self._lock: WriterLock | None = None
        self._closed = False
        if not read_only:
            run_on_primary(self._open)
            # Called on process 0 when every file is written, before the rename.
            options = ocp.AsyncOptions(post_finalization_callback=lambda: layout.fsync_unfinished(self.folder))
            self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

    @classmethod
    def open_readonly(cls, found: CheckpointRef) -> "CheckpointManager":
        """The checkpoints that a person named, to read alone."""
        names = {found.step: found.name} if found.name and found.step is not None else None
        return cls(found.folder, CheckpointPolicy(), read_only=True, names=names)

    @property
    def path(self) -> Path:
        """The folder, or the step that was copied to another name."""
        return self._step_path(next(iter(self._names))) if self._names else self.folder

    def _step_path(self, step: int) -> Path:
        return self.folder / self._names.get(step, str(step))

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(self.folder)
            layout.remove_leftovers(self.folder)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be written: {error.strerror}") from error

    # ---- what there is ----

    def committed_steps(self) -> list[int]:
        """Steps that are complete on disk at this moment, oldest first."""
        return sorted(self._names) or layout.committed_steps(self.folder)

    def best_step(self, score: str, best_mode: str | None = None) -> int:
        """The step whose `score` is best, by `policy.best_mode` unless said; raises UserError when no step has it."""
        scores = {step: self._scores_of(step) for step in self.committed_steps()}
        found = layout.best_step(score, best_mode or self.policy.best_mode, scores)
        if found is None:
            there = ", ".join(sorted({name for of in scores.values() for name in of})) or "none"
            raise UserError(f"{self.folder}: no checkpoint has a score '{score}'; their scores: {there}")
        return found

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The meta data saved with a step (default: the newest whose meta data are sound). Raises like `restore`."""
        reasons: dict[int, str] = {}
        while True:
            candidate = self._choose(reasons, step)
            try:
                return self._items(candidate)[1]
            except CorruptStepError as error:
                reasons[candidate] = str(error)

    def _choose(self, reasons: Mapping[int, str], step: int | None) -> int:
        """The step named, or the newest one that is not found damaged."""
        if not self._names:
            return layout.select_step(self.folder, reasons, step)
        (alone,) = self._names
        if alone in reasons:
            raise UserError(f"{self._step_path(alone)}: damaged ({reasons[alone]}); copy it again")
        return alone

    # ---- saving ----

    def save(self, step: int, tree: Any, meta: Mapping[str, Any], scores: Mapping[str, float] | None = None) -> None:
        """Starts saving; returns when the arrays may change again, usually before the step is on disk.

        tree: any pytree of arrays (typed PRNG keys too). meta: JSON. scores: the evaluation of this very step, by names
        such as squad/f1; `add_scores` adds those that come later. Saving the step that was just saved or restored again
        does nothing. Raises DivergedError for non-finite arrays, StorageError when this save or the
        one before it could not be written, UserError when a newer step is there.
        """
        if self.read_only:
            raise ValueError("these checkpoints were opened read_only")
        started = time.monotonic()
        self.wait()
        if step == self._newest:
            return
        newest = run_on_primary(lambda: self.committed_steps()[-1:])
        if newest and newest[0] >= step:
            raise UserError(
                f"{self.folder}: step {newest[0]} is there, so step {step} cannot follow; "
                "to go on from an older step, move the newer ones away or choose another run.name"
            )
        leaves = param_paths.flatten(tree)
        meta_item, record = seal(str(self.folder / str(step)), step, leaves, meta, scores or {})
        try:
            self._writer.save(
                self.folder / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(
                        param_paths.unflatten({path: unwrap_prng_key(leaf) for path, leaf in leaves.items()})
                    ),
                    meta=ocp.args.JsonSave(meta_item),
                    digest=ocp.args.JsonSave(record),
                ),
            )
        except Exception as error:
            raise self._not_written(step, error)  # noqa: B904 - it has its cause
        self._newest = step
        self._scores[step] = record["scores"]
        self._saving = threading.Thread(target=self._finish, args=(step, started), name="checkpoint_commit")
        self._saving.start()

    def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds the scores of a step whose evaluations ended after `save` was called, once it is on disk.

        Returns at once; what goes wrong is raised like the failure of a save.
        """
        self._scores[step] = dict(scores)
        arguments = (self._saving, step, dict(scores))
        self._saving = threading.Thread(target=self._add_scores, args=arguments, name="checkpoint_scores")
        self._saving.start()

    def _add_scores(self, saving: threading.Thread | None, step: int, scores: Mapping[str, float]) -> None:
        if saving is not None:
            saving.join()
        if self._failure is not None or not is_primary():
            return
        try:
            layout.write_scores(self.folder, step, scores)
            self._remove_old()
        except OSError as error:
            where = self.folder / str(step)
            self._failure = StorageError(f"{where}: its scores could not be written: {error.strerror}")
        except Exception as error:
            self._failure = error

    def _finish(self, step: int, started: float) -> None:
        """The thread of one save. What it raises is raised by the next call of the main thread."""
        try:
            self._writer.wait_until_finished()
            if is_primary():
                if step not in self.committed_steps():
                    raise OSError("it is not there after the commit")
                atomic.fsync_path(self.folder)
        except Exception as error:
            self._failure = self._not_written(step, error)
            return
        try:
            if is_primary():
                if self._on_commit:
                    self._on_commit(step, time.monotonic() - started)
                self._remove_old()
        except Exception as error:
            self._failure = error

    def _remove_old(self) -> None:
        steps = self.committed_steps()
        scores = {step: self._scores_of(step) for step in steps} if self.policy.keep_best else {}
        for step in set(steps) - layout.steps_to_keep(self.policy, steps, scores, self._verified):
            try:
                layout.delete(self.folder, step)
            except OSError as error:
                log.warning("%s: step %d could not be removed: %s", self.folder, step, error.strerror)

    def scores(self, step: int) -> dict[str, float]:
        """Of the evaluations of a step, by names such as squad/f1; the same on every process."""
        return dict(run_on_primary(lambda: self._scores_of(step)))

    def _scores_of(self, step: int) -> dict[str, float]:
        if step not in self._scores:
            try:
                added = layout.read_scores(self._step_path(step))
                self._scores[step] = self._items(step)[0]["scores"] | (added or {})
            except (CorruptStepError, StorageError, UserError):
                return {}
        return self._scores[step]

    def wait(self) -> None:
        """Returns when the last save is on disk and old steps are gone; raises StorageError when it is not."""
        failure = self._join()
        reason = any_error(str(failure) if failure else None)
        if failure or reason:
            raise failure or StorageError(str(reason))

    def _join(self) -> Exception | None:
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        failure, self._failure = self._failure, None
        return failure

    def _not_written(self, step: int, error: Exception) -> Exception:
        self._newest = None
        if is_primary():
            layout.remove_unfinished(self.folder, step)
        if isinstance(error, jax.errors.JaxRuntimeError):  # another process is gone: not the disk's fault
            return error
        found = StorageError(f"{self.folder / str(step)}: could not be written: {_one_line(error)}")
        found.__cause__ = error
        return found

    def close(self) -> None:
        """Waits for the last save and lets another writer in; raises StorageError when that save failed."""
        if self.read_only or self._closed:
            return
        self._closed = True
        try:
            if failure := self._join():  # not `wait`: the other processes may be gone
                raise failure
            self._writer.close()
        finally:
            if self._lock:
                self._lock.release()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            log.warning("%s", failure)  # the error on its way out matters more

    # ---- restoring ----

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
        """Reads a step back, checked against its digests: (step, tree, meta).

        abstract: a pytree of ShapeDtypeStruct with the shardings wanted, on any devices; its structure is the result's.
        Or a function of the step and its meta data that gives it, where the saved structure depends on these.
        Without `step` the newest good one: a damaged one is passed over with one warning line and, unless read_only,
        moved to quarantine/. Raises StorageError when every step is damaged (nothing is moved then); UserError when
        there is none, when the step named is damaged or missing, and when the arrays do not fit `abstract`.
        """
        return self._restore(abstract, step, "")

    def restore_params(self, abstract_params: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
        """Like `restore`, for the subtree "params" alone: no other array is read from disk."""
        return self._restore(abstract_params, step, "params")

    def _restore(self, abstract: Any, step: int | None, subtree: str) -> tuple[int, Any, dict[str, Any]]:
        if not self.read_only:
            self.wait()
        reasons: dict[int, str] = {}
        while True:
            candidate = run_on_primary(lambda: self._choose(reasons, step))
            items = run_on_primary(partial(self._items_or_reason, candidate))
            if isinstance(items, str):
                reasons[candidate] = items
                continue
            record, meta = items
            like = abstract(candidate, meta) if callable(abstract) else abstract
            wanted = param_paths.flatten(like)
            try:
                leaves = self._read(candidate, wanted, subtree, record)
                break
            except CorruptStepError as error:
                reasons[candidate] = str(error)
        run_on_primary(lambda: layout.quarantine(self.folder, reasons, candidate, move=not self.read_only))
        if not self.read_only:
            self._newest, self._verified = candidate, candidate
        tree = jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in wanted])
        return candidate, tree, meta

    def _read(self, step: int, wanted: Mapping[str, Any], subtree: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """One step's arrays by path. Raises Damaged, StorageError, or UserError for a misfit."""
        where = str(self._step_path(step))
        prefix = f"{subtree}/" if subtree else ""
        saved = {p.removeprefix(prefix): leaf for p, leaf in record["leaves"].items() if p.startswith(prefix)}
        check_structure(where, prefix, saved, wanted)
        data: dict[str, Any] = {}
        reason = None
        try:
            data = self._read_arrays(step, wanted, prefix)
        except Exception as error:  # Orbax and tensorstore raise anything from KeyError to bare Exception
            reason = _one_line(error)
        if reason := any_error(reason):
            raise _classify_error(reason, where)
        leaves = {path: wrap_prng_key(leaf, wanted[path]) for path, leaf in data.items()}
        check_digests(prefix, saved, leaves)
        return leaves

    def _read_arrays(self, step: int, wanted: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Through the handler, which waits for no other process: one that fails cannot leave the others hanging."""
        target = param_paths.unflatten({f"{prefix}{path}": unwrap_prng_key(leaf) for path, leaf in wanted.items()})
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        with orbax_event_loop():
            read = ocp.PyTreeCheckpointHandler().restore(epath.Path(self._step_path(step) / "state"), args=arguments)
        found = param_paths.flatten(read)
        return {path: found[f"{prefix}{path}"] for path in wanted}

    def _items(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The (record, meta) of a step; raises Damaged, StorageError or UserError."""
        where = self._step_path(step)
        try:
            handler = ocp.JsonCheckpointHandler()
            meta_item, record = (handler.restore(epath.Path(where / name)) for name in ("meta", "digest"))
            return verify(str(where), step, meta_item, record)
        except (CorruptStepError, UserError):
            raise
        except Exception as error:
            raise _classify_error(_one_line(error), str(where)) from error

    def _items_or_reason(self, step: int) -> tuple[dict[str, Any], dict[str, Any]] | str:
        try:
            return self._items(step)
        except CorruptStepError as error:
            return str(error)


def _classify_error(reason: str, where: str) -> Exception:
    if any(sign in reason for sign in _MACHINE_ERRORS):
        return StorageError(f"{where}: could not be read: {reason}")
    return CorruptStepError(reason)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:160]
