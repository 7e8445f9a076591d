"""Find checkpoints by a run folder, a stage's checkpoint folder or a single step, told apart by their contents."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertjax.config.loading.step_meta import is_checkpoint_step, list_steps, read_meta, read_meta_item
from bertjax.errors import UserError
from bertjax.storage import folders, remote
from bertjax.storage.locations import local_path


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint folder with the steps of one stage, or the folder above a step that was copied to another `name`."""

    folder: Path
    step: int | None  # that was named
    name: str | None = None  # of the step's folder, where it is not the number
    meta_item: Any = field(default=None, compare=False, repr=False)  # of the step that was named, as read to find it

    @property
    def path(self) -> Path:
        """The folder of the step that was named, else that of the stage."""
        return self.folder if self.step is None else self.folder / (self.name or str(self.step))


def stage_folder(run_dir: Path, index: int, name: str) -> Path:
    return run_dir / "checkpoints" / f"{index:02d}-{name}"


def find(path: str | Path, *, stage: str | None = None, step: int | None = None) -> CheckpointRef:
    """Resolve `path`; in a run folder to the last stage that has a checkpoint, or to `stage`.

    Raises UserError when there is no checkpoint, or when `path` is another stage or step.
    """
    path = local_path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder, a stage's checkpoint folder or one of its steps")
    if path.name in ("", ".."):
        path = path.resolve()
    if is_checkpoint_step(path):
        return _named_step(path, stage, step)
    folders = _stage_folders(path)
    if list_steps(path) or (not folders and path.parent.name == "checkpoints"):
        if stage is not None and (there := _stage_name(path)) not in (None, stage):
            raise UserError(f"{path}: holds stage '{there}' alone; leave out --stage, or name the run folder")
        return CheckpointRef(path, step)
    stages = [p for p in folders if p.is_dir() and any(entry.name.isdecimal() for entry in p.iterdir())]
    if not stages:
        raise UserError(f"{path}: holds no checkpoint; is it a run folder, and has the run saved one yet?")
    if stage is None:
        return CheckpointRef(stages[-1], step)
    names = [p.name[3:] for p in stages]
    if stage not in names:
        raise UserError(f"{path}: stage '{stage}' has no checkpoint; there are: {', '.join(names)}")
    return CheckpointRef(stages[names.index(stage)], step)


def find_remote(
    url: str, *, stage: str | None = None, step: int | None = None, best_step: Callable[[Path], int] | None = None
) -> str | None:
    """The folder, relative to a run or a stage in an object store, of the step asked for; None if none is.

    best_step: gives the step of a stage's folder. Raises UserError when there is none, StorageError for a store out of
    reach.
    """
    if stage is None and step is None and best_step is None:
        return None
    root = remote.as_path(url.rstrip("/"))
    above = {name: folders.list_folders(root / name, _is_stage) for name in ("checkpoints", ".")}
    places = [root / place / name for place, names in above.items() for name in sorted(names)]
    if not places and root.parent.name == "checkpoints":
        places = [root]
    steps = {place: list_complete_steps(place) for place in places}
    places = [place for place in places if steps[place]]
    if not places:
        return None  # a step, a Hugging Face folder, or nothing: the copy shows it
    named = [place for place in places if stage in (None, place.name[3:])]
    if not named:
        there = ", ".join(place.name[3:] for place in places)
        raise UserError(f"{url}: stage '{stage}' has no checkpoint; there are: {there}")
    chosen = named[-1]
    if best_step is not None and step is None:
        step = best_step(chosen)
    if step is not None and step not in steps[chosen]:
        there = ", ".join(map(str, steps[chosen][-8:]))
        raise UserError(f"{chosen}: there is no step {step}; complete steps: {there}")
    return f"{chosen}/{steps[chosen][-1] if step is None else step}".removeprefix(f"{root}/")


def find_stage_names(run: Path) -> list[str]:
    """The names of the stages that have a complete checkpoint in a run folder, local or in an object store."""
    return [folder.name[3:] for folder in stage_folders(run) if list_complete_steps(folder)]


def stage_folders(run: Path) -> list[Path]:
    """The folders with the checkpoints of each stage of a run, local or in an object store, in order."""
    above = run / "checkpoints"
    return [above / name for name in sorted(folders.list_folders(above, _is_stage))]


def list_complete_steps(folder: Path) -> list[int]:
    """The complete steps of a stage, on disk or in an object store, oldest first."""
    return sorted(map(int, folders.complete_folders(folder, lambda name: name.isascii() and name.isdigit())))


def _is_stage(name: str) -> bool:
    return re.fullmatch(r"\d\d-.+", name) is not None


def _stage_folders(path: Path) -> list[Path]:
    """The stage folders in a run folder, or in its folder `checkpoints`."""
    places = (path / "checkpoints", path)
    return next((found for place in places if (found := sorted(place.glob("[0-9][0-9]-*")))), [])


def _named_step(path: Path, stage: str | None, step: int | None) -> CheckpointRef:
    item = read_meta_item(path)
    meta = item["meta"]
    own, trained = meta["step"], meta.get("stage_name")
    if step not in (None, own):
        raise UserError(f"{path}: is step {own}; leave out --step {step}, or name the folder above it")
    if stage not in (None, trained):
        raise UserError(f"{path}: is a step of stage '{trained}'; leave out --stage {stage}, or name the run folder")
    if path.is_symlink() and find_run_dir(path.resolve().parent):
        path = path.resolve()
    return CheckpointRef(path.parent, own, None if path.name == str(own) else path.name, item)


def _stage_name(folder: Path) -> str | None:
    """The stage whose steps a folder holds, from its newest step; None if that cannot be read."""
    try:
        return read_meta(folder / str(list_steps(folder)[-1])).get("stage_name")
    except (UserError, IndexError):
        return None


def find_run_dir(folder: Path) -> Path | None:
    """The run folder that a stage's checkpoint folder is in; None for one that was copied out of its run."""
    for place in (folder, folder.resolve()):
        run, files = place.parent.parent, ("config.yaml", "metrics.jsonl")
        if place.parent.name == "checkpoints" and any((run / file).is_file() for file in files):
            return run
    return None


def results_folder(found: CheckpointRef) -> tuple[Path, bool]:
    """Where evaluations of a checkpoint are written -> (folder, whether it is the checkpoint's run folder).

    Without a writable run folder: NAME-evaluation beside the checkpoint, or in the current folder.
    """
    run = find_run_dir(found.folder)
    if run is not None and os.access(run, os.W_OK):
        return run, True
    return lone_results_folder(found.path.absolute() if run is None else run.absolute()), False


def lone_results_folder(copied: Path, parent: Path | None = None) -> Path:
    """NAME-evaluation in `parent`, or beside a folder that evaluations do not write to, or in the current folder."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", copied.name).lstrip("._-")[:50] or "checkpoint"
    beside = copied.parent if os.access(copied.parent, os.W_OK) else Path.cwd()
    return (parent or beside) / f"{name}-evaluation"
