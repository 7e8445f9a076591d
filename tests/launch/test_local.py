"""launch/local.py: real processes joined on this machine, one exit code, one stream of lines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import exit_codes
import local
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "launch" / "local.py"

# In place of bertjax: says who it is, then ends as the file `N-<index>` of the N-th start says.
STAND_IN = """\
import os, signal, sys, time
from pathlib import Path
index = os.environ["BERTJAX_PROCESS_ID"]
print("[Gloo] Rank 0 is\\n0 is connected to 1 peer ranks.")
print(index, sys.argv[1:], os.environ["BERTJAX_NUM_PROCESSES"])
print(os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"], file=sys.stderr)
starts = Path(f"starts-{index}"); number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
end = Path(f"{number}-{index}").read_text() if Path(f"{number}-{index}").exists() else "0"
if end == "wait":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(75))
for step in ("start: pretrain 5 | starts", "pretrain 5 | resumed", "pretrain 10/20 | loss 1", "pretrain 10 | saved",
             "qa 0 | starts", "qa 5/20 | loss 1"):
    print(step)
if end == "wait":
    Path(f"waits-{index}").touch()
    time.sleep(60)
if int(end) < 0:
    os.kill(os.getpid(), -int(end))
sys.exit(int(end))
"""


@pytest.fixture
def stand_in(tmp_path):
    """A folder with a checkout whose bertjax is the stand-in; `ends` writes how the processes end."""
    package = tmp_path / "checkout" / "bertjax"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    (tmp_path / "checkout" / "launch").symlink_to(ROOT / "launch")
    return tmp_path


def start(home: Path, *words: str, program: Path | None = None) -> subprocess.Popen:
    script = program or home / "checkout" / "launch" / "local.py"
    # Run as a copy would be: the checkout beside the script, not this one.
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'launch')!r}); import local; from pathlib import Path; "
    code += f"local.ROOT = Path({str(script.parent.parent)!r}); sys.exit(local.main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip


def run(home: Path, *words: str) -> tuple[int, list[str]]:
    process = start(home, *words)
    out, _ = process.communicate(timeout=100)
    return process.returncode, out.splitlines()


def test_every_process_knows_its_place_and_gloo_is_not_heard(stand_in):
    code, said = run(stand_in, "--processes", "3", "--devices", "4", "train", "x.yaml", "--flag", "a=b c")
    assert code == 0
    assert sorted(line for line in said if "'train'" in line) == [
        f"[{i}] {i} ['train', 'x.yaml', '--flag', 'a=b c'] 3" for i in range(3)
    ]
    assert sum("--xla_force_host_platform_device_count=4 cpu" in line for line in said) == 3
    assert not [line for line in said if "Gloo" in line or "peer ranks" in line]


def test_the_processes_of_a_start_share_a_secret_that_no_command_line_shows():
    found = []
    for _ in range(2):
        made = local.Processes(3, 1, ["train", "x.yaml"])
        (secret,) = {environment["BERTJAX_SECRET"] for environment in made._environments}
        assert len(secret) == 64 and secret not in " ".join(made._argv)
        found.append(secret)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [(["0", "75"], 75), (["75", str(-signal.SIGABRT)], 75), (["0", str(-signal.SIGKILL)], 75), (["75", "2"], 2),
     ([str(-signal.SIGABRT), "70"], 70), (["3", "3"], 3), (["1", "75"], 1)],
)  # fmt: skip
def test_one_code_for_all(stand_in, ends, expected):
    for index, end in enumerate(ends):
        (stand_in / f"0-{index}").write_text(end)
    assert run(stand_in, "train")[0] == expected


def test_retries_start_again_on_75_only(stand_in):
    for place, end in {"0-1": "75", "1-0": str(-signal.SIGABRT), "1-1": "75"}.items():
        (stand_in / place).write_text(end)
    code, said = run(stand_in, "--retries", "5", "train")
    assert code == 0 and (stand_in / "starts-0").read_text() == "xxx"
    (stand_in / "3-0").write_text("2")
    assert run(stand_in, "--retries", "5", "train")[0] == 2 and (stand_in / "starts-0").read_text() == "xxxx"
    for number in range(4, 9):
        (stand_in / f"{number}-0").write_text("75")
    code, said = run(stand_in, "--retries", "1", "train")
    assert code == 75 and (stand_in / "starts-0").read_text() == "x" * 6 and said[-1].endswith("(75)")


def test_processes_are_preempted_and_the_run_goes_on_with_other_numbers(stand_in):
    """The stand-in shows 10 steps: those of each stage from where it starts. Processes that leave receive SIGTERM."""
    for place, end in {"0-0": "75", "0-2": "wait", "1-0": "wait"}.items():
        (stand_in / place).write_text(end)
    code, said = run(stand_in, "--processes", "3,1,2", "--preempt-after", "10", "train")
    assert code == 0
    assert [line for line in said if line.startswith("launch:")] == [
        "launch: SIGTERM to 1, 2 of 3 processes", "launch: stopped (75), going on with 1 process",
        "launch: SIGTERM to 0 of 1 processes", "launch: stopped (75), going on with 2 processes",
    ]  # fmt: skip
    assert (stand_in / "starts-0").read_text() == "xxx"  # the others may receive SIGTERM before they are that far


def test_a_run_that_ends_before_it_is_preempted_says_so(stand_in):
    code, said = run(stand_in, "--processes", "2,1", "--preempt-after", "11", "train")
    assert code == 0 and said[-1] == "launch: the run ended before it could go on with 1 process"
    (stand_in / "1-0").write_text("75")  # not by the preemption
    code, said = run(stand_in, "--processes", "2,1", "--preempt-after", "11", "train")
    assert code == 75 and not [line for line in said if "going on" in line]
    (stand_in / "2-0").write_text("2")
    code, said = run(stand_in, "--processes", "2,1", "--preempt-after", "10", "train")
    assert code == 2 and not [line for line in said if "going on" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_is_not_retried(stand_in, number):
    for index in range(2):
        (stand_in / f"0-{index}").write_text("wait")
    process = start(stand_in, "--retries", "3", "train")
    until = time.monotonic() + 60
    while not all((stand_in / f"waits-{index}").exists() for index in range(2)) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 75 and (stand_in / "starts-0").read_text() == "x"


def test_words_it_does_not_take(stand_in):
    both = "need each other"
    for words, expected in (
        (["--processes", "0", "train"], "of at least 1"), (["--processes", "2,x", "train"], "(got 'x')"),
        (["--processes", "2,1", "train"], both), (["--preempt-after", "3", "train"], both), ([], "name a command"),
    ):  # fmt: skip
        code, said = run(stand_in, *words)
        assert code == 2 and expected in said[-1]


@given(st.lists(st.sampled_from([0, 75, 2, 3, 4, 70, 1, 130, 137, 134, -6, -9, -15, -11]), min_size=1))
def test_the_worst_of_many(codes):
    found = exit_codes.combine(codes)
    assert found == exit_codes.combine(reversed(codes)) == exit_codes.combine([*codes, found])
    assert (found == 0) == all(code == 0 for code in codes)
    if {2, 3, 4, 70} & set(codes):
        assert found in (2, 3, 4, 70), "what would come again is never 'run me again'"
    assert exit_codes.combine([*codes, 0]) == found and exit_codes.combine([*codes, 2]) == 2


@pytest.mark.slow
def test_two_processes_really_train(tiny_project, tmp_path):
    words = ["train", str(tiny_project / "tiny.yaml"), f"run.root={tmp_path}/runs", "stages.pretrain.steps=2"]
    argv = [sys.executable, str(LOCAL), "--processes", "2", "--devices", "2", *words, "stages.qa.steps=2"]
    done = subprocess.run(argv, cwd=tiny_project, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[Gloo]" not in done.stdout
    assert any(line.startswith("[0] qa 2") for line in done.stdout.splitlines()), done.stdout
    lines = [json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [(m["stage"], m["step"]) for m in lines if m["kind"] == "train"] == [
        (stage, step) for stage in ("pretrain", "qa") for step in (1, 2)
    ]
    wrong = subprocess.run([*argv, "run.nam=x"], cwd=tiny_project, capture_output=True, text=True, timeout=200)
    assert wrong.returncode == 2 and "run.nam" in wrong.stdout and "bad input (exit code 2)" in wrong.stdout
