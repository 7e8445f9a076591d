"""launch/jobset.yaml on a cluster whose pods are processes here: what fails, what starts again, and from where."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (kubectl .*)$", PAGE, re.MULTILINE)


class Cluster:
    """A fake kubectl, and the checkout that stands for the image."""

    def __init__(self, cloud, home: Path) -> None:
        self.home, self.checkout = home / "cluster", cloud.checkout
        self.home.mkdir()
        self.runs = self.home / "volumes" / "shared" / "runs"
        bin_ = home / "bin"
        (bin_ / "kubectl").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_kubectl.py"}" "$@"\n')
        (bin_ / "kubectl").chmod(0o755)
        (bin_ / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        (bin_ / "python").chmod(0o755)
        self.environment = cloud.environment | {"FAKE_KUBECTL": str(self.home), "CHECKOUT": str(self.checkout)}

    def edit(self, pattern: str, by: str) -> None:
        """As a user changes the file before it is sent."""
        path = self.checkout / "launch" / "jobset.yaml"
        text, count = re.subn(pattern, by, path.read_text())
        assert count
        path.write_text(text)

    def few(self) -> None:
        self.edit("(parallelism|completions): 64", r"\1: 3")

    def adds(self, word: str) -> None:
        self.edit("/shared/runs]", f"/shared/runs, {word}]")

    def plan(self, **events: list[str]) -> None:
        (self.home / "plan.json").write_text(json.dumps(events))

    def fail(self, worker: int, step: int, code: int) -> None:
        """This worker's training ends with `code` (below zero: by a signal) once, at this step."""
        self.runs.mkdir(parents=True, exist_ok=True)
        (self.runs / f"fail-{worker}-at-{step}").write_text(str(code))

    def run(self, command: str) -> tuple[int, str]:
        done = subprocess.run(
            shlex.split(command), cwd=self.checkout, env=self.environment, text=True, timeout=60,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    def end(self) -> tuple[str, int]:
        """(terminal state, restarts), once it has ended."""
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            status = json.loads((self.home / "jobset.json").read_text())["status"]
            if status.get("terminalState"):
                return status["terminalState"], status["restarts"]
            time.sleep(0.05)
        raise AssertionError((self.home / "controller.log").read_text())

    def steps(self, worker: int) -> int:
        return int((self.runs / f"steps-bert-large-slice-0-{worker}").read_text())

    def close(self) -> None:
        (self.home / "jobset.json").unlink(missing_ok=True)  # its controller takes the pods away


@pytest.fixture
def cluster(cloud, tmp_path):
    made = Cluster(cloud, tmp_path)
    yield made
    made.close()


def test_the_commands_of_the_page_end_in_a_finished_run(cluster):
    """All 64 workers of the file as it is."""
    create, look, follow, delete = COMMANDS
    assert cluster.run(create) == (0, "jobset.jobset.x-k8s.io/bert-large created\n")
    assert cluster.end() == ("Completed", 0)
    assert {cluster.steps(worker) for worker in range(64)} == {8}
    code, said = cluster.run(look)
    assert code == 0 and re.search(r"^bert-large +Completed +0$", said, re.MULTILINE)
    code, said = cluster.run(follow)
    assert code == 0 and said.splitlines() == ["start 0 env None", *[f"step {step}" for step in range(1, 9)]]
    assert cluster.run(delete) == (0, 'jobset.jobset.x-k8s.io "bert-large" deleted\n')


@pytest.mark.parametrize("code", [75, -signal.SIGKILL, -signal.SIGABRT, 1])
def test_what_may_end_well_starts_all_workers_again(cluster, code):
    cluster.few()
    cluster.fail(1, 3, code)
    assert cluster.run(COMMANDS[0])[0] == 0
    assert cluster.end() == ("Completed", 1)
    assert [cluster.steps(worker) for worker in range(3)] == [8, 8, 8]
    first, second = ((cluster.home / "pods" / start / "0.log").read_text() for start in "01")
    assert first.startswith("start 0") and second.startswith("resume"), "from what lies on the volume"


@pytest.mark.parametrize("code", [2, 3, 4, 70])
def test_what_would_come_again_fails_it_at_once(cluster, code):
    cluster.few()
    cluster.fail(2, 3, code)
    cluster.run(COMMANDS[0])
    assert cluster.end() == ("Failed", 0)
    assert "tiny.yaml: something is wrong" in (cluster.home / "pods/0/2.log").read_text()
    codes = {path.stem: path.read_text() for path in (cluster.home / "pods/0").glob("*.code")}
    assert codes["2"] == str(code) and {codes["0"], codes["1"]} <= {"75", "0"}, "the others were told to save and leave"


def test_nodes_that_go_away_again_and_again_do_not_count(cluster):
    cluster.few()
    cluster.edit("maxRestarts: 50", "maxRestarts: 1")
    cluster.adds("steps=60")
    cluster.plan(nodes=["0", "2", "1"])
    cluster.run(COMMANDS[0])
    assert cluster.end() == ("Completed", 3)
    status = json.loads((cluster.home / "jobset.json").read_text())["status"]
    assert status["restartsCountTowardsMax"] == 0
    assert (cluster.home / "pods/1/0.code").read_text() in ("75", "0", str(-signal.SIGTERM))


def test_it_gives_up_after_as_many_starts_as_the_file_says(cluster):
    cluster.few()
    cluster.edit("maxRestarts: 50", "maxRestarts: 1")
    for step in (2, 4, 6):
        cluster.fail(0, step, 75)
    cluster.run(COMMANDS[0])
    assert cluster.end() == ("Failed", 1)


def test_what_the_cluster_refuses(cluster):
    cluster.plan(create=["You must be logged in to the server (Unauthorized)"])
    assert cluster.run(COMMANDS[0]) == (1, "error: You must be logged in to the server (Unauthorized)\n")
    cluster.edit("maxRestarts", "maxRestart")
    code, said = cluster.run(COMMANDS[0])
    assert code == 1 and ".spec.failurePolicy.maxRestart: no such field" in said
    assert cluster.run(COMMANDS[1]) == (
        1, 'Error from server (NotFound): jobsets.jobset.x-k8s.io "bert-large" not found\n'
    )  # fmt: skip


def test_deleting_stops_the_workers_in_good_order(cluster):
    cluster.few()
    cluster.adds("steps=2000")
    cluster.run(COMMANDS[0])
    log = cluster.home / "pods/0/0.log"
    limit = time.monotonic() + 30
    while not (log.exists() and "step 2" in log.read_text()) and time.monotonic() < limit:
        time.sleep(0.05)
    assert cluster.run(COMMANDS[3])[0] == 0
    while len(list(log.parent.glob("*.code"))) < 3 and time.monotonic() < limit:
        time.sleep(0.05)
    assert {path.read_text() for path in log.parent.glob("*.code")} == {"75"}
