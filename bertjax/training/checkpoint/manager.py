"""Write the checkpoints of a training run in the background and remove old steps."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax

from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import BertjaxError, StorageError, UserError, brief
from bertjax.models import param_paths
from bertjax.parallel.multihost import kv_store
from bertjax.parallel.multihost.primary import any_error, is_multiprocess, is_primary, run_on_primary
from bertjax.progress import reporter
from bertjax.storage import folders
from bertjax.training.checkpoint import fits, layout, orbax_io
from bertjax.training.checkpoint.fits import Fits
from bertjax.training.checkpoint.integrity import seal
from bertjax.training.checkpoint.lock import Lock, lock_folder
from bertjax.training.checkpoint.reader import CheckpointReader, one_line

log = logging.getLogger(__name__)
POLL_SECONDS = 2.0  # between two looks whether another process has failed to write its part
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")  # in the middle of long messages


class CheckpointManager:
    """The writer of the checkpoints in one folder; it holds the folder's lock until `close`.

    With several processes each makes its own and calls `save`, `restore`, `wait` and `close` at the same points.
    `before_commit()` is called on process 0, in a background thread, before a step or its scores can be seen,
    `on_commit(step, seconds since save)` once a step is there. Raises UserError when another process writes here,
    StorageError when the folder cannot be written.
    """

    def __init__(
        self,
        reader: CheckpointReader | Path,
        policy: CheckpointPolicy,
        *,
        before_commit: Callable[[], None] | None = None,
        on_commit: Callable[[int, float], None] | None = None,
    ) -> None:
        self.reader = reader if isinstance(reader, CheckpointReader) else CheckpointReader(reader)
        self.folder = self.reader.folder
        self.policy = policy
        self._before_commit, self._on_commit = before_commit, on_commit
        self._verified: int | None = None  # the last step restored, every array checked
        self._newest: int | None = None  # the last step saved or restored
        self._saving: threading.Thread | None = None
        self._failure: Exception | None = None
        self._lock: Lock | None = None
        self._closed = self._abandoned = False
        run_on_primary(self._open)
        self._writer = orbax_io.open_writer(self._prepare_commit)

    def _open(self) -> None:
        try:
            folders.make_folder(self.folder)
            self._lock = lock_folder(self.folder)
            layout.remove_leftovers(self.folder)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be written: {error.strerror}") from error

    def _prepare_commit(self) -> None:
        """Called on process 0, in a background thread, once every file of a step is written."""
        layout.flush_unfinished(self.folder)
        if self._before_commit:
            self._before_commit()
        if self._lock:
            self._lock.check()

    def committed_steps(self) -> list[int]:
        """Steps that are complete on disk at this moment, oldest first."""
        return self.reader.committed_steps()

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
        """`CheckpointReader.restore` after the last save is on disk; damaged steps are moved to quarantine/."""
        self.wait()
        found = self.reader.restore(abstract, step, move_damaged=True)
        self._newest = self._verified = found[0]
        return found

    def save(self, step: int, tree: Any, meta: Mapping[str, Any], scores: Mapping[str, float] | None = None) -> None:
        """Start saving a pytree of arrays, JSON meta data and scores; return when the arrays may change again.

        Saving the step that was just saved or restored does nothing. Raises DivergedError for non-finite arrays,
        StorageError when this save or the previous one could not be written, UserError when a newer step exists.
        """
        started = time.monotonic()
        self.wait()
        if step == self._newest:
            return
        newest = run_on_primary(partial(self._make_room, step))
        if newest and newest[0] >= step:
            raise UserError(
                f"{self.folder}: step {newest[0]} is there, so step {step} cannot follow; "
                "to go on from an older step, move the newer ones away or choose another run.name"
            )
        leaves = param_paths.flatten(tree)
        with reporter.task(f"saving step {step} of {self.folder.name}: computing digests", finish=False):
            meta_item, record = seal(str(self.folder / str(step)), step, leaves, meta, scores or {})
        self.reader.forget()
        task = reporter.task(f"saving step {step} of {self.folder.name}: copying off the devices", finish=False)
        try:
            with task:
                orbax_io.start_save(self._writer, self.folder / str(step), leaves, meta_item, record)
        except Exception as error:
            raise self._not_written(step, error)  # noqa: B904 - it has its cause
        self._newest = step
        self.reader.scores[step] = record["scores"]
        self._saving = threading.Thread(target=self._finish, args=(step, started), name="checkpoint_commit")
        self._saving.start()

    def _make_room(self, step: int) -> list[int]:
        """The newest step, if any; where it is older than `step`, nothing incomplete is left in the place of `step`."""
        if self._lock:
            self._lock.check()
        newest = self.committed_steps()[-1:]
        if not newest or newest[0] < step:
            layout.make_room(self.folder, step)
        return newest

    def add_scores(self, step: int, scores: Mapping[str, float], fitted: Fits | None = None) -> None:
        """Add scores of a step after `save`, and what its evaluations fitted, in the background.

        Failures are raised like those of a save.
        """
        self.reader.scores[step] = dict(scores)
        arguments = (self._saving, step, dict(scores), fitted or {})
        self._saving = threading.Thread(target=self._add_scores, args=arguments, name="checkpoint_scores")
        self._saving.start()

    def _add_scores(
        self, saving: threading.Thread | None, step: int, scores: Mapping[str, float], fitted: Fits
    ) -> None:
        if saving is not None:
            saving.join()
        if self._failure is not None or not is_primary():
            return
        try:
            if self._before_commit:
                self._before_commit()
            if self._lock:
                self._lock.check()
            if fitted:  # before the scores, which say that the evaluations of a step are done
                fits.write_fits(self.folder / str(step), fitted)
            layout.write_scores(self.folder, step, scores)
            self._remove_old()
        except OSError as error:
            where = self.folder / str(step)
            self._failure = StorageError(f"{where}: its scores could not be written: {error.strerror}")
        except Exception as error:
            self._failure = error

    def _finish(self, step: int, started: float) -> None:
        """Finish one save in a thread; its failure is raised by the next call of the main thread."""
        try:
            orbax_io.finish_save(self._writer)
            if is_primary():
                if step not in self.committed_steps():
                    raise OSError("it is not there after the commit")
                folders.flush_names(self.folder)
        except Exception as error:
            self._failure = self._not_written(step, error)
            self._tell_others(step)
            return
        try:
            if is_primary():
                if self._on_commit:
                    self._on_commit(step, time.monotonic() - started)
                self._remove_old()
        except Exception as error:
            self._failure = error

    def _tell_others(self, step: int) -> None:
        """Let the others know that this process has not written a step: they wait for it in barriers of Orbax."""
        if is_multiprocess():
            with suppress(jax.errors.JaxRuntimeError):  # another one was first, or the coordinator is gone
                kv_store.put(self._failure_key(step), str(self._failure))

    def _failure_key(self, step: int) -> str:
        return f"save_failed/{self.folder.name}/{step}"

    def _remove_old(self) -> None:
        steps = self.committed_steps()
        scores = {step: self.reader.scores_of(step) for step in steps} if self.policy.keep_best else {}
        for step in set(steps) - layout.steps_to_keep(self.policy, steps, scores, self._verified):
            try:
                layout.delete(self.folder, step)
            except (OSError, BertjaxError) as error:
                log.warning("%s: step %d could not be removed: %s", self.folder, step, brief(error))

    def set_aside(self, step: int, reason: str) -> str:
        """Move `step` and later ones to quarantine/, unless no older one is there -> what is left, for a message."""
        self.wait()
        return str(run_on_primary(partial(self._set_aside, step, reason)))

    def _set_aside(self, step: int, reason: str) -> str:
        steps = self.committed_steps()
        older, doubtful = [s for s in steps if s < step], [s for s in steps if s >= step]
        if not doubtful:
            return f"the last checkpoint, step {older[-1]}, is good" if older else "there is no checkpoint"
        names = ", ".join(map(str, doubtful))
        if not older:
            return f"no checkpoint is from before that: step {names} may be the cause"
        for each in doubtful:
            folders.quarantine_folder(self.folder, str(each), reason)
        self._newest = None
        return f"step {names} was moved to quarantine/, and the last checkpoint, step {older[-1]}, is good"

    def scores(self, step: int) -> dict[str, float]:
        """The scores of a step, {"squad/f1": ...}; the same on every process."""
        return dict(run_on_primary(lambda: self.reader.scores_of(step)))

    def wait(self) -> None:
        """Wait until the last save is on disk and old steps are removed; raises StorageError when that failed."""
        with reporter.task(f"{self.folder.name}: writing the last checkpoint to disk", finish=False):
            failure = self._join()
        reason = any_error(str(failure) if failure else None)
        if failure or reason:
            raise failure or StorageError(str(reason))

    def _join(self) -> Exception | None:
        while self._saving is not None:
            self._saving.join(None if not is_multiprocess() else POLL_SECONDS)
            if not self._saving.is_alive():
                self._saving = None
            elif self._newest is not None and (said := kv_store.try_get(self._failure_key(self._newest))):
                self._saving, self._abandoned = None, True
                return StorageError(said)
        failure, self._failure = self._failure, None
        return failure

    def _not_written(self, step: int, error: Exception) -> Exception:
        self._newest = None
        if is_primary() and self._lock and self._lock.is_held():  # else another writer's
            layout.remove_unfinished(self.folder, step)
        if isinstance(error, BertjaxError | jax.errors.JaxRuntimeError):  # another process has ended, or took over
            return error
        full = next((reason for reason in _FULL if reason in str(error)), None)
        reason = f"{full}; make room and run the same command again" if full else one_line(error)
        found = StorageError(f"{self.folder / str(step)}: could not be written: {reason}")
        found.__cause__ = error
        return found

    def close(self) -> None:
        """Wait for the last save and release the lock; raises StorageError when that save failed."""
        if self._closed:
            return
        self._closed = True
        try:
            with reporter.task(f"{self.folder.name}: writing the last checkpoint to disk", finish=False):
                failure = self._join()  # not `wait`: the other processes may have ended
            if failure:
                raise failure
            if not self._abandoned:  # it waits for another process that has failed
                self._writer.close()
        finally:
            if self._lock:
                self._lock.release()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            log.warning("%s", failure)  # `error` is raised
