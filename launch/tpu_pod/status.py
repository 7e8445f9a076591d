"""`launch/tpu.py --status NAME`: the pod, its job, and the run's last metrics and goodput. Standard library only."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields

from tpu_pod import gcloud
from tpu_pod.gcloud import LaunchError, Pod
from tpu_pod.launcher import LaunchOptions, RemoteCommands
from tpu_pod.redact import redact
from tpu_pod.run_summary import summary_lines
from tpu_pod.state import ROOT, State, StateDir

_LINE = re.compile(r"\[s\d+ w\d+\] (?!launch: status (?:begins|exit))(.*)")


def show(folder: StateDir) -> int:
    """Prints the state of a pod's job -> 0. It changes nothing, also beside a launcher. Raises LaunchError."""
    state = folder.load()
    if not state.pod:
        raise LaunchError(f"--status: no launch in {folder.path}; give the --name and --state-dir of one")
    for line in _lines(folder, state):
        print(redact(line), flush=True)
    return 0


def _lines(folder: StateDir, state: State) -> Iterator[str]:
    retries = f"{state.retries} retr{'y' if state.retries == 1 else 'ies'}"
    reason = f": {state.reason}" if state.reason else ""
    yield f"job {state.status}, attempt {state.attempt}, {retries}{reason}"
    yield f"command {' '.join(state.command)}"
    known = {field.name for field in fields(Pod)}
    pod = Pod(**{name: value for name, value in state.pod.items() if name in known})
    code, out, err = gcloud.run_command(pod.describe())
    place = f" in {pod.zone}" if pod.zone else ""
    if code and not gcloud.is_not_found(err):
        raise LaunchError(gcloud.error_line(err), 75 if gcloud.is_transient(err) else 2)
    if code:
        yield f"{pod.name} does not exist{place}"
    else:
        yield f"{pod.name} is {gcloud.parse_state(out)}{place}: {pod.request}"
        yield from _nodes(pod, gcloud.parse_node_names(out))
    active = not code and gcloud.parse_state(out) == "ACTIVE"
    yield f"run {state.run or 'unknown'}"
    yield from (_from_worker if active else _from_here)(folder, state, pod)


def _nodes(pod: Pod, names: list[str]) -> Iterator[str]:
    for name in names:
        code, out, err = gcloud.run_command(pod.describe_node(name))
        if code:
            yield f"{name}: {'does not exist' if gcloud.is_not_found(err) else gcloud.error_line(err)}"
            continue
        found = json.loads(out)
        health = found.get("health")
        workers = gcloud.parse_worker_count(out)
        yield (
            f"{name}: {found.get('state', 'STATE_UNSPECIFIED')}{f', {health}' if health else ''}, "
            f"{workers} worker{'s' * (workers > 1)}"
        )


def _from_worker(folder: StateDir, state: State, pod: Pod) -> Iterator[str]:
    """Asks the first worker, which runs the primary process."""
    if not state.ready:
        yield "the machines are not set up yet"
        return
    remote = RemoteCommands(pod.name, state.command, state.source["revision"], None, LaunchOptions())
    code, out, err = gcloud.run_command(pod.ssh(pod.planned_nodes()[0], remote.status(state.run), worker="0"))
    found = [match[1] for line in out.splitlines() if (match := _LINE.search(line))]
    if code and not found:
        found = [f"no answer from worker 0: {gcloud.error_line(err)}"]
    yield from found


def _from_here(folder: StateDir, state: State, pod: Pod) -> Iterator[str]:
    """Without machines: from the bucket, or the last line of the output that was kept here."""
    if state.run and state.run.startswith("gs://"):
        own = ROOT / ".venv" / "bin" / "python"
        yield from summary_lines(state.run, ROOT, str(own) if own.exists() else sys.executable)
        return
    logs = sorted(folder.path.glob("attempt-*/run-s0-w0.log"))
    lines = logs[-1].read_text(encoding="utf-8").splitlines() if logs else []
    if lines:
        yield f"last line of {logs[-1]}: {lines[-1]}"
