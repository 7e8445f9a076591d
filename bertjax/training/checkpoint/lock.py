"""Lock a checkpoint folder for one writer, with a POSIX record lock on a file that names the holder.

The kernel drops such a lock when the process ends, or closes any handle of the file. Some shared file systems keep it
to one machine, so the file's modification time is a heartbeat, watched before another machine's lock is taken over.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from bertjax.errors import StorageError, UserError
from bertjax.storage import lease, remote
from bertjax.storage.atomic import open_no_follow
from bertjax.storage.folders import make_folder

log = logging.getLogger(__name__)
FILE_NAME = "writer.lock"
HEARTBEAT_SECONDS = 5.0  # seconds between heartbeats
STALE_SECONDS = 20.0  # how long another machine's heartbeat must stay silent
_own_locks: dict[str, dict[str, Any]] = {}  # path -> holder: a record lock does not exclude its own process


class Lock(Protocol):
    """A lock on a folder for one writer."""

    def check(self) -> None:
        """Raise StorageError if another writer has taken the lock over."""

    def is_held(self) -> bool:
        """Whether no other writer is known to have taken it over."""

    def release(self) -> None: ...


def lock_folder(folder: Path) -> Lock:
    """Lock a folder on a disk or in an object store. Raises UserError naming another holder; StorageError."""
    return lease.hold(folder) if remote.is_remote(folder) else WriterLock(folder)


class WriterLock:
    """A lock held from construction to `release`. Raises UserError naming another holder; StorageError."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._stop = threading.Event()
        self._file = self._lock()
        threading.Thread(target=self._heartbeat, name="writer_lock", daemon=True).start()

    def _lock(self) -> int:
        """Open and lock the file -> its handle."""
        if _own_locks.get(str(self.path), {}).get("pid") == os.getpid():  # not a parent's entry, copied by fork
            raise _locked_error(self.path, _own_locks[str(self.path)])
        try:
            file = open_no_follow(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            _own_locks[str(self.path)] = self._acquire(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _acquire(self, file: int) -> dict[str, Any]:
        shared = True  # the lock reaches every process that could write here
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _locked_error(self.path, _read(file)) from None
            shared = False  # no locks on this file system: the heartbeat decides
        holder = _read(file)
        if holder:
            if (not shared or holder.get("host") != socket.gethostname()) and self._is_alive(file):
                raise _locked_error(self.path, holder)
            log.info("%s: taken over from process %s on %s, which is gone", self.path, holder["pid"], holder["host"])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": now}
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(mine).encode(), 0)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from error
        return mine

    def _is_alive(self, file: int) -> bool:
        """Whether the modification time changes; clocks of other machines are not compared."""
        first, end = os.fstat(file).st_mtime_ns, time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(0.5, STALE_SECONDS / 10))
            if self.path.stat().st_mtime_ns != first:
                return True
        return False

    def _heartbeat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self._file)
            except OSError as error:
                log.debug("%s: no heartbeat: %s", self.path, error)

    def check(self) -> None:
        """The kernel lets no other process lock this file, but the file may be gone: another one may be locked then.

        A file that was deleted is made and locked again. Raises StorageError where the folder was moved, or is locked.
        """
        if self._is_in_place():
            return
        if os.fstat(self._file).st_nlink:
            raise StorageError(
                f"{self.path.parent}: was moved or replaced while this process wrote checkpoints there; move it back "
                "and run the same command again"
            )
        _own_locks.pop(str(self.path), None)
        before = self._file
        try:
            make_folder(self.path.parent)
            self._file = self._lock()
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from error
        except UserError as error:  # not bad input: it was locked here before
            raise StorageError(str(error)) from None
        os.close(before)

    def is_held(self) -> bool:
        return not self._stop.is_set() and self._is_in_place()

    def _is_in_place(self) -> bool:
        """Whether the locked file is at its path. A file system that does not say is taken to keep it."""
        try:
            return os.path.samestat(os.fstat(self._file), self.path.lstat())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def release(self) -> None:
        """Release the lock; an emptied file means that its holder ended normally."""
        if self._stop.is_set():
            return
        self._stop.set()
        _own_locks.pop(str(self.path), None)
        try:
            os.ftruncate(self._file, 0)
        except OSError as error:  # a full or vanished disk: the lock itself goes with the file handle
            log.debug("%s: not emptied: %s", self.path, error)
        os.close(self._file)


def _read(file: int) -> dict[str, Any]:
    """The holder that a lock file names; empty if none."""
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and {"host", "pid", "started"} <= found.keys() else {}


def _locked_error(path: Path, holder: dict[str, Any]) -> UserError:
    who = "process {pid} on {host} since {started}".format(**holder) if holder else "another process"
    return UserError(f"{path.parent}: {who} writes checkpoints here; wait for it, stop it, or choose another run.name")
