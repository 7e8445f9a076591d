"""Files in object stores (gs://, s3://, az://), read and written through etils.epath and fsspec.

What needs a local file (ArrayRecord, memory maps, tokenizers) gets a copy in a staging folder that is named by its
sha256 and checked against it. Every failure becomes one line: exit code 2 where the path, the rights or a package is
at fault, 4 where the store cannot be reached or gave back other bytes than were written.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from bertjax.errors import BertjaxError, StorageError, UserError
from bertjax.storage.locations import path_problem

SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # and the package that knows each
IO_THREADS = 16  # at once: what these wait for is the network
MAX_ATTEMPTS = 3
CHUNK_BYTES = 1 << 20
T = TypeVar("T")


class DamagedError(StorageError):
    """What is stored is not what was written: making it again helps."""


def is_remote(path: Path | str) -> bool:
    return "://" in str(path)


def as_path(name: Path | str) -> Path:
    """`name` as a path: a local one, or an epath that is used like one. UserError for a scheme that nothing reads."""
    if problem := path_problem(str(name), remote=True):
        raise UserError(problem)
    if not is_remote(name):
        return Path(name).expanduser()
    from etils import epath

    return epath.Path(str(name))  # type: ignore[return-value]


@contextmanager
def remote_errors(path: Path | str) -> Iterator[None]:
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


def file_size(path: Path) -> int | None:
    """Bytes of a file; None when there is none."""
    with remote_errors(path):
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

    with remote_errors(path):
        found = fsspec_backend.fs(path).info(str(path))
        for name in ("crc32c", "md5Hash", "ETag", "etag", "content_md5"):
            if value := found.get(name):
                return f"{name.lower()}:{value}"
    return sha256_file(path)


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with remote_errors(path), path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()


def move_verified(local: Path, path: Path) -> dict[str, Any]:
    """Moves a local file to `path`, read back and compared where that is remote: {bytes, sha256} of what is there.

    StorageError when the store kept giving back other bytes.
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
    """Removes a file or a folder, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return
    with remote_errors(path), suppress(FileNotFoundError):
        path.rmtree() if path.is_dir() else path.unlink()  # type: ignore[attr-defined]


def map_threaded(function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """`function` of every item, in threads that wait for the network together."""
    with ThreadPoolExecutor(IO_THREADS) as pool:
        return list(pool.map(function, items))


def _brief(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:100]
