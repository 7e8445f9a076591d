"""Lock a folder of an object store for one writer, with an object that its holder renews: `writer.lock`.

Every write has the precondition that the object is the one that was read (its generation), so that of two writers one
fails. A lease that was not renewed for some time may be taken over; a holder that finds it taken stops before it
commits anything more.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bertjax.errors import StorageError, UserError, brief
from bertjax.progress import reporter
from bertjax.storage import remote

log = logging.getLogger(__name__)
FILE_NAME = "writer.lock"
RENEW_SECONDS = 15.0
EXPIRE_SECONDS = 90.0  # without a renewal; far longer than a request with its retries
RETRIES = {"max_retries": 5, "initial_delay": "500ms", "max_delay": "8s"}  # of one request: about 20 seconds
_held: dict[str, "Lease"] = {}  # folder -> lease of this process


def hold(folder: Path) -> "Lease":
    """The lease on a folder: a new one, or that which this process holds on it or on a folder above.

    Raises UserError naming another holder, also for missing rights, and StorageError.
    """
    for place in (str(folder), *map(str, folder.parents)):
        found = _held.get(place)
        if found is not None and found.pid == os.getpid():
            if place == str(folder):
                raise _locked_error(folder, found.content)
            return found.share()
    return Lease(folder)


class Lease:
    """A lease held from construction to the last `release`; made by `hold`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pid = folder, os.getpid()
        self._shares, self._stop, self._guard = 1, threading.Event(), threading.Lock()
        self._taken_by: dict[str, Any] | None = None
        now = _now()
        self.content = {"host": socket.gethostname(), "pid": self.pid, "started": now, "token": secrets.token_hex(8)}
        self._store = _open(folder)
        self._generation = self._acquire()
        _held[str(folder)] = self
        threading.Thread(target=self._renew_always, name="writer_lease", daemon=True).start()

    def share(self) -> "Lease":
        """The same lease for another user in this process, with a `release` of its own."""
        self._shares += 1
        return self

    def _acquire(self) -> bytes:
        wait_until, waiting = 0.0, False
        first: bytes | None = None
        while True:
            found, generation = self._read()
            holder = _parse(found)
            if holder is None or _is_gone(holder) or (wait_until and time.monotonic() > wait_until):
                if holder is not None:
                    log.info("%s: taken over from process %s on %s", self._path, holder["pid"], holder["host"])
                if (written := self._write(generation)) is not None:
                    return written
                continue  # another process was faster: look who
            first = generation if first is None else first
            if generation != first:  # renewed meanwhile
                raise _locked_error(self.folder, holder)
            if not waiting:
                waiting, wait_until = True, time.monotonic() + EXPIRE_SECONDS
                seconds = f"{EXPIRE_SECONDS:.0f} s"
                reporter.say(f"{self._path}: held by process {holder['pid']} on {holder['host']}; it is taken over "
                             f"unless it is renewed within {seconds}")  # fmt: skip
            time.sleep(min(1.0, EXPIRE_SECONDS / 20))

    @property
    def _path(self) -> str:
        return f"{self.folder}/{FILE_NAME}"

    def _read(self) -> tuple[bytes | None, bytes]:
        """-> (content, generation), of a missing object (None, the generation of none)."""
        try:
            found = self._store.read(FILE_NAME).result()
        except Exception as error:  # noqa: BLE001  (tensorstore raises ValueError for everything)
            raise _store_error(self._path, error) from None
        return (bytes(found.value) if found.state == "value" else None), found.stamp.generation

    def _write(self, generation: bytes) -> bytes | None:
        """Write the lease over that of `generation` -> its generation; None if another one is there."""
        data = json.dumps(self.content | {"renewed": _now()}).encode()
        try:
            written = self._store.write(FILE_NAME, data, if_equal=generation).result()
        except Exception as error:  # noqa: BLE001
            raise _store_error(self._path, error) from None
        if written.generation:
            return written.generation
        there, now = self._read()  # the answer to the write may have been lost, and its retry met its own result
        return now if self._is_own(there) else None

    def _is_own(self, data: bytes | None) -> bool:
        return (_parse(data) or {}).get("token") == self.content["token"]

    def _renew_always(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                self._renew()
            except (StorageError, UserError) as error:  # the next one may succeed; `check` decides
                log.debug("%s: not renewed: %s", self._path, error)

    def _renew(self) -> None:
        with self._guard:
            if self._stop.is_set() or self._taken_by is not None:
                return
            written = self._write(self._generation)
            if written is not None:
                self._generation = written
                return
            self._taken_by = _parse(self._read()[0]) or {}

    def check(self) -> None:
        """Raise StorageError if another process has taken the lease over, or it cannot be read."""
        if self._taken_by is None and not self._is_own(found := self._read()[0]):
            self._taken_by = _parse(found) or {}
        if self._taken_by is not None:
            who = "process {pid} on {host}".format(**self._taken_by) if self._taken_by else "another process"
            raise StorageError(
                f"{self.folder}: {who} has taken this run over, which was not heard of for {EXPIRE_SECONDS:.0f} s or "
                "whose lock was removed; this process stops without saving"
            )

    def is_held(self) -> bool:
        return self._taken_by is None

    def release(self) -> None:
        """Remove the object, unless there is another user of the lease or another holder."""
        self._shares -= 1
        if self._shares or self._stop.is_set():
            return
        self._stop.set()
        _held.pop(str(self.folder), None)
        with self._guard:
            try:
                if self._taken_by is None:
                    self._store.write(FILE_NAME, None, if_equal=self._generation).result()
            except Exception as error:  # noqa: BLE001  (it expires)
                log.debug("%s: not removed: %s", self._path, brief(error))


def _open(folder: Path) -> Any:
    import tensorstore

    bucket, _, path = str(folder).removeprefix("gs://").partition("/")
    spec = {"driver": "gcs", "bucket": bucket, "path": f"{path}/", "context": {"gcs_request_retries": RETRIES}}
    return tensorstore.KvStore.open(spec).result()


def _parse(data: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and {"host", "pid", "started", "renewed"} <= found.keys() else None


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether a holder on this machine has ended, or one elsewhere is silent for longer than clocks may differ."""
    try:
        if holder["host"] != socket.gethostname():
            silent = datetime.now(UTC) - datetime.fromisoformat(holder["renewed"])
            return silent.total_seconds() > 10 * EXPIRE_SECONDS
        if holder["pid"] == os.getpid():  # the same number in a container that was started again
            return True
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, TypeError):
        pass
    return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _store_error(path: str, error: Exception) -> Exception:
    reason = brief(error, 160)
    if any(sign in reason for sign in ("PERMISSION_DENIED", "UNAUTHENTICATED", "Forbidden", "403", "401")):
        return UserError(f"{path}: cannot be written, access is refused ({reason}); log in, or ask for rights")
    if "NOT_FOUND" in reason:
        return UserError(f"{path}: cannot be written, there is no such bucket; create it, or correct the name")
    if "code='400'" in str(error):
        return UserError(f"{path}: cannot be written, the request is refused ({reason}); {remote.CHECK_PROJECT}")
    return StorageError(f"{path}: cannot be reached ({reason}); check network and log-in")


def _locked_error(folder: Path, holder: dict[str, Any]) -> UserError:
    who = "process {pid} on {host} since {started}".format(**holder)
    return UserError(f"{folder}: {who} writes checkpoints here; wait for it, stop it, or choose another run.name")
