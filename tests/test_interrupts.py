"""Ctrl-C in every command: one line and an exit code, no traceback; never lost, and a second one leaves at once."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from bertjax import interrupts
from bertjax.cli.main import main
from bertjax.errors import StoppedSafely

ROOT = Path(__file__).resolve().parents[1]
DEAF = """
import hashlib, sys
from dataclasses import replace
from bertjax.cli.main import COMMANDS, main

def deaf(_):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in one call of C, which lets other threads run
    return 0

COMMANDS["doctor"] = replace(COMMANDS["doctor"], run=deaf)
sys.exit(main(["doctor"]))
"""


def press(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)  # the handler runs before this begins, or breaks it off


def stoppable() -> AbstractContextManager[None]:
    return interrupts.exit_on_signal(lambda: "stopped", "interrupted")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("A line.\n")
    (tmp_path / "c.yaml").write_text("stages: [{name: s, data: {source: {files: [a.txt]}}, steps: 1}]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "function"),
    [
        (["evaluate", "."], "bertjax.tools.evaluate.evaluate_command"),
        (["predict", "fill-mask", ".", "A [MASK]."], "bertjax.tools.predict.fill_mask"),
        (["predict", "generate", ".", "A text."], "bertjax.tools.predict.generate"),
        (["export", ".", "out"], "bertjax.tools.convert_hf.export_checkpoint"),
    ],
)
def test_ctrl_c_is_one_line(here, monkeypatch, capsys, argv, function):
    monkeypatch.setattr(function, press)
    before = signal.getsignal(signal.SIGINT)
    assert main(argv) == 130
    assert capsys.readouterr().err == "interrupted\n" and signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_preparation_keeps_what_is_finished(here, monkeypatch, capsys, number):
    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        interrupts.check()

    monkeypatch.setattr("bertjax.tools.prepare.open_stage_data", stop)
    assert main(["prepare", "c.yaml"]) == 75
    assert capsys.readouterr().err == "stopped; what is finished is kept: run the same command again\n"


@pytest.mark.parametrize(
    ("block", "raised"), [(interrupts.interruptible, KeyboardInterrupt), (stoppable, StoppedSafely)]
)
def test_a_signal_inside_a_callback_of_the_garbage_collector_is_not_lost(block, raised):
    """The interpreter ignores what is raised there, and jax has such a callback."""

    def callback(phase: str, _: object) -> None:
        if phase == "start":
            gc.callbacks.remove(callback)
            press()

    slept = False
    with pytest.raises(raised), block():
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(60)
        slept = True
    assert not slept


def test_a_second_ctrl_c_ends_a_long_call():
    with subprocess.Popen(
        [sys.executable, "-c", DEAF], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(interrupts.DEBOUNCE_SECONDS + 0.1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and rest == "interrupted\n"
    assert time.monotonic() - began < interrupts.GRACE_SECONDS


def test_two_signals_of_one_press_are_one():
    presses = interrupts.CtrlCCounter()
    assert [presses.is_repeated() for _ in range(3)] == [False, False, False]
    time.sleep(interrupts.DEBOUNCE_SECONDS + 0.01)
    assert presses.is_repeated()


def test_in_another_thread_nothing_is_changed():
    handlers = []

    def run() -> None:
        with interrupts.interruptible(), stoppable():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]
