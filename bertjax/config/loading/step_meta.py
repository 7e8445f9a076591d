"""What a checkpoint step says of itself, read without jax: a step is known by its content, whatever its name and place.

training/checkpoint/manager.py writes a step as three folders: `state` (the arrays), `meta` and `digest` (JSON).
"""

import json
from pathlib import Path
from typing import Any

from bertjax.errors import UserError

PARTS = ("state", "meta", "digest")


def is_checkpoint_step(folder: Path) -> bool:
    """Whether a folder is a checkpoint step. One that lost a part is a step too, so that this part can be named."""
    try:
        return sum((folder / part).is_dir() for part in PARTS) >= 2
    except OSError:
        return False


def list_steps(folder: Path) -> list[int]:
    """Numbers of the steps that a stage's checkpoint folder holds, oldest first."""
    try:
        names = [p.name for p in folder.iterdir() if p.name.isascii() and p.name.isdigit() and is_checkpoint_step(p)]
    except OSError:
        return []
    return sorted(int(name) for name in names if name == str(int(name)))


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta data of a step: config, stage, stage_name, step and more. Raises UserError.

    It is not compared with its digest here: whoever restores the step does that.
    """
    path = folder / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))["meta"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy the step again, all of it") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: damaged; copy the step again, or take another one") from None
    whole = isinstance(meta, dict) and isinstance(meta.get("step"), int) and isinstance(meta.get("config"), dict)
    if not whole:
        raise UserError(f"{path}: damaged; copy the step again, or take another one")
    return meta
