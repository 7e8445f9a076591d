"""Find and read the metadata of checkpoint steps without jax.

A step is recognized by its content: three folders `state` (arrays), `meta` and `digest` (JSON), written by
training/checkpoint/orbax_io.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertjax.config.limits import MAX_COUNT
from bertjax.errors import UserError
from bertjax.storage.text import read_bytes

PARTS = ("state", "meta", "digest")
# The types of what readers take from the metadata; all of it may be missing but the first two.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "step": int, "config": dict, "stage": int, "stage_name": str, "num_labels": int, "tokenizer_sha256": str,
    "tokenizer_json": str, "environment": dict, "fingerprint": str, "steps": (int, type(None)), "heads": list,
    "carried": list, "labels": (list, type(None)), "base": (dict, type(None)), "plugins": dict, "sources": dict,
    "pretrained": (dict, type(None)), "problem_type": (str, type(None)), "unlogged": (dict, type(None)),
    "early_stopping": list, "teacher": (dict, type(None)),
}  # fmt: skip
_ENVIRONMENT = {"processes": int, "mesh": dict, "devices": list}  # what readers take from `environment`
_COUNTS = ("step", "stage", "num_labels", "steps")


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
        item = json.loads(read_bytes(path))
        meta = item["meta"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy the complete step again") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        meta = None
    if find_meta_problem(meta, needed=("step", "config")):
        raise UserError(f"{path}: damaged; copy the step again, or take another one")
    return item


def find_meta_problem(meta: Any, needed: Sequence[str] = ()) -> str | None:
    """What is wrong with the form of metadata, whose sha256 may be right: anyone can compute it. None if nothing."""
    if not isinstance(meta, dict) or not meta.keys() >= {*needed}:
        return f"the metadata have no {' and '.join(needed) or 'keys'}"
    for key in _TYPES.keys() & meta.keys():
        if not isinstance(meta[key], _TYPES[key]) or isinstance(meta[key], bool):
            return f"'{key}' of the metadata is a {type(meta[key]).__name__}"
    for key in ("heads", "carried", "labels"):
        if not all(isinstance(item, str) for item in meta.get(key) or ()):
            return f"'{key}' of the metadata holds more than names"
    if any(not 0 <= (meta.get(key) or 0) <= MAX_COUNT for key in _COUNTS):
        return f"a number of the metadata ({', '.join(_COUNTS)}) is out of range"
    about = meta.get("environment")
    if about and not all(isinstance(about.get(key), kind) for key, kind in _ENVIRONMENT.items()):
        return f"'environment' of the metadata has no {', '.join(_ENVIRONMENT)}"
    if not all(isinstance(one, list) and len(one) == 2 for one in meta.get("early_stopping", ())):
        return "'early_stopping' of the metadata does not list scores"
    stages = meta.get("config", {}).get("stages")
    if isinstance(stages, list) and meta.get("stage", 0) >= len(stages):
        return "'stage' of the metadata is no stage of its config"
    return None
