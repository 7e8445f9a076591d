"""Copies of model folders in object stores: Hugging Face folders, runs, a stage's checkpoints, single steps.

Each file is fetched once per machine and again when the store holds another one. Of a run or a stage, one step is
copied: the newest complete one of the last stage, or the one asked for. The small files of a run come with it.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bertjax.errors import StorageError, UserError
from bertjax.storage import folders, lease, remote, staging
from bertjax.storage.atomic import write_json_atomic
from bertjax.storage.model_hub import INDEX, SMALL_FILES, WEIGHTS

_STEP_PARTS = ("state", "meta", "digest")  # of a checkpoint step (config/loading/step_meta.py)
_RUN_FILES = ("config.yaml", "environment.json", "metrics.jsonl", "goodput.jsonl", "baselines.json", "model.txt")
_RUN_FOLDERS = ("tokenizer", "evaluations")
_RECORD = "fetched.json"
_ATTEMPTS = 3  # a step may be deleted by its run while it is copied


def fetch(url: str, *, weights: bool, step: str | None = None) -> Path:
    """Copy a model folder, or with `weights` false its small files -> the local copy.

    step: of a run or a stage, the folder of the step to copy, such as checkpoints/00-qa/400 (default: the newest).
    Raises UserError for a folder that holds no model or cannot be read, StorageError when the store cannot be reached.
    """
    root = remote.as_path(url.rstrip("/"))
    for attempt in range(1, _ATTEMPTS + 1):
        newest: str | None = None
        try:
            with remote.remote_errors(root):
                names = _names(root)
                newest = step or (None if "config.json" in names else _newest_step(root, names))
                is_model = "config.json" in names
                wanted = sorted(_hugging_face(names, weights) if is_model else _run(root, names, newest, weights))
            if not wanted:
                raise UserError(f"{url}: {why_nothing(root)}")
            return _copy_wanted(root, wanted, newest, weights)
        except UserError:
            is_gone = newest not in (None, ".", step) and not _names(root / str(newest))
            if attempt == _ATTEMPTS or not is_gone:
                raise
    raise AssertionError("unreachable")


def why_nothing(root: Path) -> str:
    """What is wrong with a folder in an object store in which there is no model, in words."""
    what = "neither config.json (Hugging Face) nor a checkpoint"
    with remote.remote_errors(root):
        if not folders.bucket_exists(root):
            return "there is no such bucket; correct the name"
        if remote.file_size(root) is not None:
            return "is a file; name the folder of a run, of its checkpoints or of a Hugging Face model"
        if names := sorted(_names(root)):
            return f"holds {what}; here are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    return f"no such folder, or it holds {what}"


def copy_of(url: str) -> Path:
    """The local copy of a model folder, as `fetch` makes it."""
    root = remote.as_path(url.rstrip("/"))
    return _home(root) / root.name


def _home(root: Path) -> Path:
    return staging.staging_dir() / "models" / hashlib.sha256(str(root).encode()).hexdigest()[:24]


def upload_results(url: str, files: Iterable[Path]) -> list[str]:
    """Upload files of the local copy of a run to the same places in the store -> their names there.

    Raises UserError without the rights, StorageError when the store cannot be reached.
    """
    root, copy = remote.as_path(url.rstrip("/")), copy_of(url)
    names = [path.relative_to(copy).as_posix() for path in files]

    def upload(name: str) -> None:
        with remote.remote_errors(root / name):
            (root / name).write_bytes((copy / name).read_bytes())

    remote.map_threaded(upload, names)
    return names


def _copy_wanted(root: Path, wanted: list[str], step: str | None, weights: bool) -> Path:
    home = _home(root)
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
        if other != step and other.name.isdecimal():
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
    for folder in (name for name in _RUN_FOLDERS if name in names):
        yield from _below(root, folder)
    for one in [step, *(_bases(root, step) if weights else [])] if step is not None else []:
        for name in _names(root / one) - (set() if weights else {"state"}):
            yield from _below(root, f"{one}/{name}".removeprefix("./"))


def _bases(root: Path, step: str) -> Iterator[str]:
    """The steps of other stages of the run that hold the weights below an adapter-only checkpoint."""
    while step.startswith("checkpoints/"):
        item = folders.read_json(root / step / "meta" / "metadata")
        base = (item.get("meta") or {}).get("base") if isinstance(item, dict) else None
        if not isinstance(base, dict) or not {"stage", "step"} <= base.keys():
            return
        step = f"checkpoints/{base['stage']}/{base['step']}"
        yield step


def _newest_step(root: Path, names: set[str]) -> str | None:
    """The folder of the newest step below `root`; "." if that is a step."""
    if len(names & set(_STEP_PARTS)) >= 2:
        return "."
    if steps := [name for name in names if name.isascii() and name.isdigit()]:
        found = folders.complete_folders(root, steps.__contains__)
        if not found and not _is_being_written(root):
            found = [name for name in steps if folders.holds_files(root / name)]
        if found:
            return max(found, key=int)
    if "checkpoints" in names:
        step = _newest_step(root / "checkpoints", _names(root / "checkpoints"))
        return step and f"checkpoints/{step}"
    for stage in sorted((name for name in names if name[:2].isdecimal() and name[2:3] == "-"), reverse=True):
        if step := _newest_step(root / stage, _names(root / stage)):
            return f"{stage}/{step}"
    return None


def _is_being_written(folder: Path) -> bool:
    """Whether a step without a marker is one that a run has not finished; elsewhere it was copied from a disk."""
    return any((place / lease.FILE_NAME).exists() for place in (folder, folder.parent.parent))


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
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
