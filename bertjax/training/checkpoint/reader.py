"""Read the checkpoints of one folder and compare them with their digests: Orbax has no checksum over array data."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from bertjax.config.loading.load import build_saved
from bertjax.config.schema.run import Config
from bertjax.errors import StorageError, UserError
from bertjax.models import param_paths
from bertjax.parallel.multihost.primary import any_error, run_on_primary
from bertjax.progress import reporter
from bertjax.progress.text import size
from bertjax.storage import folders
from bertjax.training.checkpoint import integrity, layout, orbax_io
from bertjax.training.checkpoint.integrity import CorruptStepError
from bertjax.training.checkpoint.locate import CheckpointRef

# Errors of the machine and not of the file, for which a step is not quarantined.
_MACHINE_ERRORS = ("RuntimeError: RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "Permission denied", "Too many open files")

VERIFY_BYTES = 1 << 30  # that `verify` reads at a time


class CheckpointReader:
    """Reader of the checkpoints in one folder, or of the one step that a reference names; may run beside a writer.

    With several processes each makes its own; `restore` and `restore_params` are collective. Meta data and digests of
    the last step read are cached.
    """

    def __init__(self, found: CheckpointRef | Path) -> None:
        ref = found if isinstance(found, CheckpointRef) else CheckpointRef(found, None)
        self.folder = folders.absolute(ref.folder)
        self.ref = replace(ref, folder=self.folder)
        self.scores: dict[int, dict[str, float]] = {}  # by step, as far as known
        self._items: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}  # record and meta data of one step
        self._config: tuple[dict[str, Any], Config] | None = None

    @property
    def path(self) -> Path:
        """The folder, or the step that was copied to another name."""
        return self.ref.path if self.ref.name else self.folder

    def step_path(self, step: int) -> Path:
        return self.path if self.ref.name else self.folder / str(step)

    def committed_steps(self) -> list[int]:
        """Steps that are complete on disk, oldest first."""
        return [self.ref.step] if self.ref.name and self.ref.step is not None else layout.committed_steps(self.folder)

    def best_step(self, score: str, best_mode: str = "auto") -> int:
        """The step with the best `score`; raises UserError when no step has it."""
        scores = {step: self.scores_of(step) for step in self.committed_steps()}
        found = layout.best_step(score, best_mode, scores)
        if found is None:
            known = ", ".join(sorted({name for of in scores.values() for name in of})) or "none"
            raise UserError(f"{self.folder}: no checkpoint has a score '{score}'; their scores: {known}")
        return found

    def scores_of(self, step: int) -> dict[str, float]:
        """The scores of a step, {"squad/f1": ...}; none if they cannot be read."""
        if step not in self.scores:
            try:
                added = layout.read_scores(self.step_path(step))
                self.scores[step] = self.items(step)[0]["scores"] | (added or {})
            except (CorruptStepError, StorageError, UserError):
                return {}
        return self.scores[step]

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The meta data of a step (default: the one named, else the newest sound one). Raises like `restore`."""
        reasons: dict[int, str] = {}
        while True:
            candidate = self._choose(reasons, self.ref.step if step is None else step)
            try:
                return self.items(candidate)[1]
            except CorruptStepError as error:
                reasons[candidate] = str(error)

    def config(self, step: int | None = None) -> Config:
        """The configuration in the meta data of a step."""
        meta = self.meta(step)
        if self._config is None or self._config[0] is not meta:
            self._config = meta, build_saved(meta["config"], where=str(self.ref.path))
        return self._config[1]

    def _choose(self, reasons: Mapping[int, str], step: int | None) -> int:
        """The step named, or the newest one not known to be damaged."""
        if not self.ref.name or self.ref.step is None:
            return layout.select_step(self.folder, reasons, step)
        if self.ref.step in reasons:
            raise UserError(f"{self.path}: damaged ({reasons[self.ref.step]}); copy it again")
        return self.ref.step

    def items(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The (record, meta) of a step; raises CorruptStepError, StorageError or UserError."""
        if found := self._items.get(step):
            return found
        where = self.step_path(step)
        try:
            named = self.ref.meta_item if step == self.ref.step else None
            meta_item, record = named or orbax_io.read_json(where, "meta"), orbax_io.read_json(where, "digest")
            found = integrity.verify(str(where), step, meta_item, record)
        except (CorruptStepError, UserError):
            raise
        except Exception as error:
            raise classify_error(one_line(error), str(where)) from error
        self._items = {step: found}
        return found

    def forget(self) -> None:
        """Clear the cache: a step was damaged, or is about to be written."""
        self._items = {}

    def _items_or_reason(self, step: int) -> tuple[dict[str, Any], dict[str, Any]] | str:
        try:
            return self.items(step)
        except CorruptStepError as error:
            return str(error)

    def restore(
        self, abstract: Any, step: int | None = None, subtree: str = "", *, move_damaged: bool = False
    ) -> tuple[int, Any, dict[str, Any]]:
        """Read a step (default: the newest good one) and compare it with its digests -> (step, tree, meta data).

        abstract: a pytree of ShapeDtypeStruct with the shardings wanted, or a function of the step and its meta data
        that gives one. Damaged steps are skipped with a warning and, with `move_damaged`, moved to quarantine/. Raises
        StorageError when every step is damaged; UserError when there is none, when the step named is damaged or
        missing, and when the arrays do not fit `abstract`.
        """
        step = self.ref.step if step is None else step
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
                self.forget()
        run_on_primary(lambda: layout.quarantine(self.folder, reasons, candidate, move=move_damaged))
        tree = jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in wanted])
        return candidate, tree, meta

    def restore_params(self, abstract_params: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
        """Like `restore`, but read only the subtree "params"."""
        return self.restore(abstract_params, step, "params")

    def verify(self, step: int) -> tuple[int, int]:
        """Read all arrays of a step, some at a time, and compare them with their digests -> (arrays, bytes).

        Raises CorruptStepError, StorageError or UserError; not collective.
        """
        record, _ = self.items(step)
        wanted = {path: integrity.abstract_leaf(shape, dtype) for path, (shape, dtype, _) in record["leaves"].items()}
        group: dict[str, Any] = {}
        for path, leaf in wanted.items():
            group[path] = leaf
            if layout.num_bytes(group) >= VERIFY_BYTES:
                self._read(step, group, "", {"leaves": {name: record["leaves"][name] for name in group}})
                group = {}
        self._read(step, group, "", {"leaves": {name: record["leaves"][name] for name in group}})
        return len(wanted), layout.num_bytes(wanted)

    def _read(self, step: int, wanted: Mapping[str, Any], subtree: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Read one step's arrays by path. Raises CorruptStepError, StorageError, or UserError if they do not fit."""
        where = str(self.step_path(step))
        prefix = f"{subtree}/" if subtree else ""
        saved = {p.removeprefix(prefix): leaf for p, leaf in record["leaves"].items() if p.startswith(prefix)}
        integrity.check_structure(where, prefix, saved, wanted)
        data: dict[str, Any] = {}
        reason = None
        try:
            total = layout.num_bytes(wanted)
            with reporter.task(f"restoring step {step} of {self.folder.name} ({size(total)})"):
                data = orbax_io.read_arrays(self.step_path(step), wanted, prefix)
        except Exception as error:  # Orbax and tensorstore raise anything from KeyError to bare Exception
            reason = one_line(error)
        if reason := any_error(reason):
            raise classify_error(reason, where)
        leaves = {path: integrity.wrap_prng_key(leaf, wanted[path]) for path, leaf in data.items()}
        integrity.check_digests(prefix, saved, leaves)
        return leaves


def classify_error(reason: str, where: str) -> Exception:
    if any(sign in reason for sign in _MACHINE_ERRORS):
        return StorageError(f"{where}: could not be read: {reason}")
    return CorruptStepError(reason)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:160]
