"""One job on one pod from creation to deletion, through preemptions. Standard library only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import outcome
import tpu_commands as gcloud
from redact import redact
from tpu_commands import Node, Pod, Stop
from tpu_follow import Follower, Outcome
from tpu_state import Folder, State

# One line each, since they travel as one argument of a remote shell.
UNPACK = (
    'set -eu; if ! [ -d "$1" ]; then rm -rf "$1.new"; mkdir -p "$1.new"; tar -xzf "$2" -C "$1.new"; '
    'mv -T "$1.new" "$1"; fi; shift 2; exec python3 "$@"'
)
CLONE = (
    'set -eu -o pipefail; if ! [ -d "$1" ]; then rm -rf "$1.new"; '
    'git clone --quiet "$2" "$1.new" 2>&1 | sed "s#://[^ ]*@#://***@#g"; '
    'git -C "$1.new" checkout --quiet "$3"; git -C "$1.new" remote remove origin; mv -T "$1.new" "$1"; fi; '
    'shift 3; exec python3 "$@"'
)
GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
LASTED = 600.0  # an attempt of so many seconds shows that its machines are sound
LONGEST = 600.0  # seconds between two tries at most
SAY_AGAIN = 1800.0  # seconds between lines while waiting for machines


@dataclass(frozen=True)
class Options:
    """How a launch is carried out."""

    env: Sequence[str] = ()
    nfs: Sequence[str] = ()
    max_retries: int = 50
    keep: bool = False
    poll: float = 15.0
    cwd: str | None = None  # where training starts; None: in the code


class Remote:
    """The commands that run on the workers, as argument lists."""

    def __init__(self, name: str, command: Sequence[str], revision: str, repo: str | None, options: Options) -> None:
        self.home = f"bertjax-{name}"
        self.code = f"{self.home}/code-{revision[:12]}"
        self._command, self._revision, self._repo, self._options = command, revision, repo, options

    def setup(self, slice_: int) -> list[str]:
        own = self._worker_command("setup", slice_) + [f"--nfs={share}" for share in self._options.nfs]
        if self._repo:
            return ["bash", "-c", CLONE, "clone", self.code, self._repo, self._revision, *own]
        return ["bash", "-c", UNPACK, "unpack", self.code, f"code-{self._revision}.tar.gz", *own]

    def run(self, slice_: int, attempt: int) -> list[str]:
        own = self._worker_command("run", slice_) + [
            f"--attempt={attempt}",
            *(f"--env={pair}" for pair in self._options.env),
        ]
        own += [f"--cwd={self._options.cwd}"] if self._options.cwd else []
        return ["python3", *own, "--", ".venv/bin/python", "-m", "bertjax", "train", *self._command]

    def stop(self) -> list[str]:
        return ["python3", *self._worker_command("stop", 0)]

    def _worker_command(self, verb: str, slice_: int) -> list[str]:
        return [
            f"{self.code}/launch/tpu_worker.py",
            verb,
            f"--home={self.home}",
            f"--code={self.code}",
            f"--slice={slice_}",
        ]


class Launcher:
    """Brings a job to its end. What it did is in the folder's state, so another call goes on where this one stops."""

    def __init__(
        self, pod: Pod, folder: Folder, state: State, options: Options, command: Sequence[str], repo: str | None
    ) -> None:
        """`command` and `repo`: as the state has them, with their secrets."""
        self.pod, self.state_dir, self.state, self.options = pod, folder, state, options
        self.pod_seen = False  # whether the pod was seen or created in this call
        self.remote = Remote(pod.name, command, state.source["revision"], repo, options)

    def run(self) -> int:
        """Until the job is done or has a reason to stop; returns its exit code. Stop when it cannot go on."""
        while True:
            created = self._wait_for_pod()
            began = self._run_attempt(created)
            code = outcome.worst(began.codes.values())
            if code not in (0, outcome.AGAIN):
                return self._end("failed", code, self._failure_line(began, code))
            if code == 0 and not began.lost:
                return self._end("finished", 0, "")
            self._prepare_retry(began)

    def finish(self) -> None:
        """Deletes the pod if it is there."""
        code, _, err = self.state_dir.call(self.pod.describe())
        if not self.options.keep and not (code and gcloud.missing(err)):
            self.state_dir.note(f"deleting {self.pod.name}")
            self._delete()

    def _wait_for_pod(self) -> str:
        """Waits for the pod, creating it where it is not, and again where it is gone; its creation time."""
        shown, since = "", time.monotonic()
        while True:
            code, out, err = self.state_dir.call(self.pod.describe())
            if code and gcloud.missing(err):
                self._create()
                continue
            if code and not gcloud.passing(err):
                raise Stop(gcloud.complaint(err))
            found = "" if code else gcloud.state_of(out)
            self.pod_seen = self.pod_seen or bool(found)
            if found and (found != shown or time.monotonic() - since > SAY_AGAIN):
                self.state_dir.note(f"{self.pod.name} is {found}")
                shown, since = found, time.monotonic()
            if found == "ACTIVE":
                return self._check_pod(out)
            if found in ("SUSPENDED", "FAILED"):
                self._count_retry(f"{self.pod.name} is {found}")
                self._replace()
                shown = ""
            time.sleep(self.options.poll)

    def _check_pod(self, reply: str) -> str:
        kind, created = gcloud.type_of(reply), str(json.loads(reply).get("createTime", ""))
        if kind and kind.lower() != self.pod.type:
            raise Stop(f"{self.pod.name} is there already, as {kind}; give another --name or --type={kind}")
        if self.state.started and not self.state.ready.startswith(created):
            self._next_attempt()  # other machines than those this attempt ran on
        return created

    def _create(self) -> None:
        self.state_dir.note(f"creating {self.pod.name}: {self.pod.type}, {self.pod.capacity}")
        pause = self.options.poll
        while True:
            code, _, err = self.state_dir.call(self.pod.create())
            if code == 0 or "ALREADY_EXISTS" in err or "already exists" in err:
                self.pod_seen = True
                return
            if not gcloud.passing(err):
                raise Stop(gcloud.complaint(err))
            self._count_retry(gcloud.complaint(err))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST)

    def _delete(self) -> None:
        """Stop when it does not go away."""
        for _ in range(5):
            code, _, err = self.state_dir.call(self.pod.delete())
            if code == 0 or gcloud.missing(err):
                return
            time.sleep(self.options.poll)
        raise Stop(f"{self.pod.name} could not be deleted ({gcloud.complaint(err)}); it may still cost money", 4)

    def _run_attempt(self, created: str) -> Outcome:
        """Sets up and starts, or follows what was started before."""
        nodes = self._nodes()
        ready = f"{created} {self.state.source['revision']}"
        if not self.state.started:
            lost = self._set_up(nodes, ready)
            if lost:
                return Outcome(lost=lost)
            self.state.started, self.state.began = True, time.time()
            self.state_dir.save(self.state)
            workers = sum(node.workers for node in nodes)
            self.state_dir.note(f"attempt {self.state.attempt}: training on {workers} worker{'s' * (workers > 1)}")
        else:
            self.state_dir.note(f"attempt {self.state.attempt} was started before: following it")
        return self._follow(nodes, "run", lambda n: self.remote.run(n.index, self.state.attempt))

    def _nodes(self) -> list[Node]:
        """The slices and how many workers each has. Stop when gcloud does not say."""
        code, out, err = self.state_dir.call(self.pod.describe())
        names = [] if code else gcloud.nodes_of(out)
        nodes = []
        for index, name in enumerate(names):
            code, out, err = self.state_dir.call(self.pod.describe_node(name))
            if code:
                break
            nodes.append(Node(name, index, gcloud.workers_of(out)))
        if code or not nodes:
            raise Stop(
                f"{self.pod.name}: its machines are not to be seen ({gcloud.complaint(err)}); run this again", 75
            )
        return nodes

    def _set_up(self, nodes: Sequence[Node], ready: str) -> str:
        """Code and packages on every worker; why the pod is lost, or nothing. Stop when that fails there."""
        reached_before = bool(self.state.ready)
        if self.state.ready != ready:
            self.state_dir.note(f"sending the code ({self.state.source['revision'][:12]}) and installing it")
            lost = "" if self.state.source["repo"] else self._copy(nodes)
            if lost:
                return self._unreachable(lost, reached_before)
        done = self._follow(nodes, "setup", lambda n: self.remote.setup(n.index))
        code = outcome.worst(done.codes.values())
        if code:
            raise Stop(
                f"setting up failed: {self._failure_line(done, code, 'setup')}; {self.pod.name} is kept, run this again"
            )
        if done.lost:
            return self._unreachable(done.lost, reached_before)
        self.state.ready = ready
        self.state_dir.save(self.state)
        return ""

    def _copy(self, nodes: Sequence[Node]) -> str:
        archive = self.state_dir.path / self.state.source["archive"]
        for node in nodes:
            for tries in range(3):
                code, _, err = self.state_dir.call(self.pod.copy(archive, node.name))
                if code == 0:
                    break
                if lost := self._lost():
                    return lost
                if tries == 2:
                    return f"no answer from {node.name}: {gcloud.complaint(err)}"
                time.sleep(self.options.poll)
        return ""

    def _unreachable(self, lost: str, reached_before: bool) -> str:
        """Machines we never reached may be fine and we at fault (keys, firewall): they are not thrown away."""
        if reached_before or not lost.startswith("no answer"):
            return lost
        raise Stop(f"{lost}; {self.pod.name} is kept: make `gcloud compute tpus tpu-vm ssh` work, then run this again")

    def _follow(self, nodes: Sequence[Node], verb: str, remote: Callable[[Node], list[str]]) -> Outcome:
        def argv(node: Node) -> list[str]:
            return self.pod.ssh(node.name, remote(node))

        return Follower(nodes, argv, self.state_dir.logs(self.state.attempt), verb, self.options.poll, self._lost).run()

    def _lost(self) -> str:
        """Why the pod is no longer ours, or nothing; when gcloud cannot tell, nothing."""
        code, out, err = self.state_dir.call(self.pod.describe())
        if code:
            return f"{self.pod.name} is deleted" if gcloud.missing(err) else ""
        found = gcloud.state_of(out)
        return f"{self.pod.name} is {found}" if found in GONE else ""

    def _prepare_retry(self, ended: Outcome) -> None:
        """Prepares the next attempt: on the same machines if they are well, else on new ones."""
        lasted = time.time() - self.state.began > LASTED
        self._count_retry(ended.lost or "training stopped after saving (75)")
        if not ended.lost and (lasted or not self.state.in_place) and not self._lost():
            self.state.in_place = 1
            self._next_attempt()
            time.sleep(self.options.poll)
        else:
            self._replace()

    def _replace(self) -> None:
        self.state_dir.note(f"deleting {self.pod.name} to create it again")
        self._delete()
        self.state.in_place = 0
        self._next_attempt()

    def _next_attempt(self) -> None:
        self.state.attempt += self.state.started
        self.state.started = False
        self.state_dir.save(self.state)

    def _count_retry(self, why: str) -> None:
        """Counts one; Stop when there were enough."""
        self.state.retries += 1
        self.state_dir.save(self.state)
        if self.state.retries > self.options.max_retries:
            raise Stop(f"{why}; gave up after {self.options.max_retries} retries", outcome.AGAIN)
        self.state_dir.note(f"{why}; retry {self.state.retries} of {self.options.max_retries}")

    def _failure_line(self, ended: Outcome, code: int, verb: str = "run") -> str:
        """The reason for a code in words, with the last line of the worker that left with it."""
        (s, w) = next(key for key, found in sorted(ended.codes.items()) if outcome.of_process(found) == code)
        log = self.state_dir.logs(self.state.attempt) / f"{verb}-s{s}-w{w}.log"
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.exists() else []
        return f"{outcome.reason(code)} on s{s} w{w}: {lines[-1] if lines else 'it said nothing'} (all of it: {log})"

    def _end(self, status: str, code: int, reason: str) -> int:
        self.state.status, self.state.code, self.state.reason = status, code, redact(reason)
        self.state_dir.save(self.state)
        self.state_dir.note("finished" if code == 0 else f"stopped: {reason}")
        self.finish()
        return code
