"""Reads and writes files in object stores (gs://, s3://, az://) through etils.epath and fsspec.

Every failure becomes one line: exit code 2 for the path, access rights or a missing package, 4 for a store that cannot
be reached or returns other bytes than were written.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from bertjax.errors import BertjaxError, StorageError, UserError, brief
from bertjax.progress import reporter
from bertjax.storage.locations import path_problem

SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # with the package that each needs
IO_THREADS = 16  # they wait for the network
MAX_ATTEMPTS = 3
CHUNK_BYTES = 1 << 20
CHECK_PROJECT = "check the bucket, and the project of your log-in (gcloud config set project)"  # after a 400
T = TypeVar("T")


class _Once(logging.Filter):
    """Lets the same warning pass once: gcsfs repeats some at every request."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        is_new = text not in self._seen
        self._seen.add(text)
        return is_new


for _name in ("gcsfs", "google.auth._default"):
    logging.getLogger(_name).addFilter(_Once())


class DamagedError(StorageError):
    """The stored bytes are not those that were written: preparing them again helps."""


def is_remote(path: Path | str) -> bool:
    return "://" in str(path)


def as_path(name: Path | str) -> Path:
    """`name` as a local path or an epath. UserError for an unknown scheme."""
    if problem := path_problem(str(name), remote=True):
        raise UserError(problem)
    if not is_remote(name):
        return Path(name).expanduser()
    from etils import epath

    return epath.Path(str(name))  # type: ignore[return-value]


def file_system(path: Path) -> Any:
    """The fsspec file system of a remote path, the one that epath uses."""
    from etils.epath.backend import fsspec_backend

    return fsspec_backend.fs(path)


@contextmanager
def remote_errors(path: Path | str) -> Iterator[None]:
    """Turn errors of a remote path into UserError or StorageError; those of a local path pass."""
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
        raise UserError(f"{path}: access is refused ({brief(error)}); log in, or ask for rights") from None
    except ImportError:
        package = SCHEMES[str(path).split("://")[0]]
        raise UserError(f"{path}: the package '{package}' is missing; pip install {package}") from None
    except Exception as error:  # noqa: BLE001  (gcsfs, aiohttp and google-auth raise errors of their own)
        reason = f"{type(error).__name__}: {brief(error)}"
        if getattr(error, "code", None) in (401, "401") or brief(error).startswith("Forbidden"):  # of gcsfs
            raise UserError(f"{path}: access is refused ({reason}); log in, or ask for rights") from None
        if getattr(error, "code", None) in (400, "400") or brief(error).startswith("Bad Request"):
            raise UserError(f"{path}: the request is refused ({reason}); {CHECK_PROJECT}") from None
        raise StorageError(f"{path}: cannot be reached ({reason}); check network and log-in") from error


def file_size(path: Path) -> int | None:
    """Size of a file in bytes; None if there is none."""
    with remote_errors(path):
        try:
            found: Any = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if is_remote(path):
            return None if found.is_directory else found.length
        return found.st_size if path.is_file() else None


def checksum(path: Path) -> str:
    """The checksum that the object store keeps (CRC32C or entity tag); without one, the sha256 of the content."""
    with remote_errors(path):
        if found := stored_checksum(file_system(path).info(str(path))):
            return found
    return sha256_file(path)


def stored_checksum(info: Mapping[str, Any]) -> str | None:
    """The checksum in what an fsspec file system says about a file; None without one."""
    for name in ("crc32c", "md5Hash", "ETag", "etag", "content_md5"):
        if value := info.get(name):
            return f"{name.lower()}:{value}"
    return None


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with remote_errors(path), path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
            reporter.advance(len(data), "bytes")
    return digest.hexdigest()


def move_verified(local: Path, path: Path) -> dict[str, Any]:
    """Move a local file to `path`; a remote one is read back and compared. Returns its {bytes, sha256}.

    Raises StorageError when the store repeatedly returns other bytes.
    """
    size = local.stat().st_size
    with local.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(local, path)  # a large file that is complete already
        return {"bytes": size, "sha256": sha256}
    for _ in range(MAX_ATTEMPTS):
        with remote_errors(path), local.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)
        if file_size(path) == size and sha256_file(path) == sha256:
            local.unlink()
            return {"bytes": size, "sha256": sha256}
    raise StorageError(f"{path}: what was written {MAX_ATTEMPTS} times reads back differently; check the bucket")


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return
    with remote_errors(path), suppress(FileNotFoundError):
        path.rmtree() if path.is_dir() else path.unlink()  # type: ignore[attr-defined]


def map_threaded(function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Apply `function` to every item in threads, which wait for the network in parallel."""
    with ThreadPoolExecutor(IO_THREADS) as pool:
        return list(pool.map(function, items))
