"""Prepared rows on disk: ArrayRecord shards and a manifest that says what they must hold.

A store is a folder. Each record is one fixed-length row (the bytes of a structured numpy scalar), so any row can be
read in O(1). ArrayRecord catches flipped bits by itself, but a truncated file opens as an empty one without an error:
the manifest's counts and sizes are compared when a store is opened.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from bertjax.errors import StorageError, UserError

MANIFEST = "manifest.json"
FORMAT = 1
SHARD_BYTES = 256 << 20  # of rows before compression
OPEN_READERS = 256  # file handles a store holds at most
# Rows are read at random, so ArrayRecord's read-ahead and its thread pool would only fetch what nobody asked for.
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
STALE_SECONDS = 7 * 24 * 3600


def shard_name(index: int) -> str:
    return f"rows-{index:05d}.array_record"


def write_shard(path: Path, blocks: Iterable[np.ndarray]) -> dict[str, Any]:
    """Writes blocks of rows [n] (structured) as one ArrayRecord file; returns its manifest entry.

    The same rows give the same bytes, however they are cut into blocks. StorageError when the disk refuses.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    records = 0
    # One record in a chunk makes random reads cheap; a pool of threads would hold many chunks in memory.
    with _writing(path):
        writer = ArrayRecordWriter(str(path), "group_size:1,max_parallelism:1")
    for block in blocks:  # outside _writing: an error in making rows is not one of the disk
        data = memoryview(np.ascontiguousarray(block).view(np.uint8).data) if len(block) else b""
        with _writing(path):
            for start in range(0, len(data), block.dtype.itemsize):
                writer.write(bytes(data[start : start + block.dtype.itemsize]))
        records += len(block)
    with _writing(path):
        writer.close()
        return {"file": path.name, "records": records, "bytes": path.stat().st_size, "sha256": _sha256(path)}


class StoreWriter:
    """Writes a store into a temporary folder beside `folder`; `close()` puts it in place in one rename.

    `write` streams rows into shards. A pool may instead call `write_shard` on paths inside `.temporary` and hand the
    entries to `add` in order; the two ways do not mix. As a context manager it closes on success and leaves nothing
    behind on an error.
    """

    def __init__(
        self,
        folder: Path,
        dtype: np.dtype,
        meta: dict[str, Any],
        *,
        fingerprint: str = "",
        tokenizer_sha256: str = "",
        code_version: str = "",
        rows_per_shard: int | None = None,
    ):
        if dtype.names is None or dtype.hasobject:
            raise ValueError("rows of a store have a structured dtype of numbers")
        self.folder = Path(folder)
        self.dtype = dtype
        self.meta = meta
        self._about = {"fingerprint": fingerprint, "tokenizer_sha256": tokenizer_sha256, "code_version": code_version}
        self._per_shard = rows_per_shard or max(1, SHARD_BYTES // dtype.itemsize)
        self._shards: list[dict[str, Any]] = []
        self._pending: list[np.ndarray] = []
        self._pending_rows = 0
        _remove_stale(self.folder)
        # A name nobody else has: two preparers of one fingerprint never write into each other's files.
        self.temporary = self.folder.parent / f".{self.folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            self.temporary.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"{self.folder.parent}: no folder can be made here ({error.strerror})") from error

    def write(self, rows: np.ndarray) -> None:
        """Appends rows [n] of the store's dtype."""
        if rows.dtype != self.dtype:
            raise ValueError(f"rows of {rows.dtype} do not fit a store of {self.dtype}")
        while len(rows):
            part, rows = np.split(rows, [self._per_shard - self._pending_rows])
            self._pending.append(part.copy())
            self._pending_rows += len(part)
            if self._pending_rows == self._per_shard:
                self._flush()

    def add(self, entry: dict[str, Any]) -> None:
        """Records a shard that `write_shard` has already put into `.temporary`."""
        self._shards.append(entry)

    def close(self) -> dict[str, Any]:
        """Writes the manifest and puts the folder in place; returns the manifest of the store that is there now."""
        if self._pending_rows:
            self._flush()
        records = sum(shard["records"] for shard in self._shards)
        manifest = {
            "format": FORMAT, **self._about, "dtype": _describe(self.dtype), "records": records,
            "shards": self._shards, "meta": self.meta,
        }  # fmt: skip
        manifest["sha256"] = _manifest_digest(manifest)
        try:
            path = self.temporary / MANIFEST
            path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            for file in [path, *(self.temporary / shard["file"] for shard in self._shards), self.temporary]:
                _sync(file)
            self._put_in_place()
        except OSError as error:
            self.abort()
            raise StorageError(f"{self.folder}: could not be written ({_first_line(error)}); check the disk") from error
        return manifest

    def abort(self) -> None:
        """Removes what was written."""
        shutil.rmtree(self.temporary, ignore_errors=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _flush(self) -> None:
        self._shards.append(write_shard(self.temporary / shard_name(len(self._shards)), self._pending))
        self._pending, self._pending_rows = [], 0

    def _put_in_place(self) -> None:
        for _ in range(10):
            try:
                os.rename(self.temporary, self.folder)
                _sync(self.folder.parent)
                return
            except OSError:
                if not self.folder.exists():
                    raise
            if self._same_store_is_there():  # another process was faster, and its rows are ours
                self.abort()
                return
            aside = self.temporary.with_suffix(f".{secrets.token_hex(2)}.old.tmp")
            try:
                os.rename(self.folder, aside)
            except FileNotFoundError:
                continue  # somebody else moved it; try again
            shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"{self.folder} is being replaced again and again")

    def _same_store_is_there(self) -> bool:
        try:
            found = Store(self.folder)
        except (UserError, StorageError):
            return False
        return bool(found.fingerprint) and found.fingerprint == self._about["fingerprint"]


class Store:
    """Random access to the rows of a finished store.

    Raises:
        UserError: the folder is not a store, or was made by another format.
        StorageError: a shard is missing or not as long as the manifest says (naming it).
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        self.dtype = np.dtype([(name, kind, tuple(shape)) for name, kind, shape in manifest["dtype"]])
        self.meta: dict[str, Any] = manifest["meta"]
        self.fingerprint: str = manifest["fingerprint"]
        self.tokenizer_sha256: str = manifest["tokenizer_sha256"]
        self.code_version: str = manifest["code_version"]
        self.shards: list[dict[str, Any]] = manifest["shards"]
        self._ends = np.cumsum([shard["records"] for shard in self.shards], dtype=np.int64)
        # Readers with their locks; one dropped from the cache lives on until the read that uses it has ended.
        self._reader = lru_cache(maxsize=OPEN_READERS)(self._open)
        for index in range(len(self.shards)):
            self._check(index)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __reduce__(self) -> tuple[type["Store"], tuple[Path]]:
        return Store, (self.folder,)

    def __getitem__(self, index: int) -> np.void:
        """One row; IndexError outside [0, len)."""
        return self.rows([index])[0]

    def rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows at `indices` [n], in that order, as a structured array [n] of the store's dtype.

        Safe to call from several threads. IndexError outside [0, len).
        """
        wanted = np.asarray(indices, np.int64)
        if wanted.size and not (0 <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"{self.folder} has rows 0 to {len(self) - 1}; asked for {wanted.min()} to {wanted.max()}")
        rows = np.empty(wanted.shape, self.dtype)
        shard_of = np.searchsorted(self._ends, wanted, side="right")
        for index in np.unique(shard_of).tolist():
            where = np.flatnonzero(shard_of == index)
            first = int(self._ends[index]) - self.shards[index]["records"]
            rows[where] = self._read(index, (wanted[where] - first).tolist())
        return rows

    def verify(self) -> None:
        """Reads every shard again and compares its sha256; StorageError naming the first that differs."""
        for shard in self.shards:
            if _sha256(self.folder / shard["file"]) != shard["sha256"]:
                raise StorageError(
                    f"{self.folder / shard['file']}: damaged (sha256 differs from {MANIFEST}); "
                    f"remove {self.folder.name} and prepare the data again"
                )

    def _open(self, index: int) -> tuple[Any, Lock]:
        from array_record.python.array_record_module import ArrayRecordReader

        path = self.folder / self.shards[index]["file"]
        try:
            return ArrayRecordReader(str(path), READ_OPTIONS), Lock()
        except Exception as error:  # the extension raises plain exceptions of several types
            raise self._damaged(index, f"cannot be opened ({_first_line(error)})") from error

    def _check(self, index: int) -> None:
        shard = self.shards[index]
        path = self.folder / shard["file"]
        if not path.is_file():
            raise self._damaged(index, "is missing")
        if path.stat().st_size != shard["bytes"]:
            raise self._damaged(index, f"has {path.stat().st_size} bytes, not {shard['bytes']}")
        if (count := self._reader(index)[0].num_records()) != shard["records"]:
            raise self._damaged(index, f"holds {count} rows, not {shard['records']}")

    def _read(self, index: int, positions: list[int]) -> np.ndarray:
        reader, lock = self._reader(index)
        records = []
        try:
            with lock:  # seek and read share a position; a call of read(positions) costs three times as much a row
                for position in positions:
                    reader.seek(position)
                    records.append(reader.read())
        except Exception as error:  # see _open
            raise self._damaged(index, f"cannot be read ({_first_line(error)})") from error
        data = b"".join(records)
        if len(data) != len(positions) * self.dtype.itemsize:
            raise self._damaged(index, "holds rows of another length")
        return np.frombuffer(data, self.dtype)

    def _damaged(self, index: int, what: str) -> StorageError:
        path = self.folder / self.shards[index]["file"]
        return StorageError(f"{path}: {what}; remove {self.folder.name} and prepare the data again")


def _describe(dtype: np.dtype) -> list[list[Any]]:
    names = dtype.names or ()
    return [[name, dtype[name].base.newbyteorder("<").str, list(dtype[name].shape)] for name in names]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder}: not a prepared store (no {MANIFEST}); prepare the data again") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read ({_first_line(error)}); prepare the data again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a store of format {FORMAT}; prepare the data again")
    if manifest.pop("sha256", None) != _manifest_digest(manifest):
        raise StorageError(f"{path}: damaged (its own sha256 differs); prepare the data again")
    return manifest


def _manifest_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); prepare the data again") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # the extension raises plain exceptions of several types
        raise StorageError(f"{path}: could not be written ({_first_line(error)}); check the disk") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_stale(folder: Path) -> None:
    """Temporary folders of preparers that died long ago."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:80]
