"""docs/launch.md and docs/pods.md, word for word: commands run, print what is shown, and end in a finished run."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from bertjax.config.loading.load import load
from bertjax.plan.topologies import parse

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "launch.md").read_text(encoding="utf-8")
POD = PAGE[PAGE.index("## A pod, word for word") : PAGE.index("### What it does when")]


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """(command, the lines shown after it) of every block that begins with `$`."""
    found = re.findall(r"^    \$ (.*)\n((?:    .*\n)*)", text, re.MULTILINE)
    return [(command, [line[4:] for line in shown.splitlines()]) for command, shown in found]


def missing(shown: list[str], said: list[str]) -> list[str]:
    """The shown lines that do not come in this order; `...` stands for anything, a line of bertjax's own for none."""
    rest = iter(said)
    wanted = [line for line in shown if line != "..." and not (line.startswith("[") and "launch:" not in line)]
    return [w for w in wanted if not any(re.fullmatch(re.escape(w).replace(r"\.\.\.", ".*"), line) for line in rest)]


def test_the_walk_through_ends_in_a_finished_run(cloud):
    cloud.plan(states=["WAITING_FOR_RESOURCES", "PROVISIONING"], ssh_run=["preempt"])
    cloud.shared.mkdir()
    commands = blocks(POD)
    assert len(commands) == 3
    for command, shown in commands:
        # A folder of this test in place of /mnt/share, and no fifteen seconds between looks.
        here = command.replace("/mnt/share", str(cloud.shared)) + " --poll=0.05"
        done = subprocess.run(
            shlex.split(here), cwd=cloud.checkout, env=cloud.environment | {"FAKE_WORKERS": "4"}, timeout=100,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said = [
            line.replace(str(cloud.shared), "/mnt/share").replace("--poll=0.05", "")
            for line in done.stdout.splitlines()
        ]
        assert done.returncode == 0, done.stdout
        assert not missing(shown, said), done.stdout
    assert not cloud.there() and (cloud.shared / "runs" / "steps-my-pod-3").read_text() == "8"
    mounted = (cloud.home / "sudo").read_text().splitlines()
    assert f"mount -t nfs 10.0.0.2:/share {cloud.shared}" in mounted, "by every worker, of every pod"
    assert len([line for line in mounted if line.startswith("mount")]) == 8


def test_the_page_of_pods_ends_in_a_finished_run(cloud):
    """Its plan is for the pod that it launches, its configurations are right, and the launcher's run is finished."""
    steps = [command for command, _ in blocks((DOCS / "pods.md").read_text(encoding="utf-8"))]
    assert [shlex.split(step)[0] for step in steps] == ["bertjax", "launch/local.py", "bertjax", *["launch/tpu.py"] * 2]
    root = DOCS.parent
    assert shlex.split(steps[0])[:2] == ["bertjax", "plan"] and shlex.split(steps[2])[:2] == ["bertjax", "prepare"]
    for step, at in ((steps[0], 2), (steps[1], 6), (steps[2], 2)):
        assert load(root / shlex.split(step)[at]).stages
    topology = parse(shlex.split(steps[0])[4])
    assert f"--type v5litepod-{topology.size}" in steps[3] and steps[4] == steps[3].removesuffix(" --dry-run")
    done = []
    cloud.shared.mkdir()
    for command in steps[3:]:
        here = command.replace("/mnt/share", str(cloud.shared)) + " --poll=0.05"
        done.append(
            subprocess.run(
                shlex.split(here),
                cwd=cloud.checkout,
                env=cloud.environment | {"FAKE_WORKERS": "4"},
                timeout=100,
                capture_output=True,
                text=True,
            )  # fmt: skip
        )
        assert done[-1].returncode == 0, done[-1].stderr
    assert "queued-resources create my-pod" in done[0].stdout
    assert "launch: finished" in done[1].stdout + done[1].stderr and not cloud.there()


def test_what_ctrl_c_says_is_on_the_page(cloud):
    launcher = cloud.start("steps=200", "--zone=us-west4-a", "--spot")
    for line in launcher.stdout:
        if line.startswith("[w0] step"):
            break
    launcher.send_signal(2)
    said = launcher.communicate(timeout=30)[0].splitlines()
    shown = PAGE[PAGE.index("    ^Claunch: interrupted") :].split("\n\n")[0].replace("^C", "")
    assert not missing([line[4:] for line in shown.splitlines()], [line for line in said if not line.startswith("[")])


def test_xpk_takes_the_line_of_the_page():
    (line,) = re.findall(r"^    (xpk .*)$", PAGE, re.MULTILINE)
    words = shlex.split(line)
    assert words[-1].startswith("--command=python -m bertjax train configs/bert/pretrain_large.yaml")
    assert "--restart-on-user-code-failure" in words and "--max-restarts=50" in words
    if shutil.which("xpk") is None:
        pytest.skip("xpk is not installed: its parser is not asked")
    done = subprocess.run([*words, "--dry-run"], capture_output=True, text=True, timeout=100)
    # It stops further on, since a dry run cannot know a cluster; argparse's complaints come before that.
    assert "Starting workload create" in done.stdout and "error: " not in done.stderr, done.stderr


def test_options_of_the_page_are_options(cloud):
    shown = cloud.launch("--help")[1]
    pod = PAGE[PAGE.index("## A pod, word for word") : PAGE.index("## GKE")]
    for option in set(re.findall(r"`(--[a-z-]+)", pod)):
        assert option in shown, option
