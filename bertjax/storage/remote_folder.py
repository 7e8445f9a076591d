"""Copies of model folders in object stores: Hugging Face folders, runs, a stage's checkpoints, single steps.

Each file is fetched once per machine and again when the store holds another one. Of a run or a stage, only the newest
step of the last stage is copied.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.errors import StorageError, UserError
from bertjax.storage import remote, staging
from bertjax.storage.atomic import write_json_atomic
from bertjax.storage.model_hub import INDEX, SMALL_FILES, WEIGHTS

_STEP_PARTS = ("state", "meta", "digest")  # of a checkpoint step (config/loading/step_meta.py)
_RUN_FILES = ("config.yaml", "environment.json")
_RECORD = "fetched.json"


def fetch(url: str, *, weights: bool) -> Path:
    """Copy a model folder, or with `weights` false its small files -> the local copy.

    Raises UserError for a folder that holds no model or cannot be read, StorageError when the store cannot be reached.
    """
    root = remote.as_path(url.rstrip("/"))
    with remote.remote_errors(root):
        names = _names(root)
        step = None if "config.json" in names else _newest_step(root, names)
        wanted = sorted(_hugging_face(names, weights) if "config.json" in names else _run(root, names, step, weights))
    if not wanted:
        raise UserError(f"{url}: no such folder, or it holds neither config.json (Hugging Face) nor a checkpoint")
    home = staging.staging_dir() / "models" / hashlib.sha256(str(root).encode()).hexdigest()[:24]
    copy = home / root.name
    with staging.exclusive_lock(_made(home) / "lock"):
        _copy(root, copy, wanted, home / _RECORD)
        if weights:
            _remove_deleted(copy, wanted, home / _RECORD)
        if step is not None and step != ".":
            _remove_other_steps(copy / step)
    return copy


def _remove_deleted(copy: Path, wanted: list[str], record: Path) -> None:
    """Remove what was copied earlier and is no longer in the store, such as a kept threshold."""
    for name in _read_record(record).keys() - set(wanted):
        (copy / name).unlink(missing_ok=True)


def _remove_other_steps(step: Path) -> None:
    for other in step.parent.glob("[0-9]*"):
        if other != step and other.name.isdigit():
            shutil.rmtree(other)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _hugging_face(names: set[str], weights: bool) -> Iterator[str]:
    """The files of a Hugging Face folder to copy."""
    yield from names & set(SMALL_FILES)
    if weights:
        shards = [name for name in names if name.startswith("model-") and name.endswith(".safetensors")]
        yield from [WEIGHTS] if WEIGHTS in names else [INDEX, *shards] if INDEX in names else []


def _run(root: Path, names: set[str], step: str | None, weights: bool) -> Iterator[str]:
    """The files of a run, a stage or a step to copy."""
    yield from (name for name in _RUN_FILES if name in names)
    if "tokenizer" in names:
        yield from (f"tokenizer/{name}" for name in _names(root / "tokenizer"))
    if step is not None:
        for name in _names(root / step) - (set() if weights else {"state"}):
            yield from _below(root, f"{step}/{name}".removeprefix("./"))


def _newest_step(root: Path, names: set[str]) -> str | None:
    """The folder of the newest step below `root`; "." if that is a step."""
    if len(names & set(_STEP_PARTS)) >= 2:
        return "."
    if steps := [int(name) for name in names if name.isascii() and name.isdigit()]:
        return str(max(steps))
    if "checkpoints" in names:
        found = _newest_step(root / "checkpoints", _names(root / "checkpoints"))
        return found and f"checkpoints/{found}"
    for stage in sorted((name for name in names if name[:2].isdigit() and name[2:3] == "-"), reverse=True):
        if found := _newest_step(root / stage, _names(root / stage)):
            return f"{stage}/{found}"
    return None


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _below(root: Path, name: str) -> Iterator[str]:
    folder = root / name
    if not folder.is_dir():
        yield name
        return
    for inside in _names(folder):
        yield from _below(root, f"{name}/{inside}")


def _copy(root: Path, copy: Path, wanted: list[str], record: Path) -> None:
    known = _read_record(record)
    facts = dict(zip(wanted, remote.map_threaded(lambda name: _facts(root / name), wanted), strict=True))
    missing = [name for name in wanted if known.get(name) != facts[name] or not (copy / name).is_file()]
    size = sum(facts[name][0] for name in missing)
    free = shutil.disk_usage(staging.staging_dir()).free
    if size > free:
        raise StorageError(
            f"{copy}: {size / 1e9:.1f} GB are to be copied here and {free / 1e9:.1f} GB are free; set "
            f"{staging.STAGING_ENV} to a larger disk"
        )
    remote.map_threaded(lambda name: _fetch(root / name, copy / name, facts[name][0]), missing)
    if missing:
        write_json_atomic(record, known | {name: facts[name] for name in missing})


def _facts(path: Path) -> list[Any]:
    return [remote.file_size(path) or 0, remote.checksum(path)]


def _fetch(path: Path, copy: Path, size: int) -> None:
    _made(copy.parent)
    unfinished = copy.with_name(f".{copy.name}.{secrets.token_hex(4)}")
    try:
        with remote.remote_errors(path), path.open("rb") as source, unfinished.open("wb") as target:
            shutil.copyfileobj(source, target, remote.CHUNK_BYTES)
        if unfinished.stat().st_size != size:
            raise StorageError(f"{path}: {size} bytes were to be read and others came; run it again")
        os.replace(unfinished, copy)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
