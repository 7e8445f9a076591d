"""Traces of a window of steps: where the configuration says, on a signal, once, and never in the way of a run."""

import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bertjax.config.schema.run import ProfilerConfig
from bertjax.interrupts import note_signal, profile_requested
from bertjax.training.monitor.profiler import Profiler
from bertjax.training.monitor.tracking import Tracker


@pytest.fixture
def traces(monkeypatch) -> list[str]:
    """Starts and stops, instead of the real profiler."""
    found: list[str] = []
    profile_requested.clear()  # by another test
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: found.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def steps(profiler: Profiler, traces: list[str], numbers: range) -> None:
    for step in numbers:
        profiler.before_step(step)
        traces.append(str(step))
        profiler.after_step(jnp.zeros(()))


def test_a_window_is_traced_once(traces, tmp_path):
    said: list[str] = []
    profiler = Profiler(tmp_path / "profile", ProfilerConfig(start_step=3, steps=2), is_primary=True, log=said.append)
    steps(profiler, traces, range(1, 7))
    steps(profiler, traces, range(1, 5))  # the next stage
    assert traces == ["1", "2", "start", "3", "4", "stop", "5", "6", "1", "2", "3", "4"]
    assert said == [f"profile of 2 steps in {tmp_path}/profile"]


def test_a_signal_asks_for_a_trace_on_the_lead_alone(traces, tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    for lead in (True, False):
        profiler = Profiler(tmp_path, None, is_primary=lead, log=lambda line: None)
        with profiler.handle_signals():
            steps(profiler, traces, range(1, 3))
            os.kill(os.getpid(), signal.SIGUSR1)
            steps(profiler, traces, range(3, 10))
    assert traces == [
        *"12", "start", *"34567", "stop", *"89", *"123456789"
    ]  # fmt: skip
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_signal_before_there_is_a_profiler_asks_for_a_trace_of_the_first_steps(traces, tmp_path):
    """The signal's default would end the process."""
    with note_signal(signal.SIGUSR1, profile_requested):
        os.kill(os.getpid(), signal.SIGUSR1)
    profiler = Profiler(tmp_path, None, is_primary=True, log=lambda line: None)
    with profiler.handle_signals():
        steps(profiler, traces, range(1, 8))
    assert traces == ["start", *"12345", "stop", *"67"]


def test_a_trace_under_way_is_ended_with_the_run(traces, tmp_path):
    profiler = Profiler(tmp_path, ProfilerConfig(start_step=1, steps=9), is_primary=True, log=lambda line: None)
    with profiler.handle_signals():
        steps(profiler, traces, range(1, 3))
    assert traces == ["start", "1", "2", "stop"]


def test_a_profiler_that_fails_costs_a_line_and_not_the_run(traces, tmp_path, monkeypatch):
    def fail(folder: str) -> None:
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    said: list[str] = []
    profiler = Profiler(tmp_path, ProfilerConfig(start_step=1), is_primary=True, log=said.append)
    steps(profiler, traces, range(1, 4))
    assert traces == ["1", "2", "3"] and said == ["no profile: Only one profile may be run at a time."]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_leaves_a_trace_that_names_its_step(train, monkeypatch):
    """Of the real profiler, by the configuration in one stage and by the signal in the next."""
    write = Tracker.train

    def ask(self: Tracker, stage: str, step: int, metrics: Any) -> None:
        write(self, stage, step, metrics)
        if (stage, step) == ("qa", 1):
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Tracker, "train", ask)
    run: Path = train("profiled", "run.profile={start_step: 2, steps: 2}")
    found = sorted((run / "profile").rglob("*.xplane.pb"))
    assert len(found) == 2
    assert all(b"train_step" in path.read_bytes() for path in found)
