"""Reads small text and JSON files with one-line errors."""

import difflib
import errno
import json
from pathlib import Path
from typing import Any

from bertjax.errors import UserError

MAX_BYTES = 1_000_000


def read_text(path: Path, limit: int) -> str:
    """A UTF-8 file of at most `limit` bytes. Raises UserError."""
    try:
        if not path.is_file():
            reason = "is a folder; name a file" if path.is_dir() else "no such file"
            raise UserError(f"{path}: {reason}" + suggest_file(path))
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{ascii(str(path))[1:-1]}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if len(data) > limit:
        raise UserError(f"{path}: larger than {limit:,} bytes; is this the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None


def read_bytes(path: Path) -> bytes:
    """The content of a file that others may have made. OSError, also for a pipe or device, which may never end."""
    check_regular(path)
    return path.read_bytes()


def check_regular(path: Path) -> None:
    """Raise OSError for a local pipe or device in the place of a file; opening a pipe waits for its writer."""
    if isinstance(path, Path) and path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.ENXIO, "is a pipe or device and no file; remove it", str(path))


def read_json(path: Path) -> Any:
    """The content of a JSON file of at most MAX_BYTES. Raises UserError."""
    try:
        return json.loads(read_text(path, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({str(error)[:80]})") from None


def suggest_file(path: Path) -> str:
    """`; did you mean 'a.yaml'?` when the folder holds a file of a similar name, else nothing."""
    if path.is_dir() or not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    close = difflib.get_close_matches(path.name, names, 1)
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""
