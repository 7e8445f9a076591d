"""Prepare a worker: mounts, Python, the packages of the lock, a free TPU. Standard library, Python 3.8+."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from worker_output import locked, print_line, run_logged

PYTHONS = ("python3.11", "python3.12", "python3.13", "python3")
PACKAGES = "launch/requirements-tpu.lock"
TPU_LOCK = Path("/tmp/libtpu_lockfile")  # libtpu holds a record lock on it (lockf) while it uses the TPU
# A fresh machine runs apt itself; the timeout covers dpkg's locks, the tries those of the package lists.
APT = ("sudo", "apt-get", "-o", "DPkg::Lock::Timeout=300", "--yes", "--quiet")
APT_TRIES = 5
APT_PAUSE = 15.0  # seconds


def setup(home: Path, code: Path, nfs: Sequence[str]) -> int:
    """Mounts the shares and installs bertjax for TPU, where that is not done yet -> 0 or 1."""
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "setup.lock"):
        for share in nfs:
            if _mount(share):
                return 1
        stamp = code / ".venv" / ".launched"
        if stamp.exists():
            return 0
        python = _python(code)
        if python is None:
            return 1
        print_line(f"launch: installing bertjax with {python}")
        # By hash from the lock, with uv or, where that fails, with pip.
        if run_logged([".ci/setup", python, PACKAGES], code):
            return 1
        stamp.touch()
    return 0


def _mount(share: str) -> int:
    source, _, where = share.rpartition(":")
    if os.path.ismount(where):
        return 0
    print_line(f"launch: mounting {source} at {where}")
    if not Path("/sbin/mount.nfs").exists() and apt_install("nfs-common"):
        return 1
    steps = [["sudo", "mkdir", "-p", where], ["sudo", "mount", "-t", "nfs", source, where]]
    return next((code for argv in steps if (code := run_logged(argv, Path.cwd()))), 0)


def apt_install(package: str) -> int:
    """Installs a package of the distribution, waiting for other users of apt -> 0 or the last exit code."""
    code = 0
    for tries in range(APT_TRIES):
        if tries:
            print_line(f"launch: trying again in {APT_PAUSE:g} s to install {package}")
            time.sleep(APT_PAUSE)
            run_logged([*APT, "update"], Path.cwd())  # the lists of the image may be old
        code = run_logged([*APT, "install", package], Path.cwd())
        if code == 0:
            break
    return code


def _python(code: Path) -> str | None:
    """A Python of 3.11 or newer; TPU images have 3.10, so uv, pinned by the lock, may have to install it."""
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for name in PYTHONS:
        with contextlib.suppress(OSError):
            if subprocess.run([name, "-c", check], capture_output=True).returncode == 0:
                return name
    tools, uv = code / ".tools", code / ".tools" / "bin" / "uv"
    if not uv.exists():
        pins = re.search(r"^uv==(?:.*\\\n)*.*\n", (code / "requirements.lock").read_text(), re.MULTILINE)
        tools.mkdir(exist_ok=True)
        (tools / "uv.txt").write_text(pins[0] if pins else "uv\n")
        argv = ["python3", "-m", "pip", "install", "--quiet", "--require-hashes", "--target", ".tools"]
        if run_logged([*argv, "-r", ".tools/uv.txt"], code):
            return None
    if run_logged([".tools/bin/uv", "python", "install", "--quiet", "3.11"], code):
        return None
    found = subprocess.run([str(uv.resolve()), "python", "find", "3.11"], capture_output=True, text=True)
    return found.stdout.strip() or None


def free_tpu(lock: Path = TPU_LOCK) -> str:
    """Removes a lock file that no process holds: one of another user stops libtpu -> what it did, or who holds it."""
    try:
        found = lock.stat()
    except OSError:
        return ""
    holders = sorted({*_lock_holders(found), *_users_of(found)})
    if holders:
        return f"launch: {lock} is held by process {', '.join(map(_named, holders))}; training needs the TPU"
    try:
        lock.unlink()
    except FileNotFoundError:
        return ""
    except PermissionError:  # of another user, in a sticky folder
        try:
            subprocess.run(["sudo", "-n", "rm", "-f", str(lock)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
            return f"launch: {lock}, which no process holds, could not be removed: {said}"
    return f"launch: removed {lock}, which no process held"


def _lock_holders(file: os.stat_result) -> Iterator[int]:
    """The processes, also those of other users, that have a file locked."""
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if place in words and "->" not in words:  # "->": waits for it
                yield int(words[words.index(place) - 1])


def _users_of(file: os.stat_result) -> Iterator[int]:
    """The processes of this user that have a file open: a record lock can get lost, an open file does not."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            for link in folder.iterdir():
                with contextlib.suppress(OSError):
                    there = link.stat()
                    if (there.st_dev, there.st_ino) == (file.st_dev, file.st_ino):
                        yield int(folder.parent.name)


def _named(pid: int) -> str:
    try:
        return f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return str(pid)
