"""The next episode's functions are compiled while this one trains, and compute the same."""

import threading
from collections.abc import Callable

import jax
import numpy as np
import pytest

from bertjax.config.schema.training import AdamW, SpanQaObjective, Trainable
from bertjax.training import freezing
from bertjax.training.program import MeshJit
from bertjax.training.triggers.episode_steps import EpisodeSteps

STEPS = 6


@pytest.fixture(scope="module")
def program(make_program):
    return make_program(SpanQaObjective(), dropout=0.0, optimizer=AdamW(learning_rate=1e-2), steps=STEPS)


@pytest.fixture(scope="module")
def batch(make_rows, program):
    rows = make_rows("span", 8)
    return {name: jax.device_put(x, program.batch_sharding()) for name, x in rows.items()}


threads: list[str] = []


def count_compilations(event: str, seconds: float, **about: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        threads.append(threading.current_thread().name)


jax.monitoring.register_event_duration_secs_listener(count_compilations)  # for good: it only counts


@pytest.fixture
def compiled() -> Callable[[], list[str]]:
    """The names of the threads that compiled something, or read it from the cache, in order."""
    threads.clear()
    return lambda: threads


def run_all(program, batch, compiled, *, ahead, wait=True):
    """Train all episodes -> (the last state, {episode: compilations of this thread when it begins})."""
    names = freezing.param_groups(program.abstract_params())
    plan = freezing.episodes(Trainable(kind="gradual"), names, STEPS)
    assert len(plan) == 2
    state = program.init_state(program.initialize(jax.random.key(0)), plan[0].groups, jax.random.key(1))
    steps, waits = EpisodeSteps(program, plan, None, ahead=ahead), {}
    for number, episode in enumerate(plan):
        before = compiled().count("MainThread")
        state, step = steps.enter(number, state)
        for _ in range(episode.start, episode.stop):
            state, metrics = step(state, batch)
            waits.setdefault(number, compiled().count("MainThread") - before)
            float(metrics["loss"])
        for thread in threading.enumerate():
            if wait and thread.name == f"compiles episode {number + 1}":
                thread.join()
    return jax.device_get({**state.params, **state.frozen}), waits


def test_a_thaw_waits_for_no_compilation(program, batch, compiled):
    params, waits = run_all(program, batch, compiled, ahead=True)
    assert compiled().count("compiles episode 1") == 2, "the change of the state and the step"
    assert waits[0] >= 1 and waits[1] == 0
    expected, waits = run_all(program, batch, compiled, ahead=False)
    assert waits[1] == 2, "the control"
    for path, x in expected.items():
        np.testing.assert_array_equal(params[path], x, err_msg=path)


def test_an_episode_waits_for_its_compilation(program, batch, compiled):
    assert run_all(program, batch, compiled, ahead=True, wait=False)[1][1] == 0


def test_what_fails_to_compile_ahead_is_compiled_where_it_is_needed(program, batch, compiled, monkeypatch):
    def lower(self, *args):
        raise MemoryError

    monkeypatch.setattr(MeshJit, "lower", lower)
    params, waits = run_all(program, batch, compiled, ahead=True)
    assert waits[1] == 2 and compiled().count("compiles episode 1") == 0
    assert all(np.isfinite(x).all() for x in params.values())
