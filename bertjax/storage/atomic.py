"""Atomic writes of small files, local or in an object store: readers find the old content or the new, never a part."""

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bertjax.storage import remote


def write_bytes_atomic(path: Path, data: bytes, *, durable: bool = False, parents: bool = False) -> None:
    """Replace the file in one rename. durable: safe from a power failure; parents: make its folder. Raises OSError."""
    if remote.is_remote(path):
        with remote.remote_errors(path):
            path.write_bytes(data)  # an object appears when its upload is complete
        return
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial:
        partial.write_bytes(data)
        if durable and not _is_special(partial):
            fsync_path(partial)
    if durable:
        fsync_path(path.parent)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces the local `path` at the end, or is removed after an error.

    A device or a pipe is not replaced: its own path is yielded. Raises OSError.
    """
    if _is_special(path):
        yield path
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    os.close(open_no_follow(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        with name_errors(path):
            yield partial
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Add the path to an OSError inside the block that names none, as those of `write` and `close`."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def _is_special(path: Path) -> bool:
    """Whether something other than a file or a folder is there, such as /dev/null, or /dev/stdout wherever it leads."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or str(path.absolute().parent) in ("/dev", "/dev/fd")


def open_no_follow(path: Path | str, flags: int) -> int:
    """`os.open` for a file of a run; OSError for a symbolic link, which may lead to any file of the user."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "is a symbolic link, which is not followed; remove it", str(path)) from None
        raise


def open_append(path: Path) -> IO[bytes]:
    """Open a local file for reading and appending, unless it is a symbolic link."""
    return open(path, "ab+", opener=open_no_follow)


def open_lock(path: Path) -> IO[str]:
    """Open an empty local file to lock it, unless it is a symbolic link."""
    return open(path, "a", opener=open_no_follow)


def write_text_atomic(path: Path, text: str, *, durable: bool = False) -> None:
    write_bytes_atomic(path, text.encode(), durable=durable)


def write_json_atomic(path: Path, content: Any, *, indent: int | None = 1, durable: bool = False) -> None:
    write_text_atomic(path, json.dumps(content, ensure_ascii=False, indent=indent) + "\n", durable=durable)


def fsync_path(path: Path | str) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
