"""The state of launch/tpu.py between calls and the code that it sends: one folder per pod. Standard library only."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tpu_pod.gcloud import LaunchError, error_line, run_command
from tpu_pod.redact import HIDDEN, redact, redact_command, redact_word

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """The code of a job: an archive of a revision of this checkout, or a revision of a repository."""

    revision: str
    archive: str | None = None  # a file in the state folder
    repo: str | None = None


@dataclass
class State:
    """One job on one pod, without secrets, which every call has to be given again."""

    command: list[str] = field(default_factory=list)  # the configuration and its overrides
    source: dict[str, Any] = field(default_factory=dict)
    status: str = "new"  # new | running | finished | failed
    attempt: int = 0
    started: bool = False  # whether the workers run this attempt; a new call then follows it
    began: float = 0.0  # start of the attempt, in seconds since the epoch
    retries: int = 0
    in_place: int = 0  # restarts in a row on the same machines
    ready: str = ""  # the machines (by their creation time) that have the code
    code: int | None = None
    reason: str = ""
    pod: dict[str, Any] = field(default_factory=dict)  # the fields of gcloud.Pod without metadata, for --status
    run: str | None = None  # the run's folder on the workers or in a bucket, if known
    checks: int = 0  # number of the last `bertjax doctor --cluster`
    checked: str = ""  # the machines (as `ready`) that passed it


_ADDED = ("pod", "run", "checks", "checked")  # absent from states of earlier versions


class StateDir:
    """The state, the archive and the logs of a pod's jobs, in `<root>/<name>`."""

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / name

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    def load(self) -> State:
        """The saved state, or a new one. Raises LaunchError when the file is damaged."""
        try:
            found = json.loads(self.state_file.read_text(encoding="utf-8"))
            names = [name.name for name in fields(State) if name.name in found or name.name not in _ADDED]
            return State(**{name: found[name] for name in names})
        except FileNotFoundError:
            return State()
        except (ValueError, KeyError, TypeError) as error:
            raise LaunchError(f"{self.state_file}: not a state of launch/tpu.py ({error}); move it away") from None

    def save(self, state: State) -> None:
        new = self.state_file.with_suffix(".new")
        new.write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.state_file)

    def logs(self, attempt: int) -> Path:
        folder = self.path / f"attempt-{attempt:03d}"
        folder.mkdir(exist_ok=True)
        return folder

    def note(self, line: str) -> None:
        """Prints a line, and appends it with the time to launch.log."""
        line = redact(line)
        print(f"launch: {line}", flush=True)
        with open(self.path / "launch.log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def run_command(self, argv: Sequence[str]) -> tuple[int, str, str]:
        """Runs a command and logs it with its error to launch.log, except successful `describe` commands."""
        code, out, err = run_command(argv)
        if "describe" in argv and code == 0:
            return code, out, err
        with open(self.path / "launch.log", "a", encoding="utf-8") as log:
            said = redact(f" -> {code}: {error_line(err)}") if code else ""
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} $ {redact_command(argv)}{said}\n")
        return code, out, err

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Allows one launcher per pod at a time."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "lock", "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LaunchError(
                    f"{self.path.name}: another launch/tpu.py is running for it; stop that one first"
                ) from None
            yield


def load_or_create(folder: StateDir, command: Sequence[str], repo: str | None, ref: str) -> State:
    """The state of this job: the saved one if it is running or finished, otherwise a new one.

    A job keeps the code it started with. Raises LaunchError when another job runs on the pod, or git fails.
    """
    state, shown = folder.load(), [redact_word(word) for word in command]
    if state.status in ("running", "finished") and state.command == shown:
        return state
    if state.status == "running" and state.started:
        raise LaunchError(
            f"{folder.path.name}: still runs {' '.join(state.command)}; give another --name, or stop it (Ctrl-C while "
            f"following it shows how) and remove {folder.state_file}"
        )
    source = Source(resolve_ref(repo, ref), repo=redact_word(repo)) if repo else create_archive(folder.path)
    # Attempt numbers continue: the workers identify attempts by them.
    fresh = State(command=shown, source=asdict(source), status="running", attempt=state.attempt + 1)
    fresh = replace(fresh, ready=state.ready, pod=state.pod, checks=state.checks, checked=state.checked)
    folder.save(fresh)
    return fresh


def clone_url(state: State, given: str | None) -> str | None:
    """The URL to clone, with the password, which is not saved. Raises LaunchError when `given` lacks it."""
    kept: str | None = state.source["repo"]
    if kept is None or HIDDEN not in kept:
        return kept
    if given is None or redact_word(given) != kept:
        raise LaunchError(f"--repo: this job clones {kept}; its password is not saved, so give the same --repo again")
    return given


def create_archive(where: Path) -> Source:
    """Packs the tracked files, uncommitted changes included, as `code-<revision>.tar.gz` in a folder."""
    # An author, for machines where git has none.
    nobody = ["-c", "user.name=bertjax", "-c", "user.email=bertjax@localhost"]
    changed = _git(*nobody, "stash", "create")  # commits the tracked files without changing the checkout
    revision = (changed or _git("rev-parse", "HEAD"))[:12]
    name = f"code-{revision}.tar.gz"
    _git(*archive_command(where / name, revision))
    return Source(revision, archive=name)


def head_revision() -> str:
    """The current commit."""
    return _git("rev-parse", "HEAD")[:12]


def resolve_ref(repo: str, ref: str) -> str:
    """The commit that a branch or tag of a repository names now. Raises LaunchError if there is none."""
    found = [line.split("\t") for line in _git("ls-remote", "--", repo, ref, f"{ref}^{{}}").splitlines()]
    if found:
        return found[-1][0]  # the commit of an annotated tag comes last
    if re.fullmatch(r"[0-9a-f]{7,40}", ref):
        return ref
    raise LaunchError(f"--ref: {redact(repo)} has no {ref!a}")


def archive_command(where: Path, revision: str) -> list[str]:
    return ["archive", "--format=tar.gz", f"--output={where.resolve()}", revision]


def checkout_path(config: str) -> str:
    """The path of a configuration in the checkout. Raises LaunchError where git does not track it."""
    path = Path(config).resolve()
    if not path.is_file():
        raise LaunchError(f"{config}: no such file")
    if ROOT not in path.parents:
        raise LaunchError(f"{config}: not in {ROOT}, so it would not be sent; copy it there and `git add` it")
    name = path.relative_to(ROOT).as_posix()
    if not _git("ls-files", "--", name):
        raise LaunchError(f"{config}: not tracked by git, so it would not be sent; `git add` it")
    return name


def is_tracked(pattern: str) -> bool:
    """Whether a relative path or glob matches files that git tracks, which are those that are sent."""
    return bool(_git("ls-files", "--", pattern))


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise LaunchError("git is not installed") from None
    if done.returncode:
        said = redact(error_line(done.stderr))
        raise LaunchError(f"git {words[0]}: {said}; or clone a repository instead: --repo URL --ref REF")
    return done.stdout.strip()


def check_name(name: str, option: str = "--name") -> str:
    """Checks the id of a queued resource or node. Raises LaunchError."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise LaunchError(
            f"{option}: {name!a}: must be at most 63 lower-case letters, digits and dashes, the first a letter"
        )
    return name
