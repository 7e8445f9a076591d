"""The train step on one device: what it computes does not depend on how it is cut, and a bad step changes nothing."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.schema.model import BertConfig
from bertjax.config.schema.training import AdamW, SpanQaObjective
from bertjax.models import param_paths
from bertjax.training import freezing
from bertjax.training.program import TrainProgram
from bertjax.training.state import TrainState, from_tree, to_tree
from bertjax.training.step import jit_train_step

DEEP = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=32, initializer_range=0.1,
)  # fmt: skip
ADAMW = AdamW(kind="adamw", learning_rate=1e-3)  # slots with a step count


def begin(program: TrainProgram, groups: tuple[str, ...] | None = None) -> TrainState:
    groups = groups or freezing.param_groups(program.abstract_params())
    return program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))


def run(program: TrainProgram, batches: list[dict]) -> tuple[TrainState, list[dict]]:
    state, metrics = begin(program), []
    step = jit_train_step(program, state)
    for batch in batches:
        state, found = step(state, jax.device_put(batch, program.batch_sharding()))
        metrics.append(jax.device_get(found))
    return jax.device_get(replace(state, key=jax.random.key_data(state.key))), metrics


def losses(metrics: list[dict]) -> list[float]:
    return [float(m["loss"]) for m in metrics]


def assert_close(found: TrainState, expected: TrainState, tolerance: float) -> None:
    for path, value in expected.params.items():
        np.testing.assert_allclose(found.params[path], value, rtol=0, atol=tolerance, err_msg=path)


def assert_same_bits(found: object, expected: object) -> None:
    flat = param_paths.flatten(expected)
    for path, value in param_paths.flatten(found).items():
        assert np.asarray(value).tobytes() == np.asarray(flat[path]).tobytes(), path


@pytest.fixture(scope="module")
def batches(make_rows) -> list[dict]:
    return [make_rows("span", 8, groups=2, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def plain(make_program, batches) -> tuple[TrainState, list[dict]]:
    return run(make_program(SpanQaObjective(), dropout=0.0), batches)


def test_micro_batches_equal_one_batch(make_program, batches, plain):
    state, metrics = run(make_program(SpanQaObjective(), dropout=0.0, grad_accum=4), batches)
    for name in plain[1][0]:
        np.testing.assert_allclose([m[name] for m in metrics], [m[name] for m in plain[1]], rtol=2e-5, err_msg=name)
    assert_close(state, plain[0], 2e-5)


def test_a_scanned_stack_is_the_same_model(make_program, batches, plain):
    state, metrics = run(make_program(SpanQaObjective(), dropout=0.0, segments=(2,)), batches)
    np.testing.assert_allclose(losses(metrics), losses(plain[1]), rtol=1e-5)
    assert_close(state, plain[0], 2e-5)


@pytest.mark.slow
def test_segments_cut_anyhow_are_the_same_model(make_program, batches):
    """With dropout: a layer's key follows from its number, not from its segment."""
    found = [run(make_program(SpanQaObjective(), model=DEEP, segments=s), batches) for s in ((), (1, 2), (3,))]
    for state, metrics in found[1:]:
        np.testing.assert_allclose(losses(metrics), losses(found[0][1]), rtol=1e-5)
        assert_close(state, found[0][0], 2e-5)


def test_bfloat16_stays_close_to_float32(make_program, batches, plain):
    state, metrics = run(make_program(SpanQaObjective(), dropout=0.0, dtype=jnp.bfloat16), batches)
    np.testing.assert_allclose(losses(metrics), losses(plain[1]), rtol=2e-2)
    assert losses(metrics) != losses(plain[1])
    assert {x.dtype for x in jax.tree.leaves((state.params, state.opt_state))} == {np.dtype(np.float32)}


class Counted:
    """A program whose objective counts how often it is traced."""

    def __init__(self, program: TrainProgram):
        self.traces = 0
        self.program = replace(program, objective=replace(program.objective, losses=self.losses))
        self.inner: Callable = program.objective.losses

    def losses(self, *args: object) -> dict:
        self.traces += 1
        return self.inner(*args)


@pytest.fixture(scope="module")
def dropping(make_program) -> Counted:
    return Counted(make_program(optimizer=ADAMW))


@pytest.fixture(scope="module")
def fresh(dropping) -> Callable[[], TrainState]:
    """Copies of one state at step 0: each step takes its own away."""
    state = begin(dropping.program)
    return lambda: jax.tree.map(jnp.copy, state)


@pytest.fixture(scope="module")
def step(dropping, fresh) -> Callable:
    return jit_train_step(dropping.program, fresh())


def test_steps_trace_once_and_donate_the_state(dropping, fresh, step, make_rows):
    state, before = fresh(), dropping.traces
    for seed in range(4):
        old = state
        batch = jax.device_put(make_rows("pairs", seed=seed), dropping.program.batch_sharding())
        state, metrics = step(state, batch)
        assert all(x.is_deleted() for x in jax.tree.leaves((old.params, old.opt_state))), (
            "the old state still takes memory"
        )
        assert not any(x.is_deleted() for x in jax.tree.leaves((state, metrics, batch)))
    assert dropping.traces - before <= 1
    assert int(state.step) == 4 and {int(s[0].count) for s in state.opt_state.values()} == {4}


def test_metrics_have_the_names_of_the_record(fresh, step, make_rows):
    _, metrics = step(fresh(), make_rows("pairs"))
    terms = {f"{term}_{kind}" for term in ("mlm", "nsp") for kind in ("loss", "accuracy", "weight")}
    assert set(metrics) == {"loss", "grad_norm", "learning_rate", "bad_steps"} | terms
    parts = float(metrics["mlm_loss"] + metrics["nsp_loss"])
    np.testing.assert_allclose(float(metrics["loss"]), parts, rtol=1e-5)


def test_dropout_differs_between_steps_and_repeats_with_the_key(fresh, step, make_rows):
    """With a learning rate of zero at step 0 the second step sees the same parameters and another mask."""
    batch, found = make_rows("pairs"), []
    for _ in range(2):
        state, first = step(fresh(), batch)
        _, second = step(state, batch)
        found.append((float(first["loss"]), float(second["loss"])))
    assert float(first["learning_rate"]) == 0 and found[0][0] != found[0][1] and found[0] == found[1]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_non_finite_step_changes_nothing_but_its_count(fresh, step, make_rows, poison):
    good = make_rows("pairs")
    bad = good | {"masked_weights": good["masked_weights"].copy()}
    bad["masked_weights"][3, 1] = poison
    state, _ = step(fresh(), good)
    for expected in (1, 2):
        before = jax.device_get((state.params, state.opt_state))
        number = int(state.step)
        state, metrics = step(state, bad)
        assert not np.isfinite(metrics["loss"]) and int(metrics["bad_steps"]) == int(state.nonfinite_steps) == expected
        assert_same_bits(jax.device_get((state.params, state.opt_state)), before)
        assert int(state.step) == number + 1
    before = jax.device_get(state.params)
    state, metrics = step(state, good)
    assert int(state.nonfinite_steps) == int(metrics["bad_steps"]) == 0 and np.isfinite(metrics["loss"])
    assert all(np.any(np.asarray(state.params[path]) != w) for path, w in before.items() if path.endswith("kernel"))


def test_a_non_finite_gradient_with_a_finite_loss_is_skipped_too(fresh, step, make_rows):
    """A parameter near float32's limit: the loss is still a number, the square of its gradient is not."""
    state = fresh()
    huge = {path: (w * 1e30 if path == "heads/nsp/kernel" else w) for path, w in state.params.items()}
    batch = make_rows("pairs")
    state, metrics = step(replace(state, params=huge), batch)
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    assert int(state.nonfinite_steps) == 1 and all(np.all(np.isfinite(w)) for w in state.params.values())


def test_the_checkpoint_layout_is_lossless(dropping):
    state = begin(dropping.program, ("layers/1", "heads"))
    tree = to_tree(state)
    assert set(tree["params"]) == {"embeddings", "layers", "heads"} and set(tree["opt"]) == {"layers.1", "heads"}
    back = from_tree(tree, dropping.program.abstract_state(("layers/1", "heads"), state.key))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    plain = [replace(s, key=jax.random.key_data(s.key)) for s in (back, state)]
    assert_same_bits(*plain)
