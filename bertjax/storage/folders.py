"""What a folder of checkpoints on a disk has and one in an object store has not: renames, fsync.

On a disk a step gets its final name in one rename. In an object store its objects are written under the final name, and
the step is complete once Orbax has written `commit_success.txt` into it: without that marker it is not there. Deleting
a step and putting it in quarantine therefore begin with the marker. Buckets with a hierarchical namespace keep folders
whose objects are gone: an empty folder means nothing, and is removed where something is to be written.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.storage import atomic, remote

log = logging.getLogger(__name__)
COMMIT_MARKER = "commit_success.txt"
TRASH = "trash"
QUARANTINE = "quarantine"


def make_folder(folder: Path) -> None:
    """Create a folder on a disk; in an object store its objects bring it about. Raises OSError."""
    if not remote.is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)


def absolute(folder: Path) -> Path:
    return folder if remote.is_remote(folder) else folder.expanduser().absolute()


def list_folders(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """The names of the folders in a folder that are `wanted`; none in a missing one. Of a store no cache is used."""
    if remote.is_remote(folder):
        return [name for name, is_folder in list_names(folder).items() if is_folder and wanted(name)]
    try:
        return [entry.name for entry in os.scandir(folder) if wanted(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def complete_folders(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Like `list_folders`, without unfinished ones: empty ones on a disk, those without a marker in an object store."""
    names = list_folders(folder, wanted)
    if remote.is_remote(folder):
        marked = remote.map_threaded(lambda name: _is_file(folder / name / COMMIT_MARKER), names)
        return [name for name, is_marked in zip(names, marked, strict=True) if is_marked]
    return [name for name in names if not _is_empty(folder / name)]


def list_names(folder: Path) -> dict[str, bool]:
    """The names in a folder of an object store, as the store has them now -> {name: whether it is a folder}."""
    with remote.remote_errors(folder):
        files = remote.file_system(folder)
        files.invalidate_cache()  # tensorstore and other machines write without this client's knowledge
        try:
            found = files.ls(str(folder), detail=True)
        except FileNotFoundError:
            if not bucket_exists(folder):
                raise
            return {}
        finally:
            files.invalidate_cache()  # Orbax asks the same client
        return {each["name"].rstrip("/").rpartition("/")[2]: each["type"] == "directory" for each in found}


def bucket_exists(folder: Path) -> bool:
    """Whether there is the bucket of a folder, as far as the rights to ask for it go."""
    scheme, _, name = str(folder).partition("://")
    bucket = f"{scheme}://{name.partition('/')[0]}"
    files = remote.file_system(folder)
    try:
        files.info(bucket)
    except FileNotFoundError:
        return False
    except Exception as error:  # noqa: BLE001  (rights for objects do not include those for the bucket's own data)
        log.debug("%s: %s", bucket, error)
    return True


def holds_files(folder: Path) -> bool:
    """Whether a folder of an object store holds an object, in it or below it."""
    with remote.remote_errors(folder):
        files = remote.file_system(folder)
        files.invalidate_cache()
        try:
            return bool(files.find(str(folder)))
        except FileNotFoundError:
            return False
        finally:
            files.invalidate_cache()


def _is_file(path: Path) -> bool:
    return remote.file_size(path) is not None


def _is_empty(path: Path) -> bool:
    try:
        return not os.listdir(path)
    except OSError:  # deleted since it was listed
        return True


def delete_folder(folder: Path, name: str) -> None:
    """Delete a complete folder so that a crash leaves no half of it listed. Raises OSError or StorageError."""
    if remote.is_remote(folder):
        remote.remove(folder / name / COMMIT_MARKER)
        remove_objects(folder / name)
        return
    trash = folder / TRASH / f"{name}-{time.time_ns()}"
    trash.parent.mkdir(exist_ok=True)
    os.rename(folder / name, trash)
    shutil.rmtree(trash, ignore_errors=True)


def quarantine_folder(folder: Path, name: str, reason: str) -> str:
    """Take a damaged folder out of the list and keep its files -> where they are. Raises OSError or StorageError."""
    if remote.is_remote(folder):
        record = folder / QUARANTINE / f"{name}.json"
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        atomic.write_json_atomic(record, {"step": name, "reason": reason, "time": now})
        remote.remove(folder / name / COMMIT_MARKER)
        return f"left there without its {COMMIT_MARKER}, see {QUARANTINE}/{name}.json"
    target = folder / QUARANTINE / name
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        target = target.with_name(f"{name}-{time.time_ns()}")
    os.rename(folder / name, target)
    return f"moved to {target.relative_to(folder)}"


def make_room(folder: Path, name: str) -> None:
    """Remove what an object store holds under the name of a folder that is about to be written."""
    if remote.is_remote(folder) and list_folders(folder, name.__eq__):
        log.warning("%s: the incomplete or damaged one there is replaced", folder / name)
        remove_objects(folder / name)


def remove_unfinished(folder: Path, name: str, unfinished: str) -> None:
    """Remove the files of a failed save of the folder `name`, on a disk NAME + `unfinished`*."""
    if remote.is_remote(folder):
        if not _is_file(folder / name / COMMIT_MARKER):
            remove_objects(folder / name)
        return
    for path in folder.glob(f"{name}{unfinished}*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path, unfinished: str, wanted: Callable[[str], bool]) -> None:
    """Remove unfinished saves and deletions and empty folders; those in quarantine stay. Only for the writer."""
    if remote.is_remote(folder):
        names = set(list_folders(folder, wanted))
        left = names - set(complete_folders(folder, names.__contains__)) if names else set()
        for name in left - (_quarantined(folder) if left else set()):
            remove_objects(folder / name)
        return
    for entry in list(os.scandir(folder)):
        if unfinished in entry.name or entry.name == TRASH:
            shutil.rmtree(entry.path, ignore_errors=True)
        elif wanted(entry.name) and entry.is_dir() and _is_empty(Path(entry.path)):
            os.rmdir(entry.path)


def _quarantined(folder: Path) -> set[str]:
    return {name.removesuffix(".json") for name in list_names(folder / QUARANTINE) if name.endswith(".json")}


def remove_objects(folder: Path) -> None:
    """Remove every object below a folder of an object store, and the folders in buckets that have such."""
    with remote.remote_errors(folder):
        files = remote.file_system(folder)
        files.invalidate_cache()
        try:
            if names := files.find(str(folder)):
                files.rm(names)
                files.invalidate_cache()
            files.rm(str(folder), recursive=True)  # folders, which may be empty
        except FileNotFoundError:  # it has none, or another client was faster
            pass
        finally:
            files.invalidate_cache()


def flush_names(folder: Path) -> None:
    """Force the names in a folder to the disk. Raises OSError."""
    if not remote.is_remote(folder):
        atomic.fsync_path(folder)


def flush_unfinished(folder: Path, unfinished: str) -> None:
    """Flush the saves in a folder that are about to get their final names. Raises OSError."""
    if remote.is_remote(folder):
        return  # an object that was written is durable
    for path in folder.glob(f"*{unfinished}*"):
        flush_tree(path)


def flush_tree(path: Path) -> None:
    """Flush a folder on a disk and everything below it."""
    for parent, _, names in os.walk(path):
        for name in [*names, "."]:
            atomic.fsync_path(os.path.join(parent, name))


def read_json(path: Path) -> Any:
    """A JSON file; None if there is none or it cannot be read as JSON. Raises StorageError for a store out of reach."""
    try:
        with remote.remote_errors(path):
            return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError, RecursionError):
        return None
