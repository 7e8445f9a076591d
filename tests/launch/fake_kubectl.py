#!/usr/bin/env python3
"""A kubectl with one JobSet, whose pods are processes of this machine, on a cluster whose nodes fail when told to.

Everything is in $FAKE_KUBECTL: `plan.json` (calls that are refused, pods whose node goes away once worker 0 tells of a
step, which gives them the condition DisruptionTarget), `jobset.json` (the object with its status),
`pods/START/INDEX.log` (what a pod of that start wrote), and `volumes/NAME`. What becomes of pods that fail follows the
pod failure policy of Kubernetes' Job (docs, "Pod failure policy"; messages as its controller writes them) and JobSet's
FailurePolicy (API reference v1alpha2: the first rule whose reasons and message patterns match; none: all anew, while
restartsCountTowardsMax is below maxRestarts). A pod's process is what launch/Dockerfile starts, in the folder of the
checkout; volumes are folders here.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from jobset_fields import JOBSET, problems

HOME = Path(os.environ["FAKE_KUBECTL"])
OBJECT, PLAN = HOME / "jobset.json", HOME / "plan.json"
NAME = "jobset.jobset.x-k8s.io"


def main(words: list[str]) -> int:
    verb, names, flags = words[0], [w for w in words[1:] if not w.startswith("-")], [w for w in words if w[0] == "-"]
    if refused := taken(verb):
        return fail(f"error: {refused}")
    if verb == "create" and flags == ["-f"]:
        return create(Path(names[0]))
    if verb == "logs" and set(flags) <= {"--follow", "--selector"}:
        return logs(dict(pair.split("=") for pair in names[0].split(",")), follow="--follow" in flags)
    if verb in ("get", "delete") and names[0] == "jobset" and not flags:
        found = json.loads(OBJECT.read_text()) if OBJECT.exists() else None
        if found is None or found["metadata"]["name"] != names[1]:
            return fail(f'Error from server (NotFound): jobsets.jobset.x-k8s.io "{names[1]}" not found')
        return show(found) if verb == "get" else delete(found)
    return fail(f"error: not a call this kubectl knows: {shlex.join(words)}")


def fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


def taken(key: str) -> str:
    """The next word of the plan's list, empty when all goes well."""
    plan = json.loads(PLAN.read_text()) if PLAN.exists() else {}
    word = plan[key].pop(0) if plan.get(key) else ""
    PLAN.write_text(json.dumps(plan))
    return word


def create(path: Path) -> int:
    made = yaml.safe_load(path.read_text())
    if wrong := problems(made, JOBSET):
        return fail(f"Error from server (BadRequest): error when creating {path}: {'; '.join(wrong)}")
    name = made["metadata"]["name"]
    if OBJECT.exists():
        return fail(f'Error from server (AlreadyExists): error when creating {path}: "{name}" already exists')
    keep(made, restarts=0, restartsCountTowardsMax=0)
    subprocess.Popen(
        [sys.executable, __file__, "--control"], start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=(HOME / "controller.log").open("w"),
    )  # fmt: skip
    print(f"{NAME}/{name} created")
    return 0


def keep(made: dict, **status: object) -> None:
    made["status"] = made.get("status", {}) | status
    unfinished = OBJECT.with_suffix(".new")
    unfinished.write_text(json.dumps(made))
    unfinished.rename(OBJECT)


def show(found: dict) -> int:
    status = found["status"]
    print("NAME         TERMINALSTATE   RESTARTS")
    print(f"{found['metadata']['name']:12} {status.get('terminalState', ''):15} {status['restarts']}")
    return 0


def logs(selector: dict[str, str], *, follow: bool) -> int:
    """Of the pods there are now; `--follow` ends with them, as kubectl's does."""
    index = selector["batch.kubernetes.io/job-completion-index"]
    found = sorted((HOME / "pods").glob(f"*/{index}.log"), key=lambda path: int(path.parent.name))
    if not found or selector["jobset.sigs.k8s.io/jobset-name"] != json.loads(OBJECT.read_text())["metadata"]["name"]:
        return fail("No resources found in default namespace.")
    while follow and not found[-1].with_suffix(".code").exists():
        time.sleep(0.05)
    print(found[-1].read_text(), end="")
    return 0


def delete(found: dict) -> int:
    OBJECT.unlink()
    print(f'{NAME} "{found["metadata"]["name"]}" deleted')
    return 0


# ---- the controllers ------------------------------------------------------------------------------------------------


def control() -> None:
    """JobSet's: every failed Job is judged, and all Jobs are made anew or none."""
    while True:
        made = json.loads(OBJECT.read_text())
        policy, restarts = made["spec"]["failurePolicy"], made["status"]["restarts"]
        counted = made["status"]["restartsCountTowardsMax"]
        reason, message = job(made, HOME / "pods" / str(restarts))
        if reason == "deleted":
            return
        rules = (
            rule
            for rule in policy.get("rules", [])
            if reason in rule.get("onJobFailureReasons", [reason])
            and any(re.search(pattern, message) for pattern in rule.get("onJobFailureMessagePatterns", [""]))
        )
        action = next(rules, {"action": "RestartJobSet"})["action"]
        if reason is None:
            return keep(made, terminalState="Completed")
        free = action == "RestartJobSetAndIgnoreMaxRestarts"
        if action == "FailJobSet" or (not free and counted >= policy["maxRestarts"]):
            return keep(made, terminalState="Failed", reason=reason)
        assert free or action == "RestartJobSet", action
        keep(made, restarts=restarts + 1, restartsCountTowardsMax=counted + (not free))


def job(made: dict, folder: Path) -> tuple[str | None, str]:
    """One Job from its pods to its end: the reason (None when it is complete) and the message of its failure.

    The others' pods then go.
    """
    (one,) = made["spec"]["replicatedJobs"]
    spec = one["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    folder.mkdir(parents=True)
    pods = [start(made, container, index, spec["parallelism"], folder) for index in range(spec["parallelism"])]
    lost = taken("nodes")
    reason: str | None = ""
    message = ""
    while reason == "":
        time.sleep(0.02)
        if lost and "step" in (folder / "0.log").read_text():
            os.killpg(pods[int(lost)].pid, signal.SIGKILL)
        codes = [pod.poll() for pod in pods]
        failed = [(i, 128 - code if code < 0 else code) for i, code in enumerate(codes) if code]
        if failed:
            index, code = failed[0]
            pod = f"default/{made['metadata']['name']}-slice-0-{index}"
            conditions = ["DisruptionTarget"] if lost == str(index) else []
            rules = enumerate(spec["podFailurePolicy"]["rules"])
            found = ((i, matches(rule, container["name"], code, conditions)) for i, rule in rules)
            at, what = next(((i, what) for i, what in found if what), (None, ""))
            assert spec["backoffLimit"] == 0
            reason = "BackoffLimitExceeded" if at is None else "PodFailurePolicy"
            message = "Job has reached the specified backoff limit"
            if at is not None:
                message = f"{what.format(pod=pod)} matching FailJob rule at index {at}"
        elif all(code == 0 for code in codes):
            reason = None
        elif not OBJECT.exists():
            reason = "deleted"
    grace = time.monotonic() + spec["template"]["spec"]["terminationGracePeriodSeconds"]
    for pod in pods:
        if pod.poll() is None:
            pod.terminate()  # to process 1 of the container alone
    for index, pod in enumerate(pods):
        try:
            pod.wait(max(0, grace - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(pod.pid, signal.SIGKILL)
        (folder / f"{index}.code").write_text(str(pod.wait()))
    return reason, message


def matches(rule: dict, container: str, code: int, conditions: list[str]) -> str:
    """What of a failed pod fits a rule, as Kubernetes writes it; empty when nothing does."""
    assert rule["action"] == "FailJob" and len({"onExitCodes", "onPodConditions"} & rule.keys()) == 1
    if codes := rule.get("onExitCodes"):
        assert codes.get("containerName", container) == container
        fits = (code in codes["values"]) == (codes["operator"] == "In")
        return f"Container {container} for pod {{pod}} failed with exit code {code}" if fits else ""
    wanted = [one["type"] for one in rule["onPodConditions"] if one.get("status", "True") == "True"]
    return next((f"Pod {{pod}} has condition {name}" for name in wanted if name in conditions), "")


def start(made: dict, container: dict, index: int, count: int, folder: Path) -> subprocess.Popen:
    """A pod: the image's entry point on the container's arguments, with the variables GKE adds to TPU pods."""
    checkout, name = Path(os.environ["CHECKOUT"]), made["metadata"]["name"]
    dockerfile = (checkout / "launch" / "Dockerfile").read_text()
    (entry,), (image,) = (re.findall(rf"^{key} (.*)$", dockerfile, re.MULTILINE) for key in ("ENTRYPOINT", "WORKDIR"))
    words = container.get("command", json.loads(entry)) + container["args"]
    words = [f"{checkout}{word.removeprefix(image)}" if word.startswith(f"{image}/") else word for word in words]
    cwd = checkout
    for mount in container["volumeMounts"]:
        here = HOME / "volumes" / mount["name"]
        here.mkdir(parents=True, exist_ok=True)
        words = [word.replace(f"={mount['mountPath']}/", f"={here}/") for word in words]
        cwd = here if container.get("workingDir") == mount["mountPath"] else cwd
    home = HOME / "homes" / f"{name}-slice-0-{index}"
    home.mkdir(parents=True, exist_ok=True)
    added = {
        "TPU_WORKER_ID": str(index), "HOME": str(home), "PYTHONPATH": str(checkout),  # the image has it installed
        "TPU_WORKER_HOSTNAMES": ",".join(f"{name}-slice-0-{i}.{name}" for i in range(count)),
    }  # fmt: skip
    with (folder / f"{index}.log").open("w") as log:
        return subprocess.Popen(
            words, cwd=cwd, env=os.environ | added, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:] == ["--control"]:
        control()
    else:
        sys.exit(main(sys.argv[1:]))
