"""Keep the small files of a run in an object store: they are written to a local folder, which is copied there.

Checkpoints are not among them: Orbax writes those to the store itself. The local folder is that of run.root's URL below
BERTJAX_STAGING, so that everything which writes a run on a disk writes these runs too. A file that has changed is
uploaded from its beginning, a large one less often than a small one. On a machine that has not seen the run, or where
another one has written since, the folder is fetched first.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bertjax.errors import BertjaxError, StorageError, UserError, brief
from bertjax.progress import reporter
from bertjax.storage import folders, lease, remote, staging
from bertjax.storage.atomic import write_json_atomic

log = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"
NOT_UPLOADED = "wandb"  # its own service has it
NOT_FETCHED = ("tensorboard", "profile", NOT_UPLOADED)  # each start writes its own, and reads no earlier ones
STARTING_FILES = ("config.yaml", "environment.json", "tokenizer")  # what each machine of a run reads
UPLOAD_SECONDS = 30.0  # between two uploads of changed files
UPLOAD_RATE = 1e6  # bytes a second that one growing file takes at most
LAST_SECONDS = 10.0  # for the last upload of a process that hangs
Facts = list[Any]  # size and checksum in the store


def local_root(root: str) -> Path:
    """The local folder that mirrors the runs below a root in an object store."""
    return staging.staging_dir() / "runs" / hashlib.sha256(root.rstrip("/").encode()).hexdigest()[:24]


class Mirror:
    """The small files of one run: `local` and their copies below `place`.

    The primary process opens it with the lease of the run, uploads in a thread and at `push`; the others fetch what
    they start from and upload the files of their own at the end.
    """

    def __init__(self, place: Path, local: Path) -> None:
        self.place, self.local = place, local
        self._record_path = local.with_name(f".{local.name}.mirrored.json")
        self._sent: dict[str, tuple[int, int]] = {}  # name -> size and mtime_ns of the local file that was uploaded
        self._there: dict[str, Facts] = {}  # as it is in the store
        self._not_before: dict[str, float] = {}
        self._lease: lease.Lease | None = None
        self._own: Callable[[str], bool] | None = None  # of another process than the primary; None until it is open
        self._wake, self._over, self._guard = threading.Event(), threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._failing = False

    def open(self, is_primary: bool, process: int) -> None:
        """Fetch what is in the store. Raises UserError (rights, no bucket, another writer) and StorageError."""
        with remote.remote_errors(self.place):
            remote.file_system(self.place)  # that its package is installed
        if is_primary:
            self._lease = lease.hold(self.place)
            try:
                self._refuse_files()
            except BaseException:
                self._lease.release()
                raise
        self.fetch(only=None if is_primary else STARTING_FILES)
        own = {f"train.{process}.log", f"hang-{process}.txt"}
        self._own = (lambda name: True) if is_primary else own.__contains__  # nothing is uploaded before

    def _refuse_files(self) -> None:
        """Raise UserError for a run below an object that is no folder, which an object store would allow."""
        for folder in (self.place, self.place.parent):
            # that of a bucket itself would need more rights than those for its objects
            if "/" in str(folder).partition("://")[2] and remote.file_size(folder) is not None:
                raise UserError(f"{folder}: is a file; name a folder in run.root, or another run.name")

    def start(self) -> None:
        """Upload everything, then go on doing so in a thread."""
        self.push(everything=True)
        self._thread = threading.Thread(target=self._push_always, name="run_mirror", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Ask for an upload soon: a checkpoint was saved, an evaluation has ended."""
        self._wake.set()

    # ---- from the store ---------------------------------------------------------------------------------------------

    def fetch(self, only: tuple[str, ...] | None = None) -> None:
        """Make the local folder what the store holds. Local changes stay if nobody else has written since."""
        self._read_record()
        there = self._list(only)
        if not there and only is None:
            shutil.rmtree(self.local, ignore_errors=True)  # of a run that was deleted there
            self._there, self._sent = {}, {}
        missing = [name for name, facts in there.items()
                   if self._there.get(name) != facts or not (self.local / name).is_file()]  # fmt: skip
        remote.map_threaded(lambda name: self._fetch_file(name, there[name]), missing)
        if only is None:
            for name in self._there.keys() - there.keys():
                if name.partition("/")[0] not in NOT_FETCHED:
                    (self.local / name).unlink(missing_ok=True)
                    self._there.pop(name), self._sent.pop(name, None)
        self._write_record()

    def _list(self, only: tuple[str, ...] | None) -> dict[str, Facts]:
        """{name: facts} of the files in the store."""
        found: dict[str, Facts] = {}
        with remote.remote_errors(self.place):
            files = remote.file_system(self.place)
            for name, is_folder in folders.list_names(self.place).items():
                if name in (CHECKPOINTS, lease.FILE_NAME, *NOT_FETCHED) or (only is not None and name not in only):
                    continue
                path = str(self.place / name)
                inside = files.find(path, detail=True) if is_folder else {path: files.info(path)}
                for each, info in inside.items():
                    below = str(each).rpartition(f"{self.local.name}/{name}")[2]
                    found[name + below] = [info["size"], remote.stored_checksum(info)]
            files.invalidate_cache()
        return found

    def _fetch_file(self, name: str, facts: Facts) -> None:
        path, target = self.place / name, self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            with remote.remote_errors(path), path.open("rb") as source, partial.open("wb") as out:
                shutil.copyfileobj(source, out, remote.CHUNK_BYTES)
            if partial.stat().st_size != facts[0]:
                raise StorageError(f"{path}: {facts[0]} bytes were to be read and others came; run it again")
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        self._there[name], self._sent[name] = facts, _stamp(target)

    # ---- to the store -----------------------------------------------------------------------------------------------

    def push(self, *, everything: bool = False) -> None:
        """Upload the files that have changed; unless `everything`, large ones only as often as UPLOAD_RATE allows.

        Raises UserError and StorageError.
        """
        if self._own is None:
            return
        with self._guard:
            names = {name: path for name, path in self._local_files() if self._own(name)}
            now = time.monotonic()
            due = [name for name, path in names.items() if self._sent.get(name) != _stamp(path)
                   and (everything or now >= self._not_before.get(name, 0.0))]  # fmt: skip
            gone = [name for name in self._sent if name not in names and self._own(name)]
            remote.map_threaded(self._upload, due)
            for name in gone:
                remote.remove(self.place / name)
                self._sent.pop(name), self._there.pop(name, None)
            if due or gone:
                self._write_record()

    def _local_files(self) -> Iterator[tuple[str, Path]]:
        for parent, folders_inside, names in os.walk(self.local):
            if Path(parent) == self.local and NOT_UPLOADED in folders_inside:
                folders_inside.remove(NOT_UPLOADED)
            for name in names:
                if not (name.startswith(".") and name.endswith(".partial")):
                    path = Path(parent, name)
                    yield path.relative_to(self.local).as_posix(), path

    def _upload(self, name: str) -> None:
        source, path = self.local / name, self.place / name
        try:
            stamp = _stamp(source)
            with source.open("rb") as file, remote.remote_errors(path):
                if stamp[0] <= remote.CHUNK_BYTES:
                    path.write_bytes(file.read(stamp[0]))
                else:
                    with path.open("wb") as target:
                        _copy(file, target, stamp[0])
        except FileNotFoundError:  # removed or replaced meanwhile; the next upload has it
            return
        with remote.remote_errors(path):
            info = remote.file_system(path).info(str(path))
        self._sent[name], self._there[name] = stamp, [info["size"], remote.stored_checksum(info)]
        self._not_before[name] = time.monotonic() + stamp[0] / UPLOAD_RATE

    def _push_always(self) -> None:
        while not self._over.is_set():
            self._wake.wait(UPLOAD_SECONDS)
            is_asked = self._wake.is_set()
            self._wake.clear()
            try:
                self.push(everything=is_asked and not self._over.is_set())
                self._failing = False
            except (BertjaxError, OSError) as error:
                if not self._failing:
                    log.warning("%s: its small files are not uploaded for now: %s", self.place, brief(error, 200))
                self._failing = True

    def push_last(self) -> None:
        """Upload what there is before a process that hangs is ended; gives up after some seconds."""
        thread = threading.Thread(target=self._push_quietly, daemon=True)
        thread.start()
        thread.join(LAST_SECONDS)

    def _push_quietly(self) -> None:
        try:
            self.push(everything=True)
        except (BertjaxError, OSError) as error:
            log.debug("%s", error)

    def close(self, failed: bool) -> None:
        """Upload the rest and give the lease back. Raises StorageError unless the run has `failed` anyway."""
        self._over.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if self._lease is None or self._lease.is_held():
                self.push(everything=True)
        except (BertjaxError, OSError) as error:
            line = f"{self.place}: the last small files were not uploaded, they are in {self.local} ({brief(error)})"
            if not failed:
                raise StorageError(f"{line}; run the same command again") from error
            reporter.say(line)
        finally:
            if self._lease is not None:
                self._lease.release()

    # ---- what is known of both --------------------------------------------------------------------------------------

    def _read_record(self) -> None:
        try:
            found = json.loads(self._record_path.read_text(encoding="utf-8"))
            self._there = dict(found["there"])
            self._sent = {name: (size, mtime) for name, (size, mtime) in found["sent"].items()}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            self._there, self._sent = {}, {}

    def _write_record(self) -> None:
        try:
            self._record_path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._record_path, {"there": self._there, "sent": self._sent}, indent=None)
        except OSError as error:
            raise StorageError(f"{self._record_path}: cannot be written: {error.strerror}") from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _copy(source: Any, target: Any, size: int) -> None:
    """Copy the first `size` bytes: the file may grow meanwhile."""
    while size > 0 and (data := source.read(min(size, remote.CHUNK_BYTES))):
        target.write(data)
        size -= len(data)
