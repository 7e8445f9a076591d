"""SIGTERM and Ctrl-C in every phase of a run: exit code 75, nothing lost, and what follows to the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertjax import interrupts
from bertjax.cli.main import main
from bertjax.errors import UserError
from bertjax.evaluation.evaluators import loss, span_qa
from bertjax.training import loop, run_context, validate
from bertjax.training.checkpoint import manager, warmstart
from bertjax.training.checkpoint.layout import committed_steps
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.monitor import preemption
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.stage.runner import Meter, StageRunner

SLOW = pytest.mark.slow
TIMES = {"tokens_per_second", "step_seconds", "data_wait", "mfu", "memory_bytes", "elapsed"}


def numbers(run: Path) -> list[dict[str, Any]]:
    """Everything logged but times: steps and evaluations."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = sorted((x for x in found if x["kind"] != "event"), key=lambda x: (x["stage"], x["step"], x["kind"]))
    return [{k: v for k, v in line.items() if k not in TIMES} for line in kept]


def digests(run: Path) -> list[Any]:
    last = [folder / str(committed_steps(folder)[-1]) for folder in sorted((run / "checkpoints").iterdir())]
    return [json.loads((step / "digest" / "metadata").read_text())["leaves"] for step in last]


@pytest.fixture
def stop_during(one_device, train, tiny_project, monkeypatch, capsys) -> Callable[..., tuple[Path, int, str]]:
    """stop(name, owner, function, at): SIGTERM as the at-th call of a function begins -> the run, code, stderr."""

    def stop(
        name: str, owner: Any, function: str, at: int = 1, signals: int = 1, number: int = signal.SIGTERM
    ) -> tuple[Path, int, str]:
        monkeypatch.chdir(tiny_project)
        calls, real = [0], getattr(owner, function)

        def told(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                for _ in range(signals):
                    os.kill(os.getpid(), number)
            return real(*args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, function, told)
            code = main(["train", "tiny.yaml", f"run.root={train.root}", f"run.name={name}"])
        assert calls[0] >= at, "the place was never reached"
        return train.root / name, code, capsys.readouterr().err

    return stop


def finished_like(whole: Path, run: Path, train: Callable[..., Path]) -> None:
    train(run.name)
    assert numbers(run) == numbers(whole)
    assert digests(run) == digests(whole)


# ---- where nothing can be lost --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "function"),
    [
        (run_context, "open_run_context"),
        pytest.param(loop, "open_stage", marks=SLOW),
        pytest.param(validate, "check_init_sources", marks=SLOW),
    ],
)
def test_while_it_starts_it_leaves_at_once(whole, stop_during, train, owner, function):
    handler = signal.getsignal(signal.SIGTERM)
    run, code, err = stop_during(f"starting-{function}", owner, function)
    assert (code, err) == (75, "stopped while starting; nothing was lost; run the same command again\n")
    assert not (run / "checkpoints").exists() and signal.getsignal(signal.SIGTERM) == handler
    finished_like(whole, run, train)


@pytest.mark.parametrize(
    ("owner", "function", "doing"),
    [
        (warmstart, "init_params", "restoring or making the parameters"),
        pytest.param(loop.TrainProgram, "init_state", "restoring or making the", marks=SLOW),
        (Meter, "record_step", "compiling the first step"),
    ],
)
def test_before_the_first_step_it_leaves_at_once(whole, stop_during, train, owner, function, doing):
    run, code, err = stop_during(f"before-{function}", owner, function)
    assert code == 75 and err.startswith(f"stopped while {doing}") and err.count("\n") == 1
    assert committed_steps(run / "checkpoints" / "00-pretrain") == []
    finished_like(whole, run, train)


def test_the_first_step_of_a_later_stage_may_be_left_too(whole, stop_during, train):
    run, code, err = stop_during("second-stage", StageRunner, "compile_phase", 3)
    assert code == 75 and err.startswith("stopped while compiling the first step")
    assert committed_steps(run / "checkpoints" / "00-pretrain")[-1] == 5
    assert committed_steps(run / "checkpoints" / "01-qa") == []
    finished_like(whole, run, train)


@SLOW
def test_a_run_at_its_end_is_not_stopped_any_more(whole, stop_during, train):
    run, code, err = stop_during("at-its-end", StageRunner, "finish", 2)
    assert (code, err) == (0, "") and numbers(run) == numbers(whole)


# ---- where it saves first -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signals", [1, pytest.param(2, marks=SLOW)])
def test_in_a_step_it_saves_and_leaves(whole, stop_during, train, signals):
    run, code, err = stop_during(f"step-{signals}", Tracker, "train", 2, signals)
    (step,) = committed_steps(run / "checkpoints" / "00-pretrain")[-1:]
    assert code == 75 and step in (2, 3)
    assert err == f"stopped at step {step} of stage 'pretrain', saved; run the same command again\n"
    finished_like(whole, run, train)


@pytest.mark.parametrize("signals", [1, pytest.param(2, marks=SLOW)])
def test_ctrl_c_saves_and_leaves_as_sigterm_does(whole, stop_during, train, signals):
    """Two that come together are one press: a terminal and a wrapper both pass it on."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run, code, err = stop_during(f"ctrl-c-{signals}", Tracker, "train", 2, signals, signal.SIGINT)
    (step,) = committed_steps(run / "checkpoints" / "00-pretrain")[-1:]
    assert code == 75 and step in (2, 3)
    assert err.splitlines() == [
        preemption.CTRL_C_MESSAGE, f"stopped at step {step} of stage 'pretrain', saved; run the same command again"
    ]  # fmt: skip
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    finished_like(whole, run, train)


@pytest.mark.parametrize("signals", [pytest.param(1, marks=SLOW), 3])
def test_while_a_checkpoint_is_written_it_ends_whole(whole, stop_during, train, signals):
    run, code, _ = stop_during(f"save-{signals}", manager, "seal", 1, signals)
    assert code == 75 and committed_steps(run / "checkpoints" / "00-pretrain") == [2]
    finished_like(whole, run, train)


def test_while_a_later_episode_compiles_it_saves_that_step(whole, stop_during, train):
    """A stage with steps behind it is not simply left: the next boundary comes when the compiler is done."""
    run, code, err = stop_during("episode", StageRunner, "compile_phase", 5)
    assert code == 75 and "stopped at step 4 of stage 'qa', saved" in err
    finished_like(whole, run, train)


@pytest.mark.parametrize(
    ("owner", "function", "stage", "step"),
    [(loss, "local_batch_rows", "pretrain", 5), (span_qa, "compute_span_logits", "qa", 6)],
    ids=["loss", "answers"],
)
def test_in_the_midst_of_an_evaluation_it_saves_and_does_it_again(
    whole, stop_during, train, owner, function, stage, step
):
    """The scores broken off are those of a stage's last step, which then may not count as finished."""
    run, code, err = stop_during(f"evaluation-{stage}", owner, function)
    assert code == 75 and err == f"stopped at step {step} of stage '{stage}', saved; run the same command again\n"
    (folder,) = (run / "checkpoints").glob(f"*-{stage}")
    assert committed_steps(folder)[-1] == step and not (run / "checkpoints" / "02").exists()
    kept = CheckpointReader(folder)
    assert kept.meta()["unscored"] is True
    with pytest.raises(UserError, match="no checkpoint has a score"):
        kept.best_step("mlm/mlm_loss" if stage == "pretrain" else "squad/f1")
    finished_like(whole, run, train)
    kept = CheckpointReader(folder)
    assert kept.best_step("mlm/mlm_loss" if stage == "pretrain" else "squad/f1") == step


def test_without_a_run_nothing_asks_to_stop():
    preemption.check()
    assert preemption.current.poll() is False


# ---- a main thread that hears nothing -------------------------------------------------------------------------------

DEAF = """
import threading
import jax
from bertjax.training.monitor.preemption import PreemptionHandler

stop = PreemptionHandler()
stop_now = threading.Timer(0.3, lambda: __import__("os").kill(__import__("os").getpid(), 15))
endless = jax.jit(lambda x: jax.lax.while_loop(lambda v: v > 0, lambda v: v %% 7 + 1, x)).lower(1).compile()
with stop.handle_signals(), stop.may_exit("compiling the first step"):
    stop_now.start()
    print("ready", flush=True)
    %s
"""


ENDLESS = "jax.block_until_ready(endless(1))"
WAITING = "try:\n        threading.Event().wait(60)\n    finally:\n        threading.Event().wait(60)"


@pytest.mark.parametrize("body", [ENDLESS, WAITING], ids=["in C", "in a clean-up that waits"])
def test_a_main_thread_that_does_not_come_back_is_left_behind(body):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", DEAF % body], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert done.stderr == "stopped while compiling the first step; nothing was lost; run the same command again\n"
    assert time.monotonic() - began < interrupts.GRACE_SECONDS + 20


RUNNING = """
import time
from bertjax.training.monitor.preemption import PreemptionHandler

with PreemptionHandler().handle_signals():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)  # steps, none of which looks whether to stop
"""


def test_a_second_ctrl_c_leaves_at_once():
    """From the midst of steps: no traceback, and the first one said so."""
    with subprocess.Popen(
        [sys.executable, "-c", RUNNING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2], env=os.environ | {"JAX_PLATFORMS": "cpu"},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        told = process.stderr.readline()
        time.sleep(interrupts.DEBOUNCE_SECONDS + 0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert told.startswith("Ctrl-C: saving, then leaving; press it again to leave at once")
    assert rest == "left at once; steps since the last checkpoint are lost; run the same command again\n"


@pytest.mark.slow
def test_sigterm_while_modules_are_imported(tiny_project, tmp_path):
    """The first seconds, before the run listens itself."""
    command = [sys.executable, "-X", "importtime", "-m", "bertjax", "train", "tiny.yaml", f"run.root={tmp_path}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=tiny_project, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rstrip().endswith(" jax._src.config"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 75
    assert rest.splitlines()[-1] == "stopped before the run started; run the same command again"
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
def test_more_sigterms_on_the_way_out_of_a_compilation(tiny_project, tmp_path):
    command = [sys.executable, "-u", "-m", "bertjax", "train", "tiny.yaml", f"run.root={tmp_path}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, cwd=tiny_project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "compiling the training step" in line:
                break
        for number in range(1000):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5 if number == 0 else 0.01)
            if process.poll() is not None:
                break
        rest = process.stdout.read()
    assert process.returncode == 75, rest
    assert (
        rest.splitlines()[-1] == "stopped while compiling the first step; nothing was lost; run the same command again"
    )
