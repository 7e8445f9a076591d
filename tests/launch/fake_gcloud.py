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
PLAN = HOME / "plan.json"
WHERE = {"--project", "--zone", "--quiet"}
SSH = WHERE | {"--worker", "--internal-ip"}
FLAGS = {
    "queued-resources create": WHERE
    | {"--accelerator-type", "--runtime-version", "--node-id", "--node-count", "--node-prefix", "--spot", "--reserved"}
    | {"--network", "--subnetwork", "--service-account", "--internal-ips"}
    | {"--valid-until-duration", "--labels", "--metadata"},
    "queued-resources describe": WHERE | {"--format"},
    "queued-resources delete": WHERE | {"--force"},
    "tpu-vm describe": WHERE | {"--format"},
    "tpu-vm scp": SSH | {"--scp-flag"},
    "tpu-vm ssh": SSH | {"--ssh-flag", "--command"},
}
ALPHA = {  # flags that only the alpha commands have
    "queued-resources create": {"--reservation"},
    "tpu-vm scp": {"--tunnel-through-iap", "--batch-size"},
    "tpu-vm ssh": {"--tunnel-through-iap", "--batch-size"},
}
EXCLUDE = [{"--internal-ip", "--tunnel-through-iap"}, {"--node-id", "--node-count"}]


def main() -> int:
    words = sys.argv[1:]
    with open(HOME / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    if words[:1] == ["storage"]:
        return storage(words[1], words[2:])
    alpha = words[:1] == ["alpha"]
    words = words[alpha:]
    assert words[:2] == ["compute", "tpus"], words
    verb = " ".join(words[2:4])
    flags = dict((w.split("=", 1) + [""])[:2] for w in words[4:] if w.startswith("--"))
    unknown = set(flags) - FLAGS[verb] - (ALPHA.get(verb, set()) if alpha else set())
    if unknown or any(both <= set(flags) for both in EXCLUDE):
        return fail(f"ERROR: (gcloud.compute.tpus) unrecognized arguments: {unknown or set(flags)}", 2)
    global ZONE
    ZONE = flags.get("--zone", "")
    names = [w for w in words[4:] if not w.startswith("--")]
    return globals()[verb.replace("-", "_").replace(" ", "_")](names, flags)


ZONE = ""


def resource_file() -> Path:
    """The queued resource of the zone of this call."""
    return HOME / f"resource{'-' * bool(ZONE)}{ZONE}.json"


def storage(verb: str, words: list[str]) -> int:
    """Buckets are folders here."""
    if problem := planned(f"storage {verb}"):
        return fail(f"ERROR: (gcloud.storage.{verb}) {problem}")
    own = lambda url: HOME / "buckets" / url[len("gs://") :]  # noqa: E731
    names = [word for word in words if not word.startswith("--")]
    if verb == "cp":
        assert set(words) - set(names) <= {"--quiet"}
        own(names[1]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(names[0], own(names[1]))
        return 0
    assert verb == "cat"
    if not own(names[0]).exists():
        return fail(f"ERROR: (gcloud.storage.cat) The following URLs matched no objects or files: {names[0]}")
    (last,) = [int(w.partition("=-")[2]) for w in words if w.startswith("--range=-")] or [1 << 40]
    os.write(1, own(names[0]).read_bytes()[-last:])
    return 0


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
    return json.loads(resource_file().read_text()) if resource_file().exists() else None


def queued_resources_create(names: list[str], flags: dict[str, str]) -> int:
    if (problem := planned(f"create {ZONE}") or planned("create")) and problem != "lost":
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
    resource_file().write_text(json.dumps(made))
    if problem == "lost":  # it was created, and the answer did not arrive
        return fail("ERROR: (gcloud.compute.tpus.queued-resources.create) DEADLINE_EXCEEDED: Deadline exceeded")
    return 0


def queued_resources_describe(names: list[str], flags: dict[str, str]) -> int:
    with alone():
        return look(names)


def look(names: list[str]) -> int:
    found = resource()
    if problem := planned(f"describe {ZONE}"):
        return fail(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {problem}")
    if found is None:
        return fail(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: {names[0]} was not found")
    if problem := planned("describe"):
        return fail(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {problem}")
    if found["state"]["state"] not in ("SUSPENDED", "FAILED"):
        found["state"]["state"] = planned(f"states {ZONE}") or planned("states") or "ACTIVE"
        resource_file().write_text(json.dumps(found))
    print(json.dumps(found))
    return 0


def queued_resources_delete(names: list[str], flags: dict[str, str]) -> int:
    if resource() is None:
        return fail("ERROR: (gcloud.compute.tpus.queued-resources.delete) NOT_FOUND: it was not found")
    if problem := planned("delete"):
        return fail(f"ERROR: (gcloud.compute.tpus.queued-resources.delete) {problem}")
    power_off()
    resource_file().unlink()
    return 0


def tpu_vm_describe(names: list[str], flags: dict[str, str]) -> int:
    workers = int(os.environ.get("FAKE_WORKERS", "2"))
    ends = [{"ipAddress": f"10.0.0.{i}"} for i in range(workers)]
    print(json.dumps({"state": "READY", "health": "HEALTHY", "networkEndpoints": ends}))
    return 0


def homes(node: str) -> list[Path]:
    found = [HOME / f"{node}-{i}" for i in range(int(os.environ.get("FAKE_WORKERS", "2")))]
    for home in found:
        home.mkdir(exist_ok=True)
    return found


def known_hosts() -> Path:
    return HOME / "google_compute_known_hosts"


def changed_key(node: str) -> int:
    """What ssh says when the key of worker 1 is not the known one."""
    alias, file = f"tpu.{node}-1", known_hosts()
    known = [i for i, line in enumerate(file.read_text().splitlines(), 1) if line.startswith(f"{alias} ")]
    if not known:
        return fail("ssh: connect to host port 22: Connection refused", 255)
    said = [
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
        f"Add correct host key in {file} to get rid of this message.",
        f"Offending ED25519 key in {file}:{known[0]}",
        "  remove with:",
        f'  ssh-keygen -f "{file}" -R "{alias}"',
        f"Host key for {alias} has changed and you have requested strict checking.",
        "Host key verification failed.",
    ]
    return fail("\n".join(said), 255)


def tpu_vm_scp(names: list[str], flags: dict[str, str]) -> int:
    *sources, target = names
    if event := planned("scp"):
        if event == "changed key":
            return changed_key(target.removesuffix(":"))
        return fail("ssh: connect to host port 22: Connection refused", 255)
    for home in homes(target.removesuffix(":")):
        for source in sources:
            shutil.copyfile(source, home / Path(source).name)  # without its mode, as scp does
    return 0


def tpu_vm_ssh(names: list[str], flags: dict[str, str]) -> int:
    """The command on all workers.

    The plan may say `drop`, `preempt`, `rerun` (each after three lines, or with `at TEXT` once a line has it) or
    `unreachable` for it.
    """
    command = flags["--command"]
    verb = next(v for v in ("setup", "run", "doctor", "stop", "status") if f"tpu_pod/worker.py {v}" in command)
    event, _, text = planned(f"ssh {verb}").partition(" at ")
    cut_at = lambda count, line: text.encode() in line if text else count >= 3  # noqa: E731
    if event == "unreachable":
        return fail('ERROR: SSH Key is not present in the SSH agent. Please run "ssh-add"')
    if event == "changed key":
        return changed_key(names[0])
    print(f"Using ssh batch size of 1. Attempting to SSH into 1 nodes with a total of {len(homes(names[0]))} workers.")
    if event == "rerun":  # a first connection that drops and that gcloud itself makes again
        connect(names[0], command, cut_at)
    only = None if flags["--worker"] == "all" else int(flags["--worker"])
    codes = connect(names[0], command, cut_at if event in ("drop", "preempt") else None, only)
    if event == "preempt":
        with alone():
            found = resource()
            found["state"]["state"] = "SUSPENDED"
            resource_file().write_text(json.dumps(found))
        power_off()
    return 255 if event in ("drop", "preempt") else next((code for code in codes if code), 0)


def connect(
    node: str, command: str, cut_at: Callable[[int, bytes], bool] | None = None, only: int | None = None
) -> list[int]:
    """The command in each (or one) worker's home; cut at a line (number, text) of one of them, if at all."""
    sessions, readers, cut = [], [], threading.Event()
    for index, home in enumerate(homes(node)):
        if only not in (None, index):
            continue
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
