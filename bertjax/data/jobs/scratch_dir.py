"""The folder of intermediate files of a preparation; a later call finds the finished parts there and continues."""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bertjax.data.jobs.jobs import WorkerDiedError
from bertjax.data.store.writer import STALE_SECONDS
from bertjax.errors import StorageError, UserError
from bertjax.interrupts import KEPT_MESSAGE
from bertjax.storage import remote, staging
from bertjax.storage.atomic import open_lock

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Raise it when the division into jobs, their records or the files they share change, so that a preparation begun by
# earlier code is not continued.
JOBS_FORMAT = 2


@dataclass(frozen=True)
class ScratchDir:
    """`folder`: intermediate files. `rows`: the shards of the store while they are made (`StoreWriter.temporary`)."""

    folder: Path
    rows: Path


@contextmanager
def scratch_dir(store: Path, is_distributed: bool) -> Iterator[ScratchDir]:
    """A folder to prepare `store` in, with the finished parts of an interrupted call for the same store.

    It is removed at the end and after an error in the source. Of several preparers on one machine the first gets this
    folder, each of the others one of its own. `is_distributed`: the jobs run on other machines.
    """
    far = remote.is_remote(store)
    if is_distributed and far:
        folder = _folder_of(store)
        with _discard_on_source_error(folder, store):
            yield ScratchDir(folder, store)
        remote.remove(folder)
        return
    above = staging.staging_dir() / "work" if far else store.parent
    name = f"{store.name}-{hashlib.sha256(str(store).encode()).hexdigest()[:8]}" if far else store.name
    made = [path for path in (above, *above.parents) if not path.exists()]
    lock = None
    try:
        try:
            above.mkdir(parents=True, exist_ok=True)
            _remove_stale(above)
            folder, lock = _acquire(_folder_of(above / name))
        except OSError as error:
            raise UserError(f"{above}: no data can be kept here ({error.strerror}); choose another cache") from None
        with _cleanup(folder), _discard_on_source_error(*([store] if far else [])):
            yield ScratchDir(folder, store if far else folder / "rows")
    finally:
        if lock:
            lock.close()
        if far or not store.exists():
            with suppress(OSError):
                for path in made:
                    path.rmdir()


def _folder_of(store: Path) -> Path:
    return store.with_name(f".{store.name}.work{JOBS_FORMAT}")


def remove_scratch_dir(store: Path) -> None:
    """Removes the scratch folder of a preparer that died after its store was in place."""
    folder = _folder_of(store)
    if not remote.is_remote(store) and folder.exists():
        found, lock = _acquire(folder)
        with lock:
            shutil.rmtree(found, ignore_errors=True)


@contextmanager
def _discard_on_source_error(*remains: Path) -> Iterator[None]:
    """Remove `remains` after an error in the source: a corrected source gets a new store."""
    try:
        yield
    except WorkerDiedError:
        raise
    except UserError:
        for path in remains:
            remote.remove(path)
        raise


@contextmanager
def _cleanup(folder: Path) -> Iterator[None]:
    try:
        yield
    except WorkerDiedError:
        raise
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as error:
        _keep_if_useful(folder)
        if error.errno not in DISK_FULL_ERRORS:
            raise
        kept = f"; {KEPT_MESSAGE}" if folder.exists() else ""
        reason = f"no room for prepared data ({error.strerror})"
        raise StorageError(f"{folder.parent}: {reason}; free some space{kept}") from error
    except BaseException:
        _keep_if_useful(folder)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _keep_if_useful(folder: Path) -> None:
    shutil.rmtree(folder / "making", ignore_errors=True)
    if not any(folder.glob("*-done/*.json")):
        shutil.rmtree(folder, ignore_errors=True)


def _acquire(folder: Path) -> tuple[Path, IO[str]]:
    """`folder`, created and locked, or one of another name when another process has it. OSError when that fails."""
    folder.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        lock = open_lock(folder / "lock")
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(folder / "lock").st_ino == os.fstat(lock.fileno()).st_ino:  # and it was not replaced
                shutil.rmtree(folder / "making", ignore_errors=True)
                return folder, lock
        lock.close()
    own = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    return own, open_lock(own / "lock")


def _remove_stale(above: Path) -> None:
    """Removes scratch folders that were not used for a week."""
    for folder in above.glob(".*.work*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                with open_lock(folder / "lock") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
