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


def test_a_second_signal_on_the_way_out_of_an_inner_block_changes_nothing():
    outer = interrupts.exit_on_signal(lambda: "stopped outside", "interrupted")
    with pytest.raises(StoppedSafely, match="stopped inside"), outer:
        try:
            with interrupts.exit_on_signal(lambda: "stopped inside", "interrupted"):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    with interrupts.interruptible():
        for _ in range(2):  # the control: the next block hears it
            with pytest.raises(StoppedSafely, match="stopped"), stoppable():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)


PROCESS = """
import os, signal, sys, time
from bertjax import interrupts

number, sys.argv[1:] = int(sys.argv[2]), sys.argv[1:2]
interrupts.install_process_handlers()
os.kill(os.getpid(), signal.SIGUSR1)
if sys.argv[1] == "stopped":
    try:
        with interrupts.exit_on_signal(lambda: "stopped", "interrupted"):
            os.kill(os.getpid(), number)
            time.sleep(5)
    except interrupts.StoppedSafely:
        pass
os.kill(os.getpid(), number)
sys.exit(7 if interrupts.profile_requested.is_set() else 1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("word", "code"), [("train", 75), ("prepare", 75), ("stopped", 7), ("evaluate", None)])
def test_signals_outside_of_all_blocks(word, code, number):
    """Before the first and after the last block of a process. SIGUSR1 never ends it."""
    code = -number if code is None else code
    argv = [sys.executable, "-c", PROCESS, word, str(int(number))]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert done.stderr == ("stopped; run the same command again\n" if code == 75 else "")


def test_a_second_sigterm_ends_a_block_that_does_not_poll():
    code = """
import os, signal, sys, threading, time
from bertjax import interrupts

def send():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(interrupts.DEBOUNCE_SECONDS + 0.1)

with interrupts.exit_on_signal(lambda: "stopped", "interrupted", polled=True, grace=float(sys.argv[1])):
    threading.Thread(target=send, daemon=True).start()
    time.sleep(30)
"""
    for grace in ("60", "0.1"):  # by the second one, and by the first one alone
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, grace], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stderr) == (75, "stopped\n") and time.monotonic() - began < 20


def test_nohup_is_respected():
    """SIGHUP stays ignored in a process that was started so; the control asks to stop."""
    code = """
import os, signal, sys, time
from bertjax import interrupts

if sys.argv[1] == "ignored":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
interrupts.install_process_handlers()
try:
    with interrupts.exit_on_signal(lambda: "stopped", "interrupted"):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.3)
except interrupts.StoppedSafely:
    sys.exit(75)
"""
    for word, expected in (("ignored", 0), ("heard", 75)):
        done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == expected, done.stderr
