"""Runs of the tiny project that several files of tests look at; each process of the tests trains them once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest

from bertjax.config.load import load
from bertjax.evaluation.evaluate import build_evaluators
from bertjax.parallel import mesh as meshes
from bertjax.training import loop
from bertjax.training.state import TrainState
from bertjax.training.step import Program

METHODS = {name: getattr(Program, name) for name in ("initialize", "jit_train_step", "jit_eval_step")}
MAKE_MESH = meshes.make_mesh
kept: dict[str, Any] = {}


def compiled_once(name: str) -> Callable[..., Any]:
    """Runs of one process share what they trace; test_kill.py has a process for every run."""

    def cached(self: Program, *args: Any) -> Any:
        state = args[0] if args and isinstance(args[0], TrainState) else None
        about = (name, self.model, self.heads, self.optimizer, self.steps, self.grad_accum, self.objective.scales)
        key = repr((about, sorted(state.opt) if state else [jax.random.key_data(key) for key in args]))
        if key not in kept:
            kept[key] = METHODS[name](self, *args)
        return kept[key]

    return cached


@contextmanager
def small_programs() -> Iterator[None]:
    """One device, for which small programs compile faster; meshes have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "make_mesh", lambda config: MAKE_MESH(config, jax.devices()[:1]))
        for name in METHODS:
            patch.setattr(Program, name, compiled_once(name))
        yield


@pytest.fixture
def one_device() -> Iterator[None]:
    with small_programs():
        yield


@pytest.fixture(scope="session")
def train(tiny_project, tmp_path_factory) -> Callable[..., Path]:
    """Trains tiny.yaml on one device under `train.root`, with overrides; -> the run folder."""
    root = tmp_path_factory.mktemp("runs")

    def run(name: str, *overrides: str) -> Path:
        config = load(tiny_project / "tiny.yaml", [f"run.root={root}", f"run.name={name}", *overrides])
        with small_programs():
            loop.train(config, tiny_project, build_evaluators)
        return config.run_dir

    run.root = root
    return run


@pytest.fixture(scope="session")
def whole(train) -> Path:
    """The run that nothing interrupted. Not to be changed."""
    return train("whole")


@pytest.fixture
def stop_at(monkeypatch) -> Callable[[str, int], None]:
    """Asks the loop to stop at a step of a stage, as SIGTERM would."""
    return lambda stage, step: monkeypatch.setattr(
        loop.StageRun, "should_stop", lambda self, now: (self.name, now) == (stage, step)
    )
