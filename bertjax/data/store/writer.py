"""Writes a store: shard after shard, then the manifest, which completes it."""

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.store import row_codec
from bertjax.data.store.manifest import MANIFEST, first_line, shard_name, to_bytes
from bertjax.data.store.reader import Store
from bertjax.errors import StorageError, UserError
from bertjax.storage import atomic, remote

MAX_SHARD_BYTES = 256 << 20  # of rows before compression
STALE_SECONDS = 7 * 24 * 3600


def write_shard(path: Path, blocks: Iterable[np.ndarray]) -> int:
    """Writes blocks of rows [n] (structured) as one local ArrayRecord file; returns the number of rows.

    The bytes do not depend on the division into blocks. StorageError when the disk refuses.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    records = 0
    # One record in a chunk makes random reads cheap; a pool of threads would hold many chunks in memory. Coded rows are
    # about as small as zstd makes uncoded ones, and decompression would be most of the time of reading one.
    with _writing(path):
        writer = ArrayRecordWriter(str(path), "group_size:1,max_parallelism:1,uncompressed")
    for block in blocks:  # outside _writing: an error in making rows is not a disk error
        coded = row_codec.encode(block)
        with _writing(path):
            for record in coded:
                writer.write(record)
        records += len(block)
    with _writing(path):
        writer.close()
        path.stat()  # after a failed write the file may be missing
    return records


class StoreWriter:
    """Writes a store into a temporary folder next to `folder`; `close()` renames it.

    `write` streams rows into shards. Alternatively, jobs put shards into `.temporary` and pass their entries to
    `add_shard` in order. A context manager: it closes on success and removes its own files on an error.
    `temporary`: a folder on the same disk, kept on an error, in place of the writer's own; `folder` itself for object
    stores, which cannot rename: the manifest, written last, then completes the store.
    """

    def __init__(
        self,
        folder: Path,
        dtype: np.dtype,
        meta: dict[str, Any],
        *,
        fingerprint: str = "",
        tokenizer_sha256: str = "",
        versions: Mapping[str, int] | None = None,
        rows_per_shard: int | None = None,
        temporary: Path | None = None,
    ):
        if dtype.names is None or dtype.hasobject:
            raise ValueError("rows of a store have a structured dtype of numbers")
        self.folder = remote.as_path(folder)
        self.dtype = dtype
        self.meta = meta
        about = {"fingerprint": fingerprint, "tokenizer_sha256": tokenizer_sha256, "versions": dict(versions or {})}
        self._about: dict[str, Any] = about
        self._per_shard = rows_per_shard or max(1, MAX_SHARD_BYTES // dtype.itemsize)
        self._shards: list[dict[str, Any]] = []
        self._pending: list[np.ndarray] = []
        self._pending_rows = 0
        self._kept = temporary is not None
        if temporary is None:
            _remove_stale(self.folder)
            # A unique name: two processes that prepare the same data never write into each other's files.
            temporary = self.folder.parent / f".{self.folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        self.temporary = temporary
        if remote.is_remote(temporary):
            return
        try:
            self.temporary.mkdir(parents=True, exist_ok=self._kept)
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

    def add_shard(self, entry: dict[str, Any]) -> None:
        """Record a shard of `write_shard` that is already in `.temporary`: {file, records, codec, bytes, sha256}."""
        self._shards.append(entry)

    def close(self) -> None:
        """Write the manifest and rename the folder."""
        if self._pending_rows:
            self._flush()
        data = to_bytes(self._about, self.dtype, self._shards, self.meta)
        if remote.is_remote(self.temporary):
            atomic.write_bytes_atomic(self.temporary / MANIFEST, data)
            return
        try:
            for shard in self._shards:
                atomic.fsync_path(self.temporary / shard["file"])
            atomic.write_bytes_atomic(self.temporary / MANIFEST, data, durable=True)
            if self.temporary != self.folder:
                self._put_in_place()
        except OSError as error:
            self.abort()
            raise StorageError(f"{self.folder}: could not be written ({first_line(error)}); check the disk") from error

    def abort(self) -> None:
        """Remove the writer's own temporary folder."""
        if not self._kept:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _flush(self) -> None:
        name = shard_name(len(self._shards))
        records = write_shard(self.temporary / name, self._pending)
        entry = remote.move_verified(self.temporary / name, self.temporary / name)
        self._shards.append({"file": name, "records": records, "codec": row_codec.CODEC, **entry})
        self._pending, self._pending_rows = [], 0

    def _put_in_place(self) -> None:
        for _ in range(10):
            try:
                os.rename(self.temporary, self.folder)
                atomic.fsync_path(self.folder.parent)
                return
            except OSError:
                if not self.folder.exists():
                    raise
            if self._same_store_is_there():  # another process was faster, and its rows are ours
                shutil.rmtree(self.temporary, ignore_errors=True)
                return
            aside = self.folder.parent / f".{self.folder.name}.{secrets.token_hex(4)}.old.tmp"
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


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # the extension raises plain exceptions of several types
        raise StorageError(f"{path}: could not be written ({first_line(error)}); check the disk") from error


def _remove_stale(folder: Path) -> None:
    """Remove temporary folders of processes that died long ago."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass
