"""A run that hangs is seen, written down and left with 75; one that is slow where it may be is not."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bertjax.config.loading.load import build
from bertjax.config.schema.run import WatchdogTimeouts as Limits
from bertjax.progress import reporter
from bertjax.training.monitor import watchdog
from bertjax.training.monitor.phases import COMPILE, PREPARE, SAVE, STEP, Phases
from bertjax.training.monitor.watchdog import Watchdog, watch_preparation


@pytest.fixture
def exits(monkeypatch) -> list[int]:
    """Codes of os._exit, which here keeps the watchdog's thread and not the process from going on."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        threading.Event().wait(60)

    monkeypatch.setattr(watchdog.os, "_exit", leave)
    return codes


def limits(**given: float | None) -> Limits:
    return Limits(**{"compile": 60.0, "step": 0.4, "evaluation": 60.0, "save": 60.0, "startup": 60.0} | given)


def test_a_step_that_hangs(exits, tmp_path, capfd):
    """The file and standard error say where every thread stood, by function."""
    release = threading.Event()

    def stuck_loader() -> None:
        release.wait(20)

    loader = threading.Thread(target=stuck_loader)
    loader.start()
    phases, last = Phases(), []
    with Watchdog(phases, limits(), tmp_path / "run", 3, lambda: last.append(phases.name)), phases.enter(STEP):
        until = time.monotonic() + 10
        while not exits and time.monotonic() < until:
            time.sleep(0.05)
    release.set()
    loader.join()
    assert exits == [75] and last == [STEP]
    err = capfd.readouterr().err
    line = next(x for x in err.splitlines() if x.startswith("process 3: no progress for"))
    assert "in phase 'step' (run.watchdog.step)" in line and line.endswith("run the same command again")
    kept = (tmp_path / "run" / "hang-3.txt").read_text()
    for text in (kept, err):
        assert "in stuck_loader" in text and "in test_a_step_that_hangs" in text


@pytest.mark.parametrize("phase", [COMPILE, SAVE])
def test_a_long_compilation_or_save_is_no_alarm(exits, tmp_path, phase):
    phases = Phases()
    with Watchdog(phases, limits(), tmp_path, 0, lambda: None), phases.enter(STEP), phases.enter(phase):
        time.sleep(1.2)
    assert exits == [] and list(tmp_path.iterdir()) == []


def test_progress_is_no_alarm(exits, tmp_path):
    phases = Phases()
    with Watchdog(phases, limits(), tmp_path, 0, lambda: None), phases.enter(STEP):
        for _ in range(12):
            time.sleep(0.1)
            phases.heartbeat()
    assert exits == []


def test_a_phase_without_a_limit_and_a_run_without_a_watchdog(exits, tmp_path):
    phases = Phases()
    before = threading.active_count()
    with Watchdog(phases, None, tmp_path, 0, lambda: None):
        assert threading.active_count() == before
    with Watchdog(phases, limits(step=None, save=0.3), tmp_path, 0, lambda: None), phases.enter(STEP):
        time.sleep(0.9)
    assert exits == []


def test_a_disk_that_cannot_be_written_does_not_keep_it(exits, tmp_path, capfd):
    (tmp_path / "run").write_text("a file where the folder should be")
    phases = Phases()
    with Watchdog(phases, limits(), tmp_path / "run", 0, lambda: None), phases.enter(STEP):
        until = time.monotonic() + 10
        while not exits and time.monotonic() < until:
            time.sleep(0.05)
    assert exits == [75] and "could not be written" in capfd.readouterr().err


def test_a_preparation_that_hangs(exits, capfd):
    """Before there is a run folder; bytes, rows and documents are its progress."""
    phases = Phases()
    with reporter.use(reporter.Reporter()), reporter.task("tokenizing", 100, "rows") as task:
        with watch_preparation(phases, limits(prepare=0.4), is_here=True), phases.enter(PREPARE):
            for _ in range(10):
                time.sleep(0.1)
                task.advance(1, "rows")
            assert not exits
            until = time.monotonic() + 10
            while not exits and time.monotonic() < until:
                time.sleep(0.05)
    assert exits == [75] and "in phase 'prepare' (run.watchdog.prepare); run the same" in capfd.readouterr().err


def test_only_the_preparation_and_only_here(exits):
    phases = Phases()
    with watch_preparation(phases, limits(prepare=0.2), is_here=False), phases.enter(PREPARE):
        time.sleep(0.6)  # another process does it
    with watch_preparation(phases, limits(prepare=0.2), is_here=True), phases.enter(STEP):
        time.sleep(0.6)
    assert exits == []


def test_the_configuration_takes_seconds_and_null():
    stage = {"name": "s", "steps": 1, "data": {"source": {"files": ["x"]}}}
    config = build({"run": {"watchdog": {"step": 5, "save": None}}, "stages": [stage]})
    assert config.run.watchdog is not None
    assert (config.run.watchdog.step, config.run.watchdog.save) == (5.0, None)
    assert build({"run": {"watchdog": None}, "stages": [stage]}).run.watchdog is None


STOPPED = """
import pathlib, sys, time
from bertjax.config.schema.run import WatchdogTimeouts as Limits
from bertjax.training.monitor.phases import STEP, Phases
from bertjax.training.monitor.watchdog import Watchdog

phases = Phases()
with Watchdog(phases, Limits(step=1.0), pathlib.Path(sys.argv[1]), 0, lambda: None), phases.enter(STEP):
    print("ready", flush=True)
    for _ in range(8):
        time.sleep(0.3)
        phases.heartbeat()
print("done", flush=True)
"""


def test_a_process_that_was_stopped_as_a_whole_has_not_hung(tmp_path):
    """SIGSTOP for three limits: the watchdog slept too, and counts its own looks."""
    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=30)[0] == "done\n"
    assert process.returncode == 0 and list(tmp_path.iterdir()) == []
