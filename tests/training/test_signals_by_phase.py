"""The table of signals and phases in docs/operations.md, cell by cell: what each does to a run, in real processes."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tally
from fork_server import SIGNAL_PAUSE, ForkedProcess

from bertjax.interrupts import DEBOUNCE_SECONDS
from bertjax.training.checkpoint.layout import committed_steps

pytestmark = pytest.mark.timeout(300)
STEPS = 6
STOPPED = "run the same command again"
PHASES = {  # a function that runs in the phase, the number of its call
    "preparation": ("bertjax.training.loop:open_stage", 1),
    "restore": ("bertjax.training.checkpoint.orbax_io:read_arrays", 1),
    "compile": ("bertjax.training.triggers.episode_steps:jit_train_step", 1),
    "step": ("bertjax.training.monitor.tracking:Tracker.step", 2),
    "evaluation": ("bertjax.evaluation.evaluators.loss:local_batch_rows", 1),
    "save": ("bertjax.training.checkpoint.manager:seal", 1),
}
AT_ONCE = {"preparation": "starting", "restore": "restoring or making", "compile": "compiling the first step"}
TERM, INT, HUP, USR1 = (str(int(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1))
EVENTS = {
    "SIGTERM": f"signals {TERM}", "second SIGTERM": f"signals {TERM} {TERM}", "SIGINT": f"signals {INT}",
    "second SIGINT": f"signals {INT} {INT}", "SIGHUP": f"signals {HUP}", "second SIGHUP": f"signals {HUP} {HUP}",
    "SIGHUP under nohup": f"ignored {HUP}", "SIGUSR1": f"signals {USR1}", "closed output": "close 1 2",
}  # fmt: skip
FAST = {("SIGHUP", "step"), ("closed output", "step")}


Train = Callable[..., ForkedProcess]


@pytest.fixture
def train(fork_server, pretrain_project, tmp_path) -> Train:
    """train(steps, *faults): a run in tmp_path/runs/tiny, which has ended."""

    def run(steps: int, *faults: tuple[str, int, str], root: Path = tmp_path) -> ForkedProcess:
        cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "forks-1"
        words = ["train", "tiny.yaml", f"run.root={root}/runs", f"stages.pretrain.steps={steps}",
                 "run.checkpoint.save_every=3", f"run.compilation_cache_dir={cache}"]  # fmt: skip
        process = fork_server.start(words, pretrain_project, root / f"{steps}-{len(fork_server.running)}", {}, faults)
        process.wait(200)
        return process

    return run


@pytest.fixture(scope="module")
def whole(fork_server, pretrain_project, tmp_path_factory) -> dict[int, Any]:
    root = tmp_path_factory.mktemp("whole")
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "forks-1"
    words = ["train", "tiny.yaml", f"run.root={root}/runs", f"stages.pretrain.steps={STEPS}",
             "run.checkpoint.save_every=3", f"run.compilation_cache_dir={cache}"]  # fmt: skip
    process = fork_server.start(words, pretrain_project, root / "whole", {})
    assert process.wait(200) == 0, process.err.read_text()
    return losses(root / "runs" / "tiny")


def losses(run: Path) -> dict[int, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def said(process: ForkedProcess) -> list[str]:
    lines = process.err.read_text().splitlines()
    return [line for line in lines if line and not re.match(r"[IWEF]\d{4} |\s|note: |pretrain: ", line)]


@pytest.mark.parametrize(
    ("event", "phase"),
    [pytest.param(e, p, marks=() if (e, p) in FAST else pytest.mark.slow) for e in EVENTS for p in PHASES],
)
def test_a_cell_of_the_table(train, whole, tmp_path, event, phase):
    run = tmp_path / "runs" / "tiny"
    before = 0
    if phase == "restore":
        assert train(STEPS, (*PHASES["step"], EVENTS["SIGTERM"])).returncode == 75
        (before,) = committed_steps(run / "checkpoints" / "00-pretrain")
    process = train(STEPS, (*PHASES[phase], EVENTS[event]))
    last = committed_steps(run / "checkpoints" / "00-pretrain")[-1:] if (run / "checkpoints").exists() else []
    if event in ("SIGUSR1", "closed output", "SIGHUP under nohup"):
        assert process.returncode == 0 and last == [STEPS], process.err.read_text()
        log = (run / "train.log").read_text()
        has_steps = phase != "evaluation"  # after the signal: the evaluation is that of the last step
        assert (run / "profile").exists() == (event == "SIGUSR1" and has_steps)
        assert ("no profile: no step came after SIGUSR1" in log) == (event == "SIGUSR1" and not has_steps)
        assert f"pretrain {STEPS} | stage end" in log
        assert ("the reader of the output is gone" in log) == (event == "closed output")
    elif event == "second SIGINT" and phase not in AT_ONCE:
        assert process.returncode == 130 and said(process)[-1].startswith("left at once"), said(process)
    elif phase in AT_ONCE:
        assert process.returncode == 75, process.err.read_text()
        assert said(process)[-1].startswith(f"stopped while {AT_ONCE[phase]}") and said(process)[-1].endswith(STOPPED)
        assert last == ([before] if before else [])
    else:
        assert process.returncode == 75, process.err.read_text()
        assert said(process)[-1] == f"stopped at step {last[0]} of stage 'pretrain', saved; {STOPPED}"
        assert last[0] >= {"step": 2, "save": 3, "evaluation": STEPS}[phase]
    assert train(STEPS).returncode == 0
    assert losses(run) == whole and sorted(whole) == [*range(1, STEPS + 1)], "bit for bit"
    tally.add("a signal, or output closed", "9 kinds in 6 phases of a run", 1)


def test_the_pause_between_two_signals_makes_them_two():
    assert SIGNAL_PAUSE > DEBOUNCE_SECONDS
