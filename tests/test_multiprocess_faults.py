"""Several processes when something goes wrong: missing ones, other settings, kills, hangs, stops in every phase.

Every case is a real job on one machine, joined over Gloo. What must hold: all leave, soon, with the right code and one
line that says why; and the same command goes on from there.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gloo
import pytest

from bertjax.training.checkpoint.layout import committed_steps
from bertjax.training.monitor import goodput

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# A run whose functions can be made slow or stuck from outside: SLOW="module:function:process:call" stops that process
# there, says so in a file, and goes on (FOR=seconds) or never.
DRIVER = """
import importlib, os, pathlib, sys, time

def at(place, seconds):
    module, function, process, call = place.split(":")
    *owner, name = function.split(".")
    target = importlib.import_module(module)
    for part in owner:
        target = getattr(target, part)
    real, calls = getattr(target, name), [0]
    def slow(*args, **options):
        calls[0] += 1
        if calls[0] == int(call) and os.environ.get("BERTJAX_PROCESS_ID", "0") == process:
            pathlib.Path(os.environ["MARK"]).write_text(str(os.getpid()))
            time.sleep(seconds)
        return real(*args, **options)
    setattr(target, name, slow)

from bertjax.cli.main import main
if "SLOW" in os.environ:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bertjax.evaluation.evaluators.build, bertjax.training.loop
    at(os.environ["SLOW"], float(os.environ["FOR"]))
sys.exit(main(sys.argv[1:]))
"""


class Job:
    """The processes of one command, each with `devices` virtual devices; killed on the way out if a test fails."""

    def __init__(
        self, home: Path, words: list[str], processes: int, devices: int = 2, skip: tuple[int, ...] = (),
        only: dict[int, list[str]] | None = None, **more: str,
    ) -> None:  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        cache = str(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / f"faults-{processes}-{devices}")
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        shared = os.environ | more | {
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": paths, "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }  # fmt: skip
        self.running: dict[int, subprocess.Popen[str]] = {}
        for index in set(range(processes)) - set(skip):
            seat = {
                "BERTJAX_COORDINATOR": address, "BERTJAX_NUM_PROCESSES": str(processes),
                "BERTJAX_PROCESS_ID": str(index),
            }  # fmt: skip
            command = [sys.executable, "-c", DRIVER, *words, *((only or {}).get(index, []))]
            self.running[index] = subprocess.Popen(
                command, cwd=home, env=shared | (seat if processes > 1 else {}),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            process.kill()
            process.communicate()

    def send(self, index: int, what: signal.Signals) -> None:
        self.running[index].send_signal(what)

    def ended(self, timeout: float = 300) -> dict[int, tuple[int, str, str]]:
        """(exit code, standard output, standard error) of every process, without what Gloo says of itself."""
        found = {}
        for index, process in self.running.items():
            out, err = process.communicate(timeout=timeout)
            found[index] = (process.returncode, gloo.without(out), err)
        return found

    def codes(self, timeout: float = 300) -> dict[int, int]:
        return {index: code for index, (code, _, _) in self.ended(timeout).items()}

    def finish(self, timeout: float = 300) -> dict[int, tuple[int, str, str]]:
        """`ended`, of a job in which nothing went wrong."""
        found = self.ended(timeout)
        assert {code for code, _, _ in found.values()} == {0}, found
        return found


@pytest.fixture
def job(tiny_project, tiny_t5_project, tmp_path) -> Callable[..., Job]:
    """job(family, name, processes, *overrides): a training run under tmp_path."""

    def make(family: str, name: str, processes: int, *overrides: str, **options: Any) -> Job:
        home = {"bert": tiny_project, "t5": tiny_t5_project}[family]
        words = ["train", "tiny.yaml", f"run.root={tmp_path}/runs", f"run.name={name}", *overrides]
        return Job(home, words, processes, MARK=str(tmp_path / f"mark-{name}"), **options)

    return make


def until(true: Callable[[], Any], job: Job, limit: float = 400) -> None:
    """Waits for something that processes of a job bring about, while all of them run."""
    end = time.monotonic() + limit
    while not true():
        over = [process for process in job.running.values() if process.poll() is not None]
        assert not over and time.monotonic() < end, [process.communicate() for process in over] or "it takes too long"
        time.sleep(0.05)


def steps_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') if path.exists() else 0


def learnt(run: Path) -> dict[tuple[str, int], dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert len({(line["stage"], line["step"]) for line in train}) == len(train), "a step is there twice"
    return {(line["stage"], line["step"]): line for line in train}


def scores(run: Path) -> list[tuple[str, dict[str, float]]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["name"], line["scores"]) for line in lines if line["kind"] == "eval"]


def plain(err: str) -> list[str]:
    """Lines of ours: jax's and absl's begin with a letter and the date, or are part of a stack."""
    return [x for x in err.splitlines() if x and not re.match(r"[IWEF]\d{4} |\s|\*\*\*|RPC:|Additional GRPC", x)]


# ---- coming together ------------------------------------------------------------------------------------------------


def test_a_process_that_never_comes_is_named_by_all(job):
    with job("bert", "missing", 3, skip=(1,), BERTJAX_START_TIMEOUT="6", devices=1) as running:
        ended = running.ended(60)
    assert [code for code, _, _ in ended.values()] == [75, 75]
    for _, _, err in ended.values():
        assert err.startswith("process 1 of 3 never arrived (there: 0 (") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.seed=7", "process 1 (HOST) and process 0 (HOST) differ in the configuration, run.seed: 7 instead of 0;"),
        (
            "tasks.text.source.files=[more.txt]",
            "process 1 (HOST) and process 0 (HOST) differ in the configuration, tasks.text.source.0.files.0: more.txt "
            "instead of text.txt;",
        ),
    ],
)
def test_another_configuration_is_told_before_anything_is_computed(job, tmp_path, override, words):
    with job("bert", "differ", 2, only={1: [override]}) as running:
        ended = running.ended(120)
    assert [code for code, _, _ in ended.values()] == [2, 2]
    for _, _, err in ended.values():
        assert plain(err) == [plain(err)[0]] and plain(err)[0].startswith(words.replace("HOST", socket.gethostname()))
    assert not (tmp_path / "runs").exists()


def test_doctor_speaks_for_all(tiny_project, tmp_path):
    with Job(tiny_project, ["doctor", "--cluster"], 3, devices=2) as running:
        ended = running.ended(120)
    assert [code for code, _, _ in ended.values()] == [0, 0, 0]
    lead, *others = (out for _, out, _ in ended.values())
    assert others == ["", ""] and lead.endswith("ready\n")
    assert re.search(r"ok  slices +3: mesh.dcn=3, or -1", lead)
    assert re.search(r"ok  processes +3 on 1 host", lead) and re.search(r"ok  sum over all +right over 6", lead)
    assert re.search(r"ok  all-reduce +[\d.]+ GB/s per device, in a ring of 6", lead)


# ---- kills and hangs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_leaves_with_75_and_the_run_goes_on(job, tmp_path, victim):
    """Also when it is the coordinator, whose death makes jax abort."""
    steps = ["stages.pretrain.steps=120", "run.checkpoint.save_every=25"]
    run = tmp_path / "runs" / "killed"
    with job("bert", "killed", 2, *steps) as running:
        until(lambda: steps_of(run) >= 40, running)
        running.send(victim, signal.SIGKILL)
        began = time.monotonic()
        code, _, err = running.ended(60)[1 - victim]
        assert time.monotonic() - began < 10
    assert code == 75, err
    assert "another process is gone" in plain(err)[-1] and plain(err)[-1].endswith("run the same command again")
    with job("bert", "killed", 2, *steps) as running:
        running.finish()
    with job("bert", "whole", 2, *steps) as running:
        running.finish()
    one, other = learnt(tmp_path / "runs" / "whole"), learnt(run)
    assert len(one) == 126 and one.keys() == other.keys()
    assert all(one[place]["loss"] == other[place]["loss"] for place in one), "bit for bit"
    spent = goodput.read(run)
    assert spent is not None and spent.attempts == 2 and spent.idle > 0


@pytest.mark.parametrize(("what", "victim"), [("loader", 1), ("stop", 1), ("stop", 0)])
def test_when_one_hangs_all_leave_with_75(job, tmp_path, what, victim):
    """A loader that never returns; a process that SIGSTOP holds, and that leaves when it may run again."""
    limits = ["run.watchdog={compile: 120, step: 6, evaluation: 120, save: 120}", "run.checkpoint.save_every=10000"]
    slow = (
        {"SLOW": f"bertjax.data.pipeline.loader:Batches.batch:{victim}:30", "FOR": "10000"} if what == "loader" else {}
    )
    run = tmp_path / "runs" / "hangs"
    with job("bert", "hangs", 2, "stages.pretrain.steps=5000", *limits, **slow) as running:
        until(lambda: steps_of(run) >= 15, running)
        if what == "stop":
            running.send(victim, signal.SIGSTOP)
        else:
            until((tmp_path / "mark-hangs").exists, running)
        began = time.monotonic()
        survivor = running.running[1 - victim]
        assert survivor.wait(40) == 75
        assert time.monotonic() - began < 6 + 5 + 5
        running.send(victim, signal.SIGCONT)
        ended = running.ended(60)
    assert {code for code, _, _ in ended.values()} == {75}, ended
    stacks = (run / f"hang-{1 - victim}.txt").read_text()
    assert "no progress for" in stacks and "in phase 'step'" in stacks and "stage.py" in stacks
    if what == "loader":
        assert "in slow" in (run / f"hang-{victim}.txt").read_text()


def test_a_long_compilation_and_a_long_save_are_no_alarm(job, tmp_path):
    limits = "run.watchdog={compile: 60, step: 5, evaluation: 60, save: 60}"
    for name, place in (
        ("compile", "training.triggers.episode_steps:jit_train_step"),
        ("save", "training.checkpoint:seal"),
    ):
        slow = {"SLOW": f"bertjax.{place}:1:1", "FOR": "12"}
        with job("bert", f"slow-{name}", 2, "stages.qa.steps=2", limits, **slow) as running:
            ended = running.ended()
        assert {code for code, _, _ in ended.values()} == {0}, ended
        assert not list((tmp_path / "runs" / f"slow-{name}").glob("hang-*"))


# ---- stops ----------------------------------------------------------------------------------------------------------

LOSE_NOTHING = {  # what one process is doing -> where it is held, and what the message says
    "prepare": ("bertjax.training.stage.plan:open_batches:0:1", "stopped while starting"),
    "begin": (
        "bertjax.training.checkpoint.warmstart:init_params:0:1",
        "stopped while restoring or making the parameters",
    ),
    "compile": ("bertjax.training.triggers.episode_steps:jit_train_step:1:1", "stopped while compiling the first step"),
}


@pytest.mark.parametrize("phase", LOSE_NOTHING)
def test_sigterm_to_one_process_before_the_first_step_ends_all(job, tmp_path, phase):
    place, words = LOSE_NOTHING[phase]
    name = f"stop-{phase}"
    with job("bert", name, 2, SLOW=place, FOR="100") as running:
        until((tmp_path / f"mark-{name}").exists, running)
        time.sleep(1.0)
        running.send(1, signal.SIGTERM)
        began = time.monotonic()
        ended = running.ended(60)
        assert time.monotonic() - began < 10
    assert [code for code, _, _ in ended.values()] == [75, 75], ended
    assert any(plain(err)[-1].startswith(words) for _, _, err in ended.values()), ended
    assert all("run the same command again" in plain(err)[-1] for _, _, err in ended.values())
    with job("bert", name, 2) as running:
        running.finish()


def test_sigterm_in_the_decoding_of_a_t5_saves_and_decodes_again(job, tmp_path):
    """All processes decode; the stop comes between two batches of it, at the same one on both."""
    batches = "stages.qa.evaluate.0.batch_size=4"  # six of them: to agree on a place takes one or two
    shorter = ["stages.pretrain.steps=2", "stages.qa.steps=3", batches]
    with job("t5", "whole", 2, *shorter) as running:
        running.finish()
    with job(
        "t5", "decoding", 2, *shorter, SLOW="bertjax.evaluation.inference.generate:Generator._generate:1:1", FOR="6"
    ) as held:
        until((tmp_path / "mark-decoding").exists, held)
        held.send(1, signal.SIGTERM)
        ended = held.ended(120)
    assert [code for code, _, _ in ended.values()] == [75, 75], ended
    said = "stopped at step 3 of stage 'qa', saved; run the same command again"
    assert [plain(err)[-1] for _, _, err in ended.values()] == [said, said]
    run, whole = tmp_path / "runs" / "decoding", tmp_path / "runs" / "whole"
    assert committed_steps(run / "checkpoints" / "01-qa")[-1] == 3
    assert not (run / "evaluations" / "01-qa").exists() and len(scores(run)) == 1
    with job("t5", "decoding", 2, *shorter) as running:
        ended = running.ended()
    assert [code for code, _, _ in ended.values()] == [0, 0] and ended[1][1] == "", "only the lead speaks"
    assert scores(run) == scores(whole) and len(scores(run)) == 2
    kept = "evaluations/01-qa/text_to_text.predictions.json"
    assert (run / kept).read_bytes() == (whole / kept).read_bytes()


def test_two_sigterms_to_each_save_one_step_on_all(job, tmp_path):
    run = tmp_path / "runs" / "twice"
    with job("bert", "twice", 2, "stages.pretrain.steps=5000", "run.checkpoint.save_every=1000") as running:
        until(lambda: steps_of(run) >= 30, running)
        for _ in range(2):
            for index in (0, 1):
                running.send(index, signal.SIGTERM)
            time.sleep(0.5)
        ended = running.ended(60)
    assert [code for code, _, _ in ended.values()] == [75, 75], ended
    (step,) = committed_steps(run / "checkpoints" / "00-pretrain")
    assert max(learnt(run))[1] == step >= 30
    assert {plain(err)[-1] for _, _, err in ended.values()} == {
        f"stopped at step {step} of stage 'pretrain', saved; run the same command again"
    }


# ---- four processes -------------------------------------------------------------------------------------------------


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_four_processes_of_two_devices_train_as_one(job, tmp_path, family):
    """Equal losses and scores; one is killed and all leave; the rest is done by another number of processes."""
    steps = ["stages.pretrain.steps=30", "run.checkpoint.save_every=10", "stages.qa.steps=4"]
    with job(family, "one", 1, *steps, devices=8) as running:
        running.finish()
    run = tmp_path / "runs" / "four"
    with job(family, "four", 4, *steps) as running:
        until(lambda: steps_of(run) >= 15, running)
        running.send(2, signal.SIGKILL)
        began = time.monotonic()
        codes = running.codes(60)
        assert time.monotonic() - began < 10
    assert [code for index, code in codes.items() if index != 2] == [75, 75, 75], codes
    with job(family, "four", 2, *steps, devices=4) as running:
        ended = running.ended(500)
    assert [code for code, _, _ in ended.values()] == [0, 0], ended
    one, four = learnt(tmp_path / "runs" / "one"), learnt(run)
    assert one.keys() == four.keys() and len(one) == 34
    for place, line in one.items():
        assert four[place]["loss"] == pytest.approx(line["loss"], rel=1e-5), place
    for (name, expected), (other, found) in zip(scores(tmp_path / "runs" / "one"), scores(run), strict=True):
        assert name == other and found == pytest.approx(expected, rel=1e-3)
