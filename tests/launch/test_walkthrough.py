"""docs/distributed.md: its commands run, print what the page shows, and end in a finished run."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from bertjax.config.loading.load import load
from bertjax.plan.topologies import parse

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
POD = PAGE[PAGE.index("## From a laptop to a Cloud TPU pod") : PAGE.index("## Parallelism")]
LAUNCHER = PAGE[PAGE.index("### Cloud TPU") : PAGE.index("### GKE")]


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
    commands = blocks(POD)[3:6]
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


def test_the_steps_before_the_launch_fit_it():
    """The plan is for the pod that is launched, and the configurations of plan, rehearsal and preparation load."""
    steps = [shlex.split(command) for command, _ in blocks(PAGE)]
    assert [step[0] for step in steps] == ["bertjax", "launch/local.py", "bertjax", *["launch/tpu.py"] * 4]
    assert steps[0][:2] == ["bertjax", "plan"] and steps[2][:2] == ["bertjax", "prepare"]
    for step, at in ((steps[0], 2), (steps[1], 6), (steps[2], 2)):
        path = ROOT / step[at]
        assert load(path if path.exists() else step[at]).stages
    topology = parse(steps[0][4])
    launched = steps[4]
    assert launched[launched.index("--type") + 1] == f"v5litepod-{topology.size}"
    assert steps[3] == [*launched, "--dry-run"] and steps[5] == launched


@pytest.mark.slow
def test_the_status_on_the_page_is_that_of_its_job(cloud):
    """After the preemption of the page, while training runs."""
    launched, asked = blocks(POD)[4][0], blocks(POD)[6]
    assert asked[0].startswith("launch/tpu.py --status ")
    cloud.plan(ssh_run=["preempt"])
    run = cloud.shared / "runs" / "bert-base"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"loss": 1.5}\n')
    (run / "goodput.jsonl").write_text("{}\n")
    package = cloud.checkout / "bertjax" / "training" / "monitor"
    package.mkdir(parents=True)
    (package / "goodput.py").write_text("def summarize(lines): return 'goodput 93%'\n")
    cloud.git("add", ".")
    argv = shlex.split(f"{launched} --poll=0.05 steps=60 run.name=bert-base".replace("/mnt/share", str(cloud.shared)))
    environment = cloud.environment | {"FAKE_WORKERS": "4"}
    with subprocess.Popen(argv, cwd=cloud.checkout, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        assert any(line.startswith("[w0] resume") for line in launcher.stdout)
        done = subprocess.run(
            shlex.split(asked[0]), cwd=cloud.checkout, env=environment, capture_output=True, text=True, timeout=60
        )
        launcher.stdout.read()
    said = [
        line.replace(str(cloud.shared), "/mnt/share").replace(" steps=60 run.name=bert-base", "")
        for line in done.stdout.splitlines()
    ]
    assert done.returncode == 0 and launcher.returncode == 0 and not missing(asked[1], said), done.stdout + done.stderr


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
    assert words[-1].startswith("--command=python -P -m bertjax train bert/pretrain_large ")
    assert "--restart-on-user-code-failure" in words and "--max-restarts=50" in words
    if shutil.which("xpk") is None:
        pytest.skip("xpk is not installed: its parser is not asked")
    done = subprocess.run([*words, "--dry-run"], capture_output=True, text=True, timeout=100)
    # It stops further on, since a dry run cannot know a cluster; argparse's complaints come before that.
    assert "Starting workload create" in done.stdout and "error: " not in done.stderr, done.stderr


def test_options_of_the_page_are_options(cloud):
    shown = cloud.launch("--help")[1]
    options = set(re.findall(r"`(--[a-z-]+)", POD + LAUNCHER))
    assert len(options) > 10
    for option in options:
        assert option in shown, option
