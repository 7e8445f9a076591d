"""Reads prepared rows: ArrayRecord shards, one row (a structured numpy scalar) per record, as `row_codec` encodes it.

ArrayRecord detects flipped bits but not truncation, so counts and sizes are compared with the manifest on opening.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from bertjax.data.store import row_codec
from bertjax.data.store.manifest import MANIFEST, dtype_of, first_line, read
from bertjax.data.store.row_format import field_list
from bertjax.progress import reporter
from bertjax.progress.text import size as size_text
from bertjax.storage import remote, staging
from bertjax.storage.remote import DamagedError

MAX_OPEN_READERS = 256  # file handles a store holds at most
# Rows are read at random, so ArrayRecord's read-ahead and thread pool would fetch rows that are not needed.
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class Store:
    """Random access to the rows of a finished store, local or in an object store (then copied by `fetch`).

    Raises UserError for a folder that is no store of this format, StorageError naming a missing or truncated shard.
    """

    def __init__(self, folder: Path):
        self.folder = remote.as_path(folder)
        manifest = read(self.folder)
        self.dtype = dtype_of(manifest)
        self.meta: dict[str, Any] = manifest["meta"]
        self.fingerprint: str = manifest["fingerprint"]
        self.tokenizer_sha256: str = manifest["tokenizer_sha256"]
        self.versions: dict[str, int] = manifest.get("versions", {})  # none in stores of earlier versions
        self.shards: list[dict[str, Any]] = manifest["shards"]
        counts = np.array([shard["records"] for shard in self.shards], np.int64)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._coded = {index for index, shard in enumerate(self.shards) if "codec" in shard}
        self._files = [self.folder / shard["file"] for shard in self.shards]  # to be read
        # Readers with their locks; one dropped from the cache lives on until the read that uses it has ended.
        self._reader = lru_cache(maxsize=MAX_OPEN_READERS)(self._open)
        self._fetch_lock = Lock()
        self._is_local = not remote.is_remote(self.folder)
        self._check()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __reduce__(self) -> tuple[type["Store"], tuple[Path]]:
        return Store, (self.folder,)

    def __getitem__(self, index: int) -> np.void:
        """One row; IndexError outside [0, len)."""
        return self.rows([index])[0]

    @property
    def num_bytes(self) -> int:
        return sum(shard["bytes"] for shard in self.shards)

    def rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows at `indices` [n], as a structured array [n]. Thread-safe. IndexError outside [0, len)."""
        rows = np.empty(len(indices), self.dtype)
        self._read_into({name: rows[name] for name in self.dtype.names or ()}, indices)
        return rows

    def columns(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The fields of `rows`, each a contiguous array [n, ...]: of a batch, without a copy in between."""
        fields = {name: np.empty((len(indices), *shape), kind) for name, kind, shape in field_list(self.dtype)}
        self._read_into(fields, indices)
        return fields

    def _read_into(self, fields: Mapping[str, np.ndarray], indices: Sequence[int] | np.ndarray) -> None:
        wanted = np.asarray(indices, np.int64)
        if not wanted.size:
            return
        if not (0 <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"{self.folder} has rows 0 to {len(self) - 1}; asked for {wanted.min()} to {wanted.max()}")
        self.fetch()
        shard_of = np.searchsorted(self._ends, wanted, side="right")
        places = wanted - self._starts[shard_of]
        records, parts = [b""] * len(wanted), {}
        for index in np.unique(shard_of).tolist():
            where = parts[index] = np.flatnonzero(shard_of == index)
            for at, record in zip(where.tolist(), self._read(index, places[where].tolist()), strict=True):
                records[at] = record
        if all(index in self._coded for index in parts):
            try:
                return row_codec.decode(records, self.dtype, fields)
            except ValueError:
                pass  # the shard is found below
        for index, where in parts.items():
            decode = row_codec.decode if index in self._coded else row_codec.decode_plain
            try:
                decode([records[at] for at in where.tolist()], self.dtype, fields, where)
            except ValueError as error:
                raise self._damaged(index, f"holds rows of another kind ({first_line(error)})") from error

    def verify(self, workers: int = 1) -> None:
        """Compare the sha256 of every stored shard with the manifest; StorageError names the first that differs."""
        task = reporter.task(f"verifying {self.folder.name}", self.num_bytes, "bytes", finish=False)
        with task, ThreadPoolExecutor(workers) as pool:
            for index, digest in enumerate(pool.map(self._hash, range(len(self.shards)))):
                if digest != self.shards[index]["sha256"]:
                    pool.shutdown(cancel_futures=True)
                    raise self._damaged(index, f"damaged (sha256 differs from {MANIFEST})")

    def _hash(self, index: int) -> str:
        try:
            return remote.sha256_file(self.folder / self.shards[index]["file"])
        except OSError as error:
            raise self._damaged(index, f"cannot be read ({error.strerror})") from error

    def fetch(self) -> None:
        """Copy remote shards to this machine, once; StorageError when one is damaged or the disk is too small."""
        with self._fetch_lock:
            if self._is_local:
                return
            entries = [(path, shard["bytes"], shard["sha256"])
                       for path, shard in zip(self._files, self.shards, strict=True)]  # fmt: skip
            with reporter.task(f"copying {self.folder.name} ({size_text(self.num_bytes)}) to this machine"):
                self._files = staging.stage_files(entries)
            self._is_local = True
            self._count()

    def _open(self, index: int) -> tuple[Any, Lock]:
        from array_record.python.array_record_module import ArrayRecordReader

        try:
            return ArrayRecordReader(str(self._files[index]), READ_OPTIONS), Lock()
        except Exception as error:  # the extension raises plain exceptions of several types
            raise self._damaged(index, f"cannot be opened ({first_line(error)})") from error

    def _check(self) -> None:
        """Compare sizes and, of local files, counts with the manifest."""
        map_files = map if self._is_local else remote.map_threaded
        sizes = map_files(remote.file_size, self._files)
        for index, (size, shard) in enumerate(zip(sizes, self.shards, strict=True)):
            if size is None:
                raise self._damaged(index, "is missing")
            if size != shard["bytes"]:
                raise self._damaged(index, f"has {size} bytes, not {shard['bytes']}")
        if self._is_local:
            self._count()

    def _count(self) -> None:
        for index, shard in enumerate(self.shards):
            if (count := self._reader(index)[0].num_records()) != shard["records"]:
                raise self._damaged(index, f"holds {count} rows, not {shard['records']}")

    def _read(self, index: int, positions: list[int]) -> list[bytes]:
        reader, lock = self._reader(index)
        seek, read = reader.seek, reader.read
        try:
            with lock:  # seek and read share a position; a call of read(positions) costs three times as much a row
                return [read() for position in positions if seek(position) is None]
        except Exception as error:  # see _open
            raise self._damaged(index, f"cannot be read ({first_line(error)})") from error

    def _damaged(self, index: int, what: str) -> DamagedError:
        path = self.folder / self.shards[index]["file"]
        return DamagedError(f"{path}: {what}; remove {self.folder.name} and prepare the data again")
