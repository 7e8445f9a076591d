"""What launch/tpu.py remembers between calls, and the code it sends: one folder for each pod. Standard library only."""

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

from redact import HIDDEN, redact, redact_command, redact_word
from tpu_commands import Stop, call, complaint

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Source:
    """The code of a job: a revision of this checkout, as an archive, or a repository's ref."""

    revision: str
    archive: str | None = None  # a file in the state folder
    repo: str | None = None


@dataclass
class State:
    """One job on one pod; without secrets, which each call is given anew."""

    command: list[str] = field(default_factory=list)  # the configuration and its overrides
    source: dict[str, Any] = field(default_factory=dict)
    status: str = "new"  # new | running | finished | failed
    attempt: int = 0
    started: bool = False  # whether this attempt was handed to the workers: a new call then follows it
    began: float = 0.0  # when it was, in seconds since the epoch
    retries: int = 0
    in_place: int = 0  # restarts on machines that stayed, in a row
    ready: str = ""  # the machines (by their creation time) that have the code
    code: int | None = None
    reason: str = ""


class Folder:
    """The state, the archive and the logs of a pod's jobs, in `<root>/<name>`."""

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / name

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    def load(self) -> State:
        """The remembered state, or a fresh one. Stop when the file is damaged."""
        try:
            found = json.loads(self.state_file.read_text(encoding="utf-8"))
            return State(**{name.name: found[name.name] for name in fields(State)})
        except FileNotFoundError:
            return State()
        except (ValueError, KeyError, TypeError) as error:
            raise Stop(f"{self.state_file}: not a launcher's state ({error}); move it away") from None

    def save(self, state: State) -> None:
        new = self.state_file.with_suffix(".new")
        new.write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.state_file)

    def logs(self, attempt: int) -> Path:
        folder = self.path / f"attempt-{attempt:03d}"
        folder.mkdir(exist_ok=True)
        return folder

    def note(self, line: str) -> None:
        """A line with its time on the terminal and in launch.log."""
        line = redact(line)
        print(f"launch: {line}", flush=True)
        with open(self.path / "launch.log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def call(self, argv: Sequence[str]) -> tuple[int, str, str]:
        """Runs a command; launch.log keeps it and what it complained about, but no look at the pod that succeeded."""
        code, out, err = call(argv)
        if "describe" in argv and code == 0:
            return code, out, err
        with open(self.path / "launch.log", "a", encoding="utf-8") as log:
            said = redact(f" -> {code}: {complaint(err)}") if code else ""
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} $ {redact_command(argv)}{said}\n")
        return code, out, err

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One launcher for each pod at a time."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "lock", "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Stop(f"{self.path.name}: another launch/tpu.py follows it; stop that one first") from None
            yield


def begin(folder: Folder, command: Sequence[str], repo: str | None, ref: str) -> State:
    """The state of this job: the remembered one while it runs or when it finished, otherwise a new one.

    A job keeps the code it began with. Stop when another job runs on the pod, or git cannot give the code.
    """
    state, shown = folder.load(), [redact_word(word) for word in command]
    if state.status in ("running", "finished") and state.command == shown:
        return state
    if state.status == "running" and state.started:
        raise Stop(
            f"{folder.path.name}: still runs {' '.join(state.command)}; give another --name, or stop that one (Ctrl-C "
            f"while following it tells how) and remove {folder.state_file}"
        )
    source = Source(resolve(repo, ref), repo=redact_word(repo)) if repo else archive(folder.path)
    # Attempts go on counting: the workers know them by their number.
    fresh = State(command=shown, source=asdict(source), status="running", attempt=state.attempt + 1)
    fresh = replace(fresh, ready=state.ready)
    folder.save(fresh)
    return fresh


def repo_of(state: State, given: str | None) -> str | None:
    """The URL that a job's code is cloned from, with the password that only the caller gives. Stop when it did not."""
    kept: str | None = state.source["repo"]
    if kept is None or HIDDEN not in kept:
        return kept
    if given is None or redact_word(given) != kept:
        raise Stop(f"--repo: this job clones {kept}, and its password is not kept; give the same --repo again")
    return given


def archive(where: Path) -> Source:
    """The checkout's tracked files, with changes not yet committed, as `code-<revision>.tar.gz` in a folder."""
    # The author is for machines where git knows nobody.
    nobody = ["-c", "user.name=bertjax", "-c", "user.email=bertjax@localhost"]
    changed = _git(*nobody, "stash", "create")  # a commit of the tracked files as they are; nothing here moves
    revision = (changed or _git("rev-parse", "HEAD"))[:12]
    name = f"code-{revision}.tar.gz"
    _git(*archive_words(where / name, revision))
    return Source(revision, archive=name)


def head() -> str:
    """The revision a job would begin with, were everything committed."""
    return _git("rev-parse", "HEAD")[:12]


def resolve(repo: str, ref: str) -> str:
    """The commit that a repository's branch or tag names now, so that every attempt runs the same. Stop if none."""
    found = [line.split("\t") for line in _git("ls-remote", "--", repo, ref, f"{ref}^{{}}").splitlines()]
    if found:
        return found[-1][0]  # what an annotated tag stands for comes last
    if re.fullmatch(r"[0-9a-f]{7,40}", ref):
        return ref
    raise Stop(f"--ref: {redact(repo)} has no {ref!a}")


def archive_words(where: Path, revision: str) -> list[str]:
    return ["archive", "--format=tar.gz", f"--output={where.resolve()}", revision]


def in_checkout(config: str) -> str:
    """The path of a configuration in the checkout. Stop when it is not there or git does not know it."""
    path = Path(config).resolve()
    if not path.is_file():
        raise Stop(f"{config}: no such file")
    if ROOT not in path.parents:
        raise Stop(f"{config}: not in {ROOT}, so it would not reach the pod; copy it there and `git add` it")
    name = path.relative_to(ROOT).as_posix()
    if not _git("ls-files", "--", name):
        raise Stop(f"{config}: git does not know it, so it would not reach the pod; `git add` it")
    return name


def in_code(pattern: str) -> bool:
    """Whether a relative path or glob stands for files that git knows, which are those that are sent."""
    return bool(_git("ls-files", "--", pattern))


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise Stop("git is not installed") from None
    if done.returncode:
        said = redact(complaint(done.stderr))
        raise Stop(f"git {words[0]}: {said}; or send a repository's code: --repo URL --ref REF")
    return done.stdout.strip()


def valid_name(name: str, option: str = "--name") -> str:
    """The id of a queued resource or a node, by Cloud TPU's rule. Stop otherwise."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise Stop(
            f"{option}: {name!a}: small letters, digits and dashes are wanted, beginning with a letter, at most 63"
        )
    return name
