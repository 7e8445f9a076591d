"""Atomic writes of small files, local or in an object store: readers find the old content or the new, never a part."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        if durable:
            fsync_path(partial)
    if durable:
        fsync_path(path.parent)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces the local `path` at the end, or is removed after an error."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
