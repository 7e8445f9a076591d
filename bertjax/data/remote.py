"""Files in object stores (gs://, s3://, az://), read and written through etils.epath and fsspec.

What needs a local file (ArrayRecord, memory maps, tokenizers) gets a copy in a staging folder that is named by its
sha256 and checked against it. Every failure becomes one line: exit code 2 where the path, the rights or a package is
at fault, 4 where the store cannot be reached or gave back other bytes than were written.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from bertjax.config.locations import local_path, location_problem
from bertjax.errors import BertjaxError, StorageError, UserError

SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # and the package that knows each
STAGING = "BERTJAX_STAGING"
THREADS = 16  # at once: what these wait for is the network
TRIES = 3
CHUNK = 1 << 20
T = TypeVar("T")


class DamagedError(StorageError):
    """What is stored is not what was written: making it again helps."""


def is_remote(path: Path | str) -> bool:
    return "://" in str(path)


def place(name: Path | str) -> Path:
    """`name` as a path: a local one, or an epath that is used like one. UserError for a scheme that nothing reads."""
    if problem := location_problem(str(name), remote=True):
        raise UserError(problem)
    if not is_remote(name):
        return Path(name).expanduser()
    from etils import epath

    return epath.Path(str(name))  # type: ignore[return-value]


@contextmanager
def reaching(path: Path | str) -> Iterator[None]:
    """Words what may go wrong with a remote path; a local one is left alone."""
    if not is_remote(path):
        yield
        return
    try:
        yield
    except BertjaxError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder; check the bucket and the name") from None
    except PermissionError as error:
        raise UserError(f"{path}: access is refused ({_brief(error)}); log in, or ask for rights") from None
    except ImportError:
        package = SCHEMES[str(path).split("://")[0]]
        raise UserError(f"{path}: the package '{package}' is missing; pip install {package}") from None
    except Exception as error:  # noqa: BLE001  (gcsfs, aiohttp and google-auth raise errors of their own)
        reason = f"{type(error).__name__}: {_brief(error)}"
        raise StorageError(f"{path}: cannot be reached ({reason}); check network and log-in") from error


def size_of(path: Path) -> int | None:
    """Bytes of a file; None when there is none."""
    with reaching(path):
        try:
            found: Any = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if is_remote(path):
            return None if found.is_directory else found.length
        return found.st_size if path.is_file() else None


def checksum(path: Path) -> str:
    """What the object store itself says of a file's content, without reading it; where it says nothing, it is read.

    Cloud Storage keeps a CRC32C of every object, S3 an entity tag.
    """
    from etils.epath.backend import fsspec_backend

    with reaching(path):
        found = fsspec_backend.fs(path).info(str(path))
        for name in ("crc32c", "md5Hash", "ETag", "etag", "content_md5"):
            if value := found.get(name):
                return f"{name.lower()}:{value}"
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with reaching(path), path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    if is_remote(path):
        with reaching(path):
            path.write_bytes(data)  # an object appears when its upload is complete
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)


def put(local: Path, path: Path) -> dict[str, Any]:
    """Moves a local file to `path`, read back and compared where that is remote: {bytes, sha256} of what is there.

    StorageError when the store kept giving back other bytes.
    """
    size = local.stat().st_size
    with local.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(local, path)
        return {"bytes": size, "sha256": sha256}
    for _ in range(TRIES):
        with reaching(path), local.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
        if size_of(path) == size and sha256_of(path) == sha256:
            local.unlink()
            return {"bytes": size, "sha256": sha256}
    raise StorageError(f"{path}: what was written {TRIES} times reads back differently; check the bucket")


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return
    with reaching(path), suppress(FileNotFoundError):
        path.rmtree() if path.is_dir() else path.unlink()  # type: ignore[attr-defined]


def at_once(function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """`function` of every item, in threads that wait for the network together."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))


# ---- staging --------------------------------------------------------------------------------------------------------


def staging() -> Path:
    """The folder that holds local copies of remote files; only its owner may read it."""
    folder = local_path(os.environ.get(STAGING) or "~/.cache/bertjax/staged")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"{folder}: no copies can be kept here ({error.strerror}); set {STAGING}") from None
    return folder


def staged(path: Path, size: int, sha256: str) -> Path:
    """A local file with the content of `path`: itself when it is local, else a copy, made once on a machine.

    StorageError when the content is not what `size` and `sha256` say.
    """
    if not is_remote(path):
        return path
    copy = staging() / sha256[:2] / sha256
    if size_of(copy) == size:
        os.utime(copy)  # lately used
        return copy
    copy.parent.mkdir(exist_ok=True)
    with _alone(copy.with_suffix(".lock")):  # of several processes one fetches and the others wait
        if size_of(copy) != size:
            _fetch(path, copy, size, sha256)
    return copy


def stage_all(files: list[tuple[Path, int, str]]) -> list[Path]:
    """`staged` for many (path, size, sha256), several at a time; first it is seen whether they fit on the disk."""
    missing = sum(size for path, size, sha256 in files if size_of(staging() / sha256[:2] / sha256) != size)
    free = shutil.disk_usage(staging()).free
    if missing > free:
        raise StorageError(
            f"{staging()}: {missing / 1e9:.1f} GB are to be copied here and {free / 1e9:.1f} GB are free; "
            f"set {STAGING} to a larger disk, or mount the bucket with gcsfuse and name the mounted folder"
        )
    return at_once(lambda file: staged(*file), files)


def small_files(path: Path, names: list[str]) -> Path:
    """A local path for a small file or folder: itself when it is local, else a copy, fetched anew every time.

    Of a folder those of `names` are copied that are there; of a file also those beside it.
    """
    if not is_remote(path):
        return path
    is_file = size_of(path) is not None
    folder = path.parent if is_file else path
    copies = staging() / "named" / hashlib.sha256(str(folder).encode()).hexdigest()[:24]
    copies.mkdir(parents=True, exist_ok=True)
    for name in {path.name, *names} if is_file else names:
        (copies / name).unlink(missing_ok=True)
        if size_of(folder / name) is not None:
            with reaching(folder):
                write_whole(copies / name, (folder / name).read_bytes())
    return copies / path.name if is_file else copies


def _fetch(path: Path, copy: Path, size: int, sha256: str) -> None:
    unfinished = copy.with_suffix(f".{secrets.token_hex(4)}")
    try:
        for attempt in range(TRIES):
            time.sleep(attempt)
            found = hashlib.sha256()
            with reaching(path), path.open("rb") as source, unfinished.open("wb") as target:
                for data in iter(partial(_read, source), b""):
                    found.update(data)
                    target.write(data)
            if found.hexdigest() == sha256:
                os.replace(unfinished, copy)
                return
    finally:
        unfinished.unlink(missing_ok=True)
    raise DamagedError(f"{path}: damaged (its sha256 is not {sha256[:12]}..., of {size} bytes); prepare the data again")


def _read(source: BinaryIO) -> bytes:
    return source.read(CHUNK)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _brief(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:100]
