#!/usr/bin/env python3
"""A gcloud with one queued resource whose workers are folders of this machine, and with failures told in advance.

Everything is in $FAKE_GCLOUD: `plan.json` (what fails, by command, in order), `resource.json`, `calls.jsonl`, and
`NODE-WORKER/`, the home of each worker. Replies, flags and exit codes are those of gcloud 528, read in its source.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = Path(os.environ["FAKE_GCLOUD"])
RESOURCE, PLAN = HOME / "resource.json", HOME / "plan.json"
WHERE = {"--project", "--zone", "--quiet"}
SSH = WHERE | {"--worker", "--internal-ip"}
FLAGS = {
    "queued-resources create": WHERE
    | {"--accelerator-type", "--runtime-version", "--node-id", "--node-count", "--node-prefix", "--spot", "--reserved"}
    | {"--network", "--subnetwork", "--service-account", "--internal-ips"},
    "queued-resources describe": WHERE | {"--format"},
    "queued-resources delete": WHERE | {"--force"},
    "tpu-vm describe": WHERE | {"--format"},
    "tpu-vm scp": SSH | {"--scp-flag"},
    "tpu-vm ssh": SSH | {"--ssh-flag", "--command"},
}


def main() -> int:
    words = sys.argv[1:]
    with open(HOME / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    assert words[:2] == ["compute", "tpus"], words
    verb = " ".join(words[2:4])
    flags = dict((w.split("=", 1) + [""])[:2] for w in words[4:] if w.startswith("--"))
    unknown = set(flags) - FLAGS[verb]
    if unknown:
        return fail(f"ERROR: (gcloud.compute.tpus) unrecognized arguments: {unknown}", 2)
    names = [w for w in words[4:] if not w.startswith("--")]
    return globals()[verb.replace("-", "_").replace(" ", "_")](names, flags)


@contextmanager
def alone() -> Iterator[None]:
    """Several gclouds run at once."""
    with open(HOME / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fail(message: str, code: int = 1) -> int:
    print(message, file=sys.stderr)
    return code


def planned(key: str) -> str:
    """What happens to this call: the next word of the plan's list, empty when it is to succeed."""
    with open(HOME / "plan.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        plan = json.loads(PLAN.read_text()) if PLAN.exists() else {}
        found = plan.get(key, [])
        word = found.pop(0) if found else ""
        PLAN.write_text(json.dumps(plan))
        return word


def resource() -> dict | None:
    return json.loads(RESOURCE.read_text()) if RESOURCE.exists() else None


def queued_resources_create(names: list[str], flags: dict[str, str]) -> int:
    if problem := planned("create"):
        return fail(f"ERROR: (gcloud.compute.tpus.queued-resources.create) {problem}")
    if resource():
        return fail("ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource already exists")
    count, prefix = int(flags.get("--node-count", 1)), flags.get("--node-prefix")
    nodes = [f"{prefix}-{i}" for i in range(count)] if prefix else [flags["--node-id"]]
    made = {
        "name": f"projects/p/locations/z/queuedResources/{names[0]}",
        "createTime": str(time.time()),
        "state": {"state": "ACCEPTED"},
        "tpu": {"nodeSpec": [{"nodeId": n, "node": {"acceleratorType": flags["--accelerator-type"]}} for n in nodes]},
    }
    RESOURCE.write_text(json.dumps(made))
    return 0


def queued_resources_describe(names: list[str], flags: dict[str, str]) -> int:
    with alone():
        return look(names)


def look(names: list[str]) -> int:
    found = resource()
    if found is None:
        return fail(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: {names[0]} was not found")
    if problem := planned("describe"):
        return fail(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {problem}")
    if found["state"]["state"] not in ("SUSPENDED", "FAILED"):
        found["state"]["state"] = planned("states") or "ACTIVE"
        RESOURCE.write_text(json.dumps(found))
    print(json.dumps(found))
    return 0


def queued_resources_delete(names: list[str], flags: dict[str, str]) -> int:
    if resource() is None:
        return fail("ERROR: (gcloud.compute.tpus.queued-resources.delete) NOT_FOUND: it was not found")
    if problem := planned("delete"):
        return fail(f"ERROR: (gcloud.compute.tpus.queued-resources.delete) {problem}")
    power_off()
    RESOURCE.unlink()
    return 0


def tpu_vm_describe(names: list[str], flags: dict[str, str]) -> int:
    workers = int(os.environ.get("FAKE_WORKERS", "2"))
    print(json.dumps({"networkEndpoints": [{"ipAddress": f"10.0.0.{i}"} for i in range(workers)]}))
    return 0


def homes(node: str) -> list[Path]:
    found = [HOME / f"{node}-{i}" for i in range(int(os.environ.get("FAKE_WORKERS", "2")))]
    for home in found:
        home.mkdir(exist_ok=True)
    return found


def tpu_vm_scp(names: list[str], flags: dict[str, str]) -> int:
    if planned("scp"):
        return fail("ssh: connect to host port 22: Connection refused", 255)
    source, target = names
    for home in homes(target.removesuffix(":")):
        shutil.copy(source, home)
    return 0


def tpu_vm_ssh(names: list[str], flags: dict[str, str]) -> int:
    """The command on all workers.

    The plan may say `drop`, `preempt`, `rerun` (each after three lines, or with `at TEXT` once a line has it) or
    `unreachable` for it.
    """
    command = flags["--command"]
    verb = next(v for v in ("setup", "run", "stop") if f"tpu_pod/worker.py {v}" in command)
    event, _, text = planned(f"ssh {verb}").partition(" at ")
    cut_at = lambda count, line: text.encode() in line if text else count >= 3  # noqa: E731
    if event == "unreachable":
        return fail('ERROR: SSH Key is not present in the SSH agent. Please run "ssh-add"')
    print(f"Using ssh batch size of 1. Attempting to SSH into 1 nodes with a total of {len(homes(names[0]))} workers.")
    if event == "rerun":  # a first connection that drops and that gcloud itself makes again
        connect(names[0], command, cut_at)
    codes = connect(names[0], command, cut_at if event in ("drop", "preempt") else None)
    if event == "preempt":
        with alone():
            found = resource()
            found["state"]["state"] = "SUSPENDED"
            RESOURCE.write_text(json.dumps(found))
        power_off()
    return 255 if event in ("drop", "preempt") else next((code for code in codes if code), 0)


def connect(node: str, command: str, cut_at: Callable[[int, bytes], bool] | None = None) -> list[int]:
    """The command in each worker's home; cut at a line (number, text) of one of them, if at all."""
    sessions, readers, cut = [], [], threading.Event()
    for index, home in enumerate(homes(node)):
        environment = os.environ | {"HOME": str(home), "TPU_WORKER_ID": str(index)}
        if "FAKE_JOIN" in os.environ:  # for trainers that are real: what they would learn from the machine
            count = os.environ.get("FAKE_WORKERS", "2")
            environment |= {"BERTJAX_COORDINATOR": os.environ["FAKE_JOIN"], "BERTJAX_NUM_PROCESSES": count}
            environment |= {"BERTJAX_PROCESS_ID": str(index)}
        argv = ["bash", "-c", command]  # as the remote login shell does
        session = subprocess.Popen(
            argv, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        readers.append(threading.Thread(target=pass_on, args=(session, cut_at, cut)))
        readers[-1].start()
        sessions.append(session)
    while any(s.poll() is None for s in sessions) and not cut.is_set():
        time.sleep(0.02)
    if cut.is_set():
        for session in sessions:
            os.killpg(session.pid, signal.SIGKILL)
    for reader in readers:
        reader.join()
    return [session.wait() for session in sessions]


def pass_on(session: subprocess.Popen, cut_at: Callable[[int, bytes], bool] | None, cut: threading.Event) -> None:
    for count, line in enumerate(session.stdout, 1):
        if cut.is_set():
            break
        os.write(1, line)
        if cut_at is not None and cut_at(count, line):
            cut.set()


def power_off() -> None:
    """The workers' machines go: every process that the launcher left there, and their disks."""
    for pid in HOME.glob("*/bertjax-*/attempt-*/pid"):
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except (ProcessLookupError, ValueError):
            pass
    for home in HOME.glob("*/bertjax-*"):
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["meta"]:
        sys.exit(fail("not here"))
    sys.exit(main())
