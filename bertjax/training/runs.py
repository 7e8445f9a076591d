"""Finding checkpoints: what a person may name is a run folder, a stage's checkpoint folder or a single step."""

from dataclasses import dataclass
from pathlib import Path

from bertjax.config.locations import local_path
from bertjax.errors import UserError


@dataclass(frozen=True)
class Found:
    """A stage's checkpoint folder and the step that was named, if one was."""

    folder: Path
    step: int | None


def stage_folder(run_dir: Path, index: int, name: str) -> Path:
    return run_dir / "checkpoints" / f"{index:02d}-{name}"


def find(path: str | Path, *, stage: str | None = None, step: int | None = None) -> Found:
    """Resolve `path`; in a run folder the last stage that has a checkpoint, or the one named `stage`.

    Raises UserError when there is no checkpoint.
    """
    path = local_path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder, a stage's checkpoint folder or one of its steps")
    if path.name.isdigit() and path.parent.parent.name == "checkpoints":
        return Found(path.parent, int(path.name))
    if path.parent.name == "checkpoints":
        return Found(path, step)
    stages = sorted(p for p in (path / "checkpoints").glob("[0-9][0-9]-*") if has_steps(p))
    if not stages:
        raise UserError(f"{path}: holds no checkpoint; is it a run folder, and has the run saved one yet?")
    if stage is None:
        return Found(stages[-1], step)
    wanted = [p for p in stages if p.name[3:] == stage]
    if not wanted:
        names = ", ".join(p.name[3:] for p in stages)
        raise UserError(f"{path}: stage '{stage}' has no checkpoint; there are: {names}")
    return Found(wanted[0], step)


def has_steps(folder: Path) -> bool:
    return any(p.name.isdigit() for p in folder.iterdir())


def run_of(folder: Path) -> Path:
    """The run folder that a stage's checkpoint folder lies in."""
    return folder.parent.parent
