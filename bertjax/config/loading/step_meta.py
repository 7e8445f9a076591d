"""Find and read the metadata of checkpoint steps without jax.

A step is recognized by its content: three folders `state` (arrays), `meta` and `digest` (JSON), written by
training/checkpoint/orbax_io.py.
"""

import json
from pathlib import Path
from typing import Any

from bertjax.errors import UserError

PARTS = ("state", "meta", "digest")


def is_checkpoint_step(folder: Path) -> bool:
    """Whether a folder is a checkpoint step, also with one part missing, so that an error can name that part."""
    try:
        return sum((folder / part).is_dir() for part in PARTS) >= 2
    except OSError:
        return False


def list_steps(folder: Path) -> list[int]:
    """List the steps in the checkpoint folder of a stage, oldest first."""
    try:
        names = [p.name for p in folder.iterdir() if p.name.isascii() and p.name.isdigit() and is_checkpoint_step(p)]
    except OSError:
        return []
    return sorted(int(name) for name in names if name == str(int(name)))


def read_meta(folder: Path) -> dict[str, Any]:
    """The metadata of a step: config, stage, stage_name, step and more. Raises UserError."""
    return read_meta_item(folder)["meta"]


def read_meta_item(folder: Path) -> dict[str, Any]:
    """Read the metadata of a step and the sha256 of its digest item, not compared here. Raises UserError."""
    path = folder / "meta" / "metadata"
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
        meta = item["meta"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy the complete step again") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        meta = None
    if not (isinstance(meta, dict) and isinstance(meta.get("step"), int) and isinstance(meta.get("config"), dict)):
        raise UserError(f"{path}: damaged; copy the step again, or take another one")
    return item
