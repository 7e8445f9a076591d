"""Checks of a launch on this machine, before anything is created. Standard library only."""

from __future__ import annotations

import json
import posixpath
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tpu_pod.gcloud import RUNTIMES, LaunchError, Pod, generation
from tpu_pod.redact import redact
from tpu_pod.state import ROOT, check_name, is_tracked

# Sizes of the accelerator types of Cloud TPU: cores for v2 to v4 and v5p, chips for v5e and v6e. A copy of those in
# bertjax/plan/topologies.py, which old Python versions cannot import.
_CUBES = (8, 16, 32, 64)
SIZES = {
    "v2": (8, 32, 128, 256, 512),
    "v3": (8, 32, 64, 128, 256, 512, 1024, 2048),
    "v4": (*_CUBES, *range(128, 8193, 128)),
    "v5litepod": (1, 4, 8, 16, 32, 64, 128, 256),
    "v5p": (*_CUBES, *range(128, 12289, 128)),
    "v6e": (1, 4, 8, 16, 32, 64, 128, 256),
}
_ZONE = re.compile(r"[a-z]+(?:-[a-z]+)+\d+-[a-z]\d?")
_URL = re.compile(r"(?:https?|ssh|git)://[^/\s]+/\S+|[\w.-]+@[\w.-]+:\S+|[\w-]+(?:\.[\w-]+)+:(?!/)\S+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_ABSENT_MODEL = re.compile(r"(?:.*: )?(pretrained|model\.config_from): (.+?): no such folder.*")
CHECK = (
    "import json, sys\n"
    "try:\n"
    "    from bertjax.config.loading.load import load\n"
    "    from bertjax.errors import BertjaxError\n"
    "    from bertjax.plan.launch_info import launch_info\n"
    "except ImportError as error:\n"
    "    print(f'not checked here: {error}'); sys.exit()\n"
    "try:\n"
    "    print(json.dumps(launch_info(load(sys.argv[3], sys.argv[4:]), int(sys.argv[1]), int(sys.argv[2]))))\n"
    "except BertjaxError as error:\n"
    "    print(error, file=sys.stderr); sys.exit(2)\n"
)


@dataclass(frozen=True)
class WorkerPaths:
    """Folders of the workers: the mounts and the working directory of training.

    `shared`: run.root is shared by all workers and persistent although no --nfs mounts it (--root-is-shared).
    """

    mounts: Sequence[str] = ()
    cwd: str | None = None
    shared: bool = False
    keep: bool = False

    def is_mounted(self, path: str) -> bool:
        """Whether a path of the configuration is in a mounted folder."""
        full = path if path.startswith("/") else f"{self.cwd}/{path}" if self.cwd else ""
        full = posixpath.normpath(full) if full else ""  # /mnt/share/../x is not in /mnt/share
        mounts = [posixpath.normpath(mount).rstrip("/") for mount in self.mounts]
        return any(full == mount or full.startswith(f"{mount}/") for mount in mounts)


@dataclass
class Findings:
    """`problems` stop the launch; `notes` are printed. `root` and `name`: run.root and run.name, if known."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    root: str | None = None
    name: str | None = None

    def stop(self) -> None:
        if self.problems:
            raise LaunchError("\n".join(map(redact, self.problems)))

    def run_folder(self, cwd: str | None) -> str | None:
        """The run's folder as the workers name it, if known; a relative one starts in `cwd` or in the code."""
        if self.root is None or self.name is None:
            return None
        return posixpath.join("" if _SCHEME.match(self.root) else cwd or "", self.root, self.name)


def log_folder(root: str | None, name: str) -> str | None:
    """Where workers upload their output: beside the runs, if those are in gs://."""
    return f"{root.rstrip('/')}/launch/{name}" if root is not None and root.startswith("gs://") else None


def device_count(kind: str) -> int:
    """Number of jax devices in one slice: cores for v2 and v3, chips otherwise."""
    name, size = generation(kind), int(kind.partition("-")[2])
    return size // 2 if name in ("v4", "v5p") else size


def check_pod(pod: Pod, runtime_given: bool) -> None:
    """Checks type, names, zone and software version by the rules of Cloud TPU. Raises LaunchError."""
    name = generation(pod.type)
    size = int(pod.type.partition("-")[2])
    if size not in SIZES[name]:
        near = [known for known in SIZES[name] if known < size][-1:] + [k for k in SIZES[name] if k > size][:1]
        hint = " or ".join(f"{name}-{known}" for known in near)
        raise LaunchError(f"--type: there is no {pod.type}; did you mean {hint}?")
    for node in pod.planned_nodes():
        check_name(node, "--node-id" if pod.node_id and pod.node_id != pod.name else "--name")
    if pod.zone and not _ZONE.fullmatch(pod.zone):
        region = re.fullmatch(r"[a-z]+(?:-[a-z]+)+\d+", pod.zone)
        hint = f"is a region; name a zone of it, such as {pod.zone}-a" if region else "write a zone like us-west4-a"
        raise LaunchError(f"--zone: {pod.zone!a}: {hint}")
    others = {version for other, version in RUNTIMES.items() if RUNTIMES[name] != version}
    if runtime_given and pod.runtime in others:
        raise LaunchError(f"--runtime-version: {pod.runtime} is not for {name}; leave it out for {RUNTIMES[name]}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", pod.runtime):
        raise LaunchError(
            f"--runtime-version: {pod.runtime!a} is not a version name; leave it out for {RUNTIMES[name]}"
        )


def check_repo(url: str, place: WorkerPaths) -> None:
    """Checks that workers can clone the repository. Raises LaunchError for a local path."""
    if _URL.fullmatch(url):
        return
    path = re.sub(r"^file://", "", url)
    if not (path.startswith("/") and place.is_mounted(path)):
        raise LaunchError(
            f"--repo: {redact(url)}: the workers cannot clone it; give a URL such as https://host/owner/name.git"
        )


def check_command(pod: Pod, command: Sequence[str], place: WorkerPaths, repo: bool) -> Findings:
    """Checks the configuration with its overrides; with `repo`, the copy in this checkout."""
    found = Findings()
    if twice := sorted({mount for mount in place.mounts if place.mounts.count(mount) > 1}):
        found.problems.append(f"--nfs: two shares are mounted at {twice[0]}; give each its own folder")
    known = _check_config(pod, command, found, place, repo)
    if known:
        found.problems += known["problems"]
        _check_paths(known["paths"], place, found)
    if repo:  # the copy in this checkout may differ
        found.notes += [f"in this checkout's copy: {problem}" for problem in found.problems]
        found.problems, known = [], None
    given = dict(word.split("=", 1) for word in command[1:])
    found.root = known["root"] if known else given.get("run.root")
    found.name = known["name"] if known else given.get("run.name")
    _check_root(pod, found.root, place, found)
    return found


def _check_config(
    pod: Pod, command: Sequence[str], found: Findings, place: WorkerPaths, repo: bool
) -> dict[str, Any] | None:
    """Loads the configuration with bertjax; None, with a note, where bertjax cannot run."""
    name = command[0]
    if repo and not (ROOT / name).is_file():
        found.notes.append(f"{name}: not checked, it is only in --repo")
        return None
    own = ROOT / ".venv" / "bin" / "python"
    slices = pod.node_count or 1
    python = str(own) if own.exists() else sys.executable
    argv = [python, "-c", CHECK, str(slices * device_count(pod.type)), str(slices), *command]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 2:
        lines = done.stderr.strip().splitlines()
        absent = {line: (match[1], match[2]) for line in lines if (match := _ABSENT_MODEL.fullmatch(line))}
        for line in lines:
            key, folder = absent.get(line, ("", ""))
            if folder and place.is_mounted(folder):  # exists on the workers only
                said = f"mesh, batches and files not checked: {key} {folder} is not on this machine"
                found.notes.append(f"{name}: {said}")
            else:
                found.problems.append(line)
        return None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    except ValueError:
        said = (done.stdout or done.stderr).strip().splitlines()
        found.notes.append(f"{name}: {said[-1] if said else 'not checked here'}")
        return None


def _check_root(pod: Pod, root: str | None, place: WorkerPaths, found: Findings) -> None:
    """Checks that checkpoints are not on a worker's own disk, unseen by others and deleted with the machine."""
    workers = (pod.node_count or 1) * pod.planned_workers()
    advice = (
        "name a bucket (run.root=gs://BUCKET/runs) or a folder that outlives the machines "
        "(--nfs HOST:/SHARE:/MOUNT run.root=/MOUNT/runs)"
    )
    many = f"{workers} worker{'s' * (workers > 1)}"
    if any("run.root:" in problem for problem in found.problems):
        return
    if root is not None and root.startswith("gs://"):
        return  # bertjax says what is wrong with the name; rights and the bucket show when training starts
    if root is not None and _SCHEME.match(root):
        found.problems.append(f"run.root: {root}: must be in gs:// or a mounted file system; {advice}")
    elif place.shared or (root is not None and place.is_mounted(root)):
        return
    elif root is None:
        found.notes.append(f"{many}: run.root is unknown; {advice}")
    elif workers == 1 and place.keep:
        found.notes.append(f"run.root: {root}: is on the machine's own disk and deleted with it; {advice}")
    else:
        lost = "no other worker sees it, and it is deleted with the machine" if workers > 1 else "it is deleted with it"
        found.problems.append(
            f"run.root: {root}: is on {'each' if workers > 1 else 'the'} machine's own disk: {lost}; {advice}, or give "
            "--root-is-shared if the machines share it by other means"
        )


def _check_paths(paths: Sequence[Sequence[str]], place: WorkerPaths, found: Findings) -> None:
    """Checks that inputs are in a mounted folder, an object store or the code."""
    for key, path in paths:
        if "://" in path or place.is_mounted(path):
            continue
        if path.startswith(("/", "~")) or place.cwd:
            found.notes.append(f"{key}: {path}: is not in an --nfs folder; the workers' own disks must have it")
        elif not is_tracked(path):
            found.problems.append(
                f"{key}: {path}: is not in the code that is sent; name a path in an --nfs folder, or start "
                "training there: --cwd /MOUNT"
            )
