"""The next episode's functions are compiled while this one trains, and compute the same."""

import threading
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest

from bertjax.config.schema.training import AdamW, SpanQaObjective, Trainable
from bertjax.objectives.base import FROZEN_STATES
from bertjax.training import freezing
from bertjax.training.feature_cache.cache import feature_field, jit_encode
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


def run_all(program, batch, compiled, *, ahead, wait=True, cached=None, told=True):
    """Train all episodes -> (the last state, {episode: compilations of this thread when it begins}).

    cached: {episode: fields that its cache adds}; `told`: whether the steps know of them before.
    """
    names = freezing.param_groups(program.abstract_params())
    plan = freezing.episodes(Trainable(kind="gradual"), names, STEPS)
    assert len(plan) == program.model.num_hidden_layers
    cached = cached or {}
    state = program.init_state(program.initialize(jax.random.key(0)), plan[0].groups, jax.random.key(1))
    steps, waits = EpisodeSteps(program, plan, None, ahead=ahead, cached=cached if told else {}), {}
    for number, episode in enumerate(plan):
        before = compiled().count("MainThread")
        more = {}
        if number in cached:
            own = program.split_segments(episode.groups)
            encode = steps.encoder(number, state) or jit_encode(own)
            states = np.asarray(encode({**state.params, **state.frozen}, batch))
            more = {FROZEN_STATES: jax.device_put(states, program.batch_sharding())}
        state, step = steps.enter(number, state)
        for _ in range(episode.start, episode.stop):
            state, metrics = step(state, batch | more)
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


def test_episodes_with_a_cache_wait_for_no_compilation(make_program, batch, compiled):
    """Two with a cache, then one without: what encodes the rows is compiled ahead too, and the bits are the same."""
    model = make_program(SpanQaObjective()).model.model_copy(update={"num_hidden_layers": 3})
    program = make_program(SpanQaObjective(), model=model, optimizer=AdamW(learning_rate=1e-2), steps=STEPS)
    program = replace(program, fixed_prefix=True)
    own = program.split_segments(("layers/2", "heads"))
    field = feature_field(own, {name: (x.shape[1:], x.dtype) for name, x in batch.items()})
    cached = dict.fromkeys((0, 1), {FROZEN_STATES: field})
    params, waits = run_all(program, batch, compiled, ahead=True, cached=cached)
    assert waits[0] >= 2 and waits[1] == waits[2] == 0
    assert compiled().count("compiles episode 1") == 3 and compiled().count("compiles episode 2") == 2
    others, waits = run_all(program, batch, compiled, ahead=True, cached=cached, told=False)
    assert waits[1] == waits[2] == 1, "the control: of the encoder, and of a step for batches with other fields"
    for path, x in others.items():
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
