"""Reads and writes `manifest.json` of a store: count, size and sha256 of every shard, and a digest of itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.errors import UserError
from bertjax.storage.remote import DamagedError, remote_errors

MANIFEST = "manifest.json"
FORMAT = 2
READ_FORMATS = (1, FORMAT)  # shards of format 1 hold rows as they are in memory, those of 2 say their codec


class NotAStoreError(UserError):
    """There is no manifest of this format."""


def shard_name(index: int) -> str:
    return f"rows-{index:05d}.array_record"


def to_bytes(about: dict[str, Any], dtype: np.dtype, shards: list[dict[str, Any]], meta: dict[str, Any]) -> bytes:
    """The manifest of a store: `about` has its fingerprints, `shards` an entry {file, records, codec, bytes, sha256}
    each; rows without codec are stored as they are in memory."""
    records = sum(shard["records"] for shard in shards)
    manifest = {
        "format": FORMAT, **about, "dtype": _describe(dtype), "records": records, "shards": shards, "meta": meta,
    }  # fmt: skip
    manifest["sha256"] = _digest(manifest)
    return (json.dumps(manifest, indent=1) + "\n").encode()


def read(folder: Path) -> dict[str, Any]:
    """The verified manifest of the store in `folder`. Raises NotAStoreError, or DamagedError (a StorageError)."""
    path = folder / MANIFEST
    try:
        with remote_errors(path):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                problem = f"{folder}: not a prepared store (no {MANIFEST}); prepare the data again"
                raise NotAStoreError(problem) from None
        manifest = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read ({first_line(error)}); prepare the data again") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in READ_FORMATS:
        raise NotAStoreError(f"{path}: not a store of format {FORMAT}; prepare the data again")
    if manifest.pop("sha256", None) != _digest(manifest):
        raise DamagedError(f"{path}: damaged (its own sha256 differs); prepare the data again")
    return manifest


def dtype_of(manifest: dict[str, Any]) -> np.dtype:
    return np.dtype([(name, kind, tuple(shape)) for name, kind, shape in manifest["dtype"]])


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:80]


def _describe(dtype: np.dtype) -> list[list[Any]]:
    names = dtype.names or ()
    return [[name, dtype[name].base.newbyteorder("<").str, list(dtype[name].shape)] for name in names]


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
