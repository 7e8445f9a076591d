"""Finding checkpoints: a person may name a run folder, a stage's checkpoint folder or a single step.

Each is known by its content. A step, or the folder of a stage, that was copied out of its run opens by itself.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertjax.config.loading.step_meta import is_checkpoint_step, list_steps, read_meta, read_meta_item
from bertjax.errors import UserError
from bertjax.storage.locations import local_path


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint folder, the step that was named if one was, and the name of its folder where it is not the number.

    Without such a name `folder` holds the steps of one stage.
    """

    folder: Path
    step: int | None
    name: str | None = None
    meta_item: Any = field(default=None, compare=False, repr=False)  # of the step that was named, as read to find it

    @property
    def path(self) -> Path:
        """The folder of the step that was named, else that of the stage."""
        return self.folder if self.step is None else self.folder / (self.name or str(self.step))


def stage_folder(run_dir: Path, index: int, name: str) -> Path:
    return run_dir / "checkpoints" / f"{index:02d}-{name}"


def find(path: str | Path, *, stage: str | None = None, step: int | None = None) -> CheckpointRef:
    """Resolve `path`; in a run folder the last stage that has a checkpoint, or the one named `stage`.

    Raises UserError when there is no checkpoint, or when `path` has decided on another stage or step already.
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
    stages = [p for p in folders if has_steps(p)]
    if not stages:
        raise UserError(f"{path}: holds no checkpoint; is it a run folder, and has the run saved one yet?")
    if stage is None:
        return CheckpointRef(stages[-1], step)
    wanted = [p for p in stages if p.name[3:] == stage]
    if not wanted:
        names = ", ".join(p.name[3:] for p in stages)
        raise UserError(f"{path}: stage '{stage}' has no checkpoint; there are: {names}")
    return CheckpointRef(wanted[0], step)


def _stage_folders(path: Path) -> list[Path]:
    """The folders of stages in a run folder, or in its folder `checkpoints`, wherever that was copied to."""
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
    """The stage whose steps a folder holds, as its newest one says; None where that cannot be read."""
    try:
        return read_meta(folder / str(list_steps(folder)[-1])).get("stage_name")
    except (UserError, IndexError):
        return None


def has_steps(folder: Path) -> bool:
    return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def find_run_dir(folder: Path) -> Path | None:
    """The run folder that a stage's checkpoint folder is in; None for one that was copied out of its run."""
    for place in (folder, folder.resolve()):
        run = place.parent.parent
        if place.parent.name == "checkpoints" and (
            (run / "config.yaml").is_file() or (run / "metrics.jsonl").is_file()
        ):
            return run
    return None


def results_folder(found: CheckpointRef) -> tuple[Path, bool]:
    """Where evaluations of a checkpoint are kept -> (folder, whether it is the checkpoint's run folder).

    Of a checkpoint outside of a run, or in one that cannot be written: NAME-evaluation beside it, or in the current
    folder where there is no writing either; never inside the step.
    """
    run = find_run_dir(found.folder)
    if run is not None and os.access(run, os.W_OK):
        return run, True
    copied = found.path.absolute() if run is None else run.absolute()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", copied.name).lstrip("._-")[:50] or "checkpoint"
    parent = copied.parent if os.access(copied.parent, os.W_OK) else Path.cwd()
    return parent / f"{name}-evaluation", False
