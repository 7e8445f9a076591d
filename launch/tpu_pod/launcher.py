"""One job on one pod: from creation through preemptions to deletion. Standard library only."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import exit_codes

from tpu_pod import gcloud, host_keys
from tpu_pod.follow import FollowResult, LogStreamer
from tpu_pod.gcloud import LaunchError, Node, Pod
from tpu_pod.redact import redact
from tpu_pod.state import State, StateDir

# One line each: they are one argument of a remote shell.
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
LOST_STATES = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
STABLE_SECONDS = 600.0  # an attempt that lasted so long shows that its machines work
MAX_BACKOFF = 600.0  # maximum seconds between two tries
REPORT_SECONDS = 1800.0  # seconds between lines while waiting for machines


@dataclass(frozen=True)
class LaunchOptions:
    """Options of a launch."""

    env: Sequence[str] = ()
    nfs: Sequence[str] = ()
    max_retries: int = 50
    keep: bool = False
    poll: float = 15.0
    cwd: str | None = None  # working directory of training; None: the code
    zones: Sequence[str | None] = (None,)  # tried in this order
    logs: str | None = None  # folder of a bucket to which workers upload their output
    doctor: bool = False  # check new machines before training


class RemoteCommands:
    """The commands that run on the workers, as argument lists."""

    def __init__(
        self, name: str, command: Sequence[str], revision: str, repo: str | None, options: LaunchOptions
    ) -> None:
        self.home = f"bertjax-{name}"
        self.code = f"{self.home}/code-{revision[:12]}"
        self.env_file = f"bertjax-{name}.env"  # variables are on no command line
        self._command, self._revision, self._repo, self._options = command, revision, repo, options

    def setup(self, slice_: int) -> list[str]:
        own = self._worker_command("setup", slice_) + [f"--nfs={share}" for share in self._options.nfs]
        if self._repo:
            return ["bash", "-c", CLONE, "clone", self.code, self._repo, self._revision, *own]
        return ["bash", "-c", UNPACK, "unpack", self.code, f"code-{self._revision}.tar.gz", *own]

    def run(self, slice_: int, attempt: int) -> list[str]:
        return self._bertjax("run", slice_, attempt, "train", *self._command)

    def doctor(self, slice_: int, number: int) -> list[str]:
        return self._bertjax("doctor", slice_, number, "doctor", "--cluster")

    def _bertjax(self, verb: str, slice_: int, number: int, *words: str) -> list[str]:
        own = [*self._worker_command(verb, slice_), f"--attempt={number}", f"--env-file={self.env_file}"]
        own += [f"--cwd={self._options.cwd}"] if self._options.cwd else []
        own += [f"--logs={self._options.logs}"] if self._options.logs else []
        return ["python3", *own, "--", ".venv/bin/python", "-P", "-m", "bertjax", *words]

    def status(self, run: str | None) -> list[str]:
        return ["python3", *self._worker_command("status", 0), *([f"--run={run}"] if run else [])]

    def stop(self) -> list[str]:
        return ["python3", *self._worker_command("stop", 0)]

    def _worker_command(self, verb: str, slice_: int) -> list[str]:
        return [
            f"{self.code}/launch/tpu_pod/worker.py",
            verb,
            f"--home={self.home}",
            f"--code={self.code}",
            f"--slice={slice_}",
        ]


class Launcher:
    """Runs a job to its end. Its progress is in the state folder, so a later call continues it."""

    def __init__(
        self, pod: Pod, folder: StateDir, state: State, options: LaunchOptions, command: Sequence[str], repo: str | None
    ) -> None:
        """`command` and `repo`: as in the state, but with their secrets."""
        self.pod, self.state_dir, self.state, self.options = pod, folder, state, options
        self.pod_seen = False  # whether the pod was seen or created in this call
        self._next_zone = 0  # where the next creation begins
        self._use_zone(state.pod.get("zone", pod.zone))
        self.remote = RemoteCommands(pod.name, command, state.source["revision"], repo, options)

    def run(self) -> int:
        """Runs until the job is done or fails -> its exit code. Raises LaunchError when it cannot continue."""
        self._find_zone()
        while True:
            created = self._wait_for_pod()
            began = self._run_attempt(created)
            code = exit_codes.combine(began.codes.values())
            if code not in (0, exit_codes.RETRY):
                return self._end("failed", code, self._failure_line(began, code))
            if code == 0 and not began.lost:
                return self._end("finished", 0, "")
            self._prepare_retry(began)

    def finish(self) -> None:
        """Deletes the pod if it exists."""
        code, _, err = self.state_dir.run_command(self.pod.describe())
        if not self.options.keep and not (code and gcloud.is_not_found(err)):
            self.state_dir.note(f"deleting {self.pod.name}")
            self._delete()

    def _use_zone(self, zone: str | None) -> None:
        self.pod = replace(self.pod, zone=zone)
        kept = {name: value for name, value in asdict(self.pod).items() if name != "metadata"}
        self.state.pod = kept

    def _find_zone(self) -> None:
        """Chooses the zone that has the pod, if one has. Raises LaunchError if it may be in a zone not named."""
        zones = self.options.zones
        if self.pod.zone not in zones and self.state.started:
            raise LaunchError(f"--zone: {self.pod.name} was created in {self.pod.zone}; name that zone too")
        if self.pod.zone in zones and (len(zones) == 1 or self._exists()):
            return
        for zone in zones:
            self._use_zone(zone)
            if len(zones) > 1 and self._exists():
                break
        else:
            self._use_zone(zones[0])
        self.state_dir.save(self.state)

    def _exists(self) -> bool:
        return self.state_dir.run_command(self.pod.describe())[0] == 0

    def _wait_for_pod(self) -> str:
        """Waits for the pod, creating it where it does not exist -> its creation time."""
        shown, since = "", time.monotonic()
        while True:
            code, out, err = self.state_dir.run_command(self.pod.describe())
            # A zone without TPUs refuses even this question, and another may have them.
            fresh = not self.pod_seen and not self.state.started
            elsewhere = fresh and len(self.options.zones) > 1 and not gcloud.is_transient(err)
            if code and (gcloud.is_not_found(err) or elsewhere):
                self._create()
                continue
            if code and not gcloud.is_transient(err):
                raise LaunchError(gcloud.error_line(err))
            found = "" if code else gcloud.parse_state(out)
            self.pod_seen = self.pod_seen or bool(found)
            if found and (found != shown or time.monotonic() - since > REPORT_SECONDS):
                self.state_dir.note(f"{self.pod.name} is {found}")
                shown, since = found, time.monotonic()
            if found == "ACTIVE":
                return self._check_pod(out)
            if found in ("SUSPENDED", "FAILED"):
                self._count_retry(f"{self.pod.name} is {found}")
                self._replace()
                self._next_zone = self.options.zones.index(self.pod.zone) + 1
                shown = ""
            time.sleep(self.options.poll)

    def _check_pod(self, reply: str) -> str:
        kind, created = gcloud.parse_type(reply), str(json.loads(reply).get("createTime", ""))
        if kind and kind.lower() != self.pod.type:
            raise LaunchError(f"{self.pod.name} already exists, as {kind}; give another --name or --type={kind}")
        if self.state.started and not self.state.ready.startswith(created):
            self._next_attempt()  # not the machines of this attempt
        return created

    def _create(self) -> None:
        """Creates the pod in the first zone that accepts it. Raises LaunchError when all refuse it for good."""
        first, self._next_zone = self._next_zone, 0
        zones = [*self.options.zones[first:], *self.options.zones[:first]]
        if len(zones) == 1:
            self.state_dir.note(f"creating {self.pod.name}: {self.pod.request}")
        pause, failure = self.options.poll, ""
        while zones:
            for zone in list(zones):
                self._use_zone(zone)
                self.state_dir.save(self.state)
                if len(self.options.zones) > 1:
                    self.state_dir.note(f"creating {self.pod.name} in {zone}: {self.pod.request}")
                failure = self._create_in_zone(zones)
                if not failure:
                    return
            if zones:
                self._count_retry(failure)
                time.sleep(pause)
                pause = min(2 * pause, MAX_BACKOFF)
        raise LaunchError(failure)

    def _create_in_zone(self, zones: list[str | None]) -> str:
        """-> why the pod was not created, or "". Removes a zone that refuses it for good from `zones`."""
        several = len(self.options.zones) > 1
        code, _, err = self.state_dir.run_command(self.pod.create())
        # With several zones, a request whose answer was lost must not be left behind in this one.
        if code == 0 or "ALREADY_EXISTS" in err or "already exists" in err or (several and self._exists()):
            self.pod_seen = True
            return ""
        if not gcloud.is_transient(err):
            zones.remove(self.pod.zone)
        failure = gcloud.error_line(err)
        if several:
            final = "" if self.pod.zone in zones else "; not tried again"
            self.state_dir.note(f"{self.pod.zone}: {failure}{final}")
        return failure

    def _delete(self) -> None:
        """Raises LaunchError when the deletion fails."""
        for _ in range(5):
            code, _, err = self.state_dir.run_command(self.pod.delete())
            if code == 0 or gcloud.is_not_found(err):
                return
            time.sleep(self.options.poll)
        raise LaunchError(
            f"{self.pod.name} could not be deleted ({gcloud.error_line(err)}); it may still exist and cost money", 4
        )

    def _run_attempt(self, created: str) -> FollowResult:
        """Sets up and starts training, or follows it where it was started before."""
        nodes = self._nodes()
        ready = f"{created} {self.state.source['revision']}"
        if not self.state.started:
            lost = self._set_up(nodes, ready)
            lost = lost or self._check_machines(nodes, ready)
            if lost:
                return FollowResult(lost=lost)
            self.state.started, self.state.began = True, time.time()
            self.state_dir.save(self.state)
            workers = sum(node.workers for node in nodes)
            self.state_dir.note(f"attempt {self.state.attempt}: training on {workers} worker{'s' * (workers > 1)}")
        else:
            self.state_dir.note(f"attempt {self.state.attempt} is already running: following it")
        return self._follow(nodes, "run", lambda n: self.remote.run(n.index, self.state.attempt))

    def _nodes(self) -> list[Node]:
        """The slices with their numbers of workers. Raises LaunchError when gcloud does not list them."""
        code, out, err = self.state_dir.run_command(self.pod.describe())
        names = [] if code else gcloud.parse_node_names(out)
        nodes = []
        for index, name in enumerate(names):
            code, out, err = self.state_dir.run_command(self.pod.describe_node(name))
            if code:
                break
            nodes.append(Node(name, index, gcloud.parse_worker_count(out)))
        if code or not nodes:
            raise LaunchError(
                f"{self.pod.name}: cannot list its machines ({gcloud.error_line(err)}); run the same command again", 75
            )
        return nodes

    def _set_up(self, nodes: Sequence[Node], ready: str) -> str:
        """Installs code and packages on every worker -> why the pod is lost, or "". Raises LaunchError on failure."""
        reached_before = bool(self.state.ready)
        if self.state.ready != ready:
            self.state_dir.note(f"sending the code ({self.state.source['revision'][:12]}) and installing it")
            archive = self.state.source["archive"]
            lost = "" if self.state.source["repo"] else self._copy(nodes, self.state_dir.path / archive)
            if lost:
                return self._unreachable(lost, reached_before)
        if lost := self._send_environment(nodes):
            return self._unreachable(lost, reached_before)
        done = self._follow(nodes, "setup", lambda n: self.remote.setup(n.index))
        code = exit_codes.combine(done.codes.values())
        if code:
            raise LaunchError(
                f"setup failed: {self._failure_line(done, code, 'setup')}; {self.pod.name} is kept, run the same "
                "command again"
            )
        if done.lost:
            return self._unreachable(done.lost, reached_before)
        self.state.ready = ready
        self.state_dir.save(self.state)
        return ""

    def _check_machines(self, nodes: Sequence[Node], ready: str) -> str:
        """Runs bertjax doctor on them once -> why they are lost, or "". Raises LaunchError when it finds a problem."""
        if not self.options.doctor or self.state.checked == ready:
            return ""
        self.state.checks += 1
        self.state_dir.save(self.state)
        self.state_dir.note("checking the machines with bertjax doctor --cluster")
        done = self._follow(nodes, "doctor", lambda n: self.remote.doctor(n.index, self.state.checks))
        code = exit_codes.combine(done.codes.values())
        if code == exit_codes.RETRY:
            return done.lost or "bertjax doctor lost a process (75)"
        if code:
            raise LaunchError(
                f"bertjax doctor: {self._failure_line(done, code, 'doctor')}; {self.pod.name} is kept, run the same "
                "command again"
            )
        if not done.lost:
            self.state.checked = ready
            self.state_dir.save(self.state)
        return done.lost

    def _send_environment(self, nodes: Sequence[Node]) -> str:
        """Copies the variables of training to every worker, readable by its user alone -> as `_copy`.

        Among them is a secret by which the processes of this start recognize each other.
        """
        variables = {"BERTJAX_SECRET": secrets.token_hex(32)} | dict(pair.split("=", 1) for pair in self.options.env)
        path = self.state_dir.path / self.remote.env_file
        path.unlink(missing_ok=True)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                json.dump(variables, file)
            return self._copy(nodes, path)
        finally:
            path.unlink(missing_ok=True)

    def _copy(self, nodes: Sequence[Node], file: Path) -> str:
        """Copies a file to every worker -> why the pod is lost, or ""."""
        for node in nodes:
            for tries in range(3):
                code, _, err = self.state_dir.run_command(self.pod.copy(file, node.name))
                if code == 0:
                    break
                if lost := self._lost():
                    return lost
                self._forget_host_keys(err)
                if tries == 2:
                    return f"no answer from {node.name}: {gcloud.error_line(err)}"
                time.sleep(self.options.poll)
        return ""

    def _unreachable(self, lost: str, reached_before: bool) -> str:
        """Machines that were never reached are not deleted: the fault may be local (keys, firewall)."""
        if reached_before or not lost.startswith("no answer"):
            return lost
        raise LaunchError(
            f"{lost}; {self.pod.name} is kept: make `gcloud compute tpus tpu-vm ssh` work, then run the same command "
            "again"
        )

    def _follow(self, nodes: Sequence[Node], verb: str, remote: Callable[[Node], list[str]]) -> FollowResult:
        def argv(node: Node) -> list[str]:
            return self.pod.ssh(node.name, remote(node))

        # On machines used before, a changed key is not expected: then ssh refuses, and they are replaced.
        on_drop = self._forget_host_keys if verb == "setup" else None
        return LogStreamer(
            nodes, argv, self.state_dir.logs(self.state.attempt), verb, self.options.poll, self._lost, on_drop
        ).run()

    def _forget_host_keys(self, said: str) -> None:
        for alias in host_keys.forget_changed(said):
            self.state_dir.note(f"the host key of {alias} has changed, as of a machine made again: forgot the old one")

    def _lost(self) -> str:
        """Why the pod is lost; "" if it is not, or when gcloud fails."""
        code, out, err = self.state_dir.run_command(self.pod.describe())
        if code:
            return f"{self.pod.name} is deleted" if gcloud.is_not_found(err) else ""
        found = gcloud.parse_state(out)
        return f"{self.pod.name} is {found}" if found in LOST_STATES else ""

    def _prepare_retry(self, ended: FollowResult) -> None:
        """Prepares the next attempt, on the same machines if they work, else on new ones."""
        lasted = time.time() - self.state.began > STABLE_SECONDS
        self._count_retry(ended.lost or "training stopped after saving (75)")
        if not ended.lost and (lasted or not self.state.in_place) and not self._lost():
            self.state.in_place = 1
            self._next_attempt()
            time.sleep(self.options.poll)
        else:
            self._replace()

    def _replace(self) -> None:
        self.state_dir.note(f"deleting {self.pod.name} to recreate it")
        self._delete()
        self.state.in_place = 0
        self._next_attempt()

    def _next_attempt(self) -> None:
        self.state.attempt += self.state.started
        self.state.started = False
        self.state_dir.save(self.state)

    def _count_retry(self, why: str) -> None:
        """Counts a retry; raises LaunchError after the last one."""
        self.state.retries += 1
        self.state_dir.save(self.state)
        if self.state.retries > self.options.max_retries:
            raise LaunchError(f"{why}; gave up after {self.options.max_retries} retries", exit_codes.RETRY)
        self.state_dir.note(f"{why}; retry {self.state.retries} of {self.options.max_retries}")

    def _failure_line(self, ended: FollowResult, code: int, verb: str = "run") -> str:
        """Describes an exit code, with the last line of the worker that exited with it."""
        (s, w) = next(key for key, found in sorted(ended.codes.items()) if exit_codes.from_returncode(found) == code)
        log = self.state_dir.logs(self.state.attempt) / f"{verb}-s{s}-w{w}.log"
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.exists() else []
        return f"{exit_codes.describe(code)} on s{s} w{w}: {lines[-1] if lines else 'no output'} (log: {log})"

    def _end(self, status: str, code: int, reason: str) -> int:
        self.state.status, self.state.code, self.state.reason = status, code, redact(reason)
        self.state_dir.save(self.state)
        self.state_dir.note("finished" if code == 0 else f"stopped: {reason}")
        self.finish()
        return code
