"""Local copies of remote files: downloaded once per machine, named by sha256 and verified."""

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertjax.errors import StorageError, UserError
from bertjax.storage import remote
from bertjax.storage.atomic import open_lock, write_bytes_atomic
from bertjax.storage.locations import local_path

STAGING_ENV = "BERTJAX_STAGING"


def staging_dir() -> Path:
    """The folder that holds local copies of remote files; only its owner may read it."""
    folder = local_path(os.environ.get(STAGING_ENV) or "~/.cache/bertjax/staged")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"{folder}: no copies can be kept here ({error.strerror}); set {STAGING_ENV}") from None
    return folder


def stage_file(path: Path, size: int, sha256: str) -> Path:
    """A local file with the content of `path`: the file itself, or a copy that is made once per machine.

    Raises StorageError when the content does not match `size` and `sha256`.
    """
    if not remote.is_remote(path):
        return path
    copy = staging_dir() / sha256[:2] / sha256
    if remote.file_size(copy) == size:
        os.utime(copy)  # for removal by age
        return copy
    copy.parent.mkdir(exist_ok=True)
    with exclusive_lock(copy.with_suffix(".lock")):  # one process fetches, the others wait
        if remote.file_size(copy) != size:
            _fetch(path, copy, size, sha256)
    return copy


def stage_files(files: list[tuple[Path, int, str]]) -> list[Path]:
    """`stage_file` of several (path, size, sha256) in parallel, after a check that they fit on the disk."""
    missing = sum(size for path, size, sha256 in files if remote.file_size(staging_dir() / sha256[:2] / sha256) != size)
    free = shutil.disk_usage(staging_dir()).free
    if missing > free:
        raise StorageError(
            f"{staging_dir()}: {missing / 1e9:.1f} GB are to be copied here and {free / 1e9:.1f} GB are free; "
            f"set {STAGING_ENV} to a larger disk, or mount the bucket with gcsfuse and name the mounted folder"
        )
    return remote.map_threaded(lambda file: stage_file(*file), files)


def fetch_small_files(path: Path, names: list[str]) -> Path:
    """A local path for a small file or folder: the path itself, or a copy that is fetched every time.

    Copies the files of `names` that exist in the folder, or next to the file.
    """
    if not remote.is_remote(path):
        return path
    is_file = remote.file_size(path) is not None
    folder = path.parent if is_file else path
    copies = staging_dir() / "named" / hashlib.sha256(str(folder).encode()).hexdigest()[:24]
    copies.mkdir(parents=True, exist_ok=True)
    for name in {path.name, *names} if is_file else names:
        (copies / name).unlink(missing_ok=True)
        if remote.file_size(folder / name) is not None:
            with remote.remote_errors(folder):
                write_bytes_atomic(copies / name, (folder / name).read_bytes())
    return copies / path.name if is_file else copies


def _fetch(path: Path, copy: Path, size: int, sha256: str) -> None:
    unfinished = copy.with_suffix(f".{secrets.token_hex(4)}")
    try:
        for attempt in range(remote.MAX_ATTEMPTS):
            time.sleep(attempt)
            found = hashlib.sha256()
            with remote.remote_errors(path), path.open("rb") as source, unfinished.open("wb") as target:
                while data := source.read(remote.CHUNK_BYTES):
                    found.update(data)
                    target.write(data)
            if found.hexdigest() == sha256:
                os.replace(unfinished, copy)  # streamed, unlike the small files of atomic.py
                return
    finally:
        unfinished.unlink(missing_ok=True)
    raise remote.DamagedError(
        f"{path}: damaged (its sha256 is not {sha256[:12]}..., of {size} bytes); prepare the data again"
    )


@contextmanager
def exclusive_lock(lock: Path) -> Iterator[None]:
    with open_lock(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
