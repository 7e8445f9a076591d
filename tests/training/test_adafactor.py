"""Adafactor against the equations of t5x/adafactor.py, its own tests' numbers and transformers' torch version."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_trees import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.run import CheckpointPolicy, Stage
from bertjax.config.schema.training import Adafactor, AdamW
from bertjax.models import param_paths
from bertjax.training import freezing, optimizers
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.program import TrainProgram
from bertjax.training.state import TrainState, factored_axes, from_tree, to_tree
from bertjax.training.step import jit_train_step

# The widths of the tiny model are 32 and 64: with 16 its kernels are factored, and its biases and small tables are not.
SMALL = Adafactor(min_dim_size_to_factor=16, learning_rate=0.01, schedule="constant")
SHAPES = {
    "wide": (128, 200), "tall": (200, 128), "square": (128, 128), "narrow": (32, 12), "edge": (127, 300),
    "bias": (140,), "norm": (1,),
}  # fmt: skip


# ---- the rate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [  # t5x 'constant * rsqrt_decay' with base 1.0 and 10,000 warm-up steps; arXiv 1910.10683 section 3.1.2
        (0, 0.01), (1, 0.01), (9_999, 0.01), (10_000, 0.01), (40_000, 0.005), (2**19, 0.0013810679), (10**6, 0.001),
    ],
)  # fmt: skip
def test_inverse_square_root_is_flat_and_then_falls(step, expected):
    for steps in (1000, 2**19):  # the length of the stage does not matter
        np.testing.assert_allclose(float(optimizers.schedule(Adafactor(), steps)(step)), expected, rtol=1e-6)


def test_schedules_of_adafactor():
    for rule in (Adafactor(learning_rate=1e-3, schedule="constant"), Adafactor(learning_rate=1e-3, schedule="linear")):
        assert float(optimizers.schedule(rule, 1000)(0)) == pytest.approx(1e-3)  # no ramp from zero
    assert float(optimizers.schedule(rule, 1000)(750)) == pytest.approx(2.5e-4)
    assert float(optimizers.schedule(Adafactor(warmup_steps=0), 10)(0)) == 1.0
    assert float(optimizers.schedule(Adafactor(warmup_ratio=0.25), 400)(7)) == pytest.approx(0.1)
    assert float(
        optimizers.schedule(AdamW(learning_rate=2.0, schedule="inverse_sqrt", warmup_steps=100), 1)(3)
    ) == pytest.approx(0.2)
    assert Stage(name="a", data="b", steps=10, optimizer={"kind": "adafactor"}).optimizer.warmup_steps == 10_000


# ---- the update -----------------------------------------------------------------------------------------------------


def reference(config: Adafactor, params: dict, grads: list[dict], rates: list[float]) -> dict:
    """Adafactor.apply_param_gradient of t5x/adafactor.py with its rule for matrices and vectors, in float64."""
    params, slots = {path: np.float64(w) for path, w in params.items()}, {}
    for t, (step_grads, lr) in enumerate(zip(grads, rates, strict=True)):
        decay = 1.0 - (t + 1.0) ** -config.decay_rate
        for path, w in params.items():
            g = np.float64(step_grads[path])
            squared, order = g * g + 1e-30, np.argsort(w.shape)
            if w.ndim == 2 and w.shape[order[-2]] >= config.min_dim_size_to_factor:
                d1, d0 = order[-2:]
                row, col = slots.get(path, (0.0, 0.0))
                row = decay * row + (1 - decay) * squared.mean(d0, keepdims=True)
                col = decay * col + (1 - decay) * squared.mean(d1, keepdims=True)
                slots[path] = row, col
                y = g * (row / row.mean(d1, keepdims=True)) ** -0.5 * col**-0.5
            else:
                slots[path] = decay * slots.get(path, 0.0) + (1 - decay) * squared
                y = g * slots[path] ** -0.5
            y = y / max(1.0, np.sqrt((y * y).mean()) / config.clipping_threshold)
            scale = max(np.sqrt((w * w).mean()), 1e-3) if config.multiply_by_parameter_scale else 1.0
            params[path] = w - lr * scale * y
    return params


def ours(config: Adafactor, params: dict, grads: list[dict], rates: list[float]) -> dict:
    rule = optimizers.make_transform(config)
    slots = rule.init(params)
    update = jax.jit(rule.update)
    for step_grads, lr in zip(grads, rates, strict=True):
        step, slots = update(step_grads, slots, params)
        params = {path: w - lr * step[path] for path, w in params.items()}
    return params


@pytest.fixture(scope="module")
def problem() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    draw = lambda: {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in SHAPES.items()}  # noqa: E731
    scales = [1.0, 1e-3, 1e-7, 10.0, 0.0, 1.0]  # a step without any gradient too
    params = draw() | {"narrow": jnp.full(SHAPES["narrow"], 1e-5)}  # below the floor of its root mean square
    rows = {n: np.exp(rng.normal(size=(s[0], *(1 for _ in s[1:])))) for n, s in SHAPES.items()}
    grads = [{n: jnp.float32(scale * rows[n] * g) for n, g in draw().items()} for scale in scales]
    return SimpleNamespace(params=params, grads=grads, rates=[0.1, 0.01, 0.2, 0.1, 0.05, 0.1])


@pytest.mark.parametrize(
    "options",
    [
        {}, {"multiply_by_parameter_scale": False}, {"clipping_threshold": 0.3, "decay_rate": 0.5},
        {"min_dim_size_to_factor": 8},
    ],
    ids=lambda options: ",".join(options) or "t5",
)  # fmt: skip
def test_updates_are_those_of_t5x(problem, options):
    config = Adafactor(**options)
    found = ours(config, problem.params, problem.grads, problem.rates)
    for path, expected in reference(config, problem.params, problem.grads, problem.rates).items():
        np.testing.assert_allclose(found[path], expected, rtol=2e-5, atol=2e-6, err_msg=path)


def test_the_numbers_of_t5x_own_test():
    """adafactor_test.py test_apply_gradient: the second step of ones on a 3 x 2 matrix of ones, at rate 0.1."""
    rule, params = optimizers.make_transform(Adafactor(min_dim_size_to_factor=1)), {"x": jnp.ones((3, 2))}
    first, *others = rule.init(params)
    first = first._replace(count=jnp.int32(1), v_row={"x": jnp.full(2, 0.9)}, v_col={"x": jnp.full(3, 0.1)})
    update, (after, *_) = rule.update({"x": jnp.ones((3, 2))}, (first, *others), params)
    np.testing.assert_allclose(params["x"] - 0.1 * update["x"], 0.9 * np.ones((3, 2)), rtol=1e-6)
    np.testing.assert_allclose(after.v_row["x"], [0.9574349] * 2, rtol=1e-6)
    np.testing.assert_allclose(after.v_col["x"], [0.6169143] * 3, rtol=1e-6)


def test_the_slots_are_rows_and_columns():
    slots = optimizers.make_transform(Adafactor()).init({n: jnp.zeros(s) for n, s in SHAPES.items()})[0]
    shapes = {n: (slots.v_row[n].shape, slots.v_col[n].shape, slots.v[n].shape) for n in SHAPES}
    assert shapes["wide"] == shapes["tall"] == ((128,), (200,), (1,))
    assert shapes["square"] == ((128,), (128,), (1,))
    for name in ("narrow", "edge", "bias"):
        assert shapes[name] == ((1,), (1,), SHAPES[name])


def test_updates_are_those_of_transformers(problem):
    """transformers.Adafactor factors every matrix, so it is the same where T5's rule factors and for vectors."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    names = ["wide", "tall", "square", "bias"]
    weights = {n: torch.nn.Parameter(torch.tensor(np.asarray(problem.params[n]))) for n in names}
    rule = transformers.Adafactor(weights.values(), lr=1e-2, scale_parameter=True, relative_step=False)
    for grads in problem.grads:
        for name, weight in weights.items():
            weight.grad = torch.tensor(np.asarray(grads[name]))
        rule.step()
    found = ours(Adafactor(), problem.params, problem.grads, [1e-2] * len(problem.grads))
    for name, weight in weights.items():
        np.testing.assert_allclose(found[name], weight.detach().numpy(), rtol=2e-5, atol=2e-6, err_msg=name)


def test_fused_projections_are_factored_one_by_one_and_clipped_together():
    rng = np.random.default_rng(1)
    w, g = (jnp.asarray(rng.normal(size=(128, 3, 128)) * [[[1], [5], [20]]], jnp.float32) for _ in range(2))
    together = ours(Adafactor(clipping_threshold=1e9, multiply_by_parameter_scale=False), {"w": w}, [{"w": g}], [1.0])
    for part in range(3):
        alone = optax.scale_by_factored_rms()
        update, _ = alone.update({"w": g[:, part]}, alone.init({"w": w[:, part]}), {"w": w[:, part]})
        np.testing.assert_allclose(w[:, part] - together["w"][:, part], update["w"], rtol=1e-4, atol=1e-5)
    update, _ = optimizers.make_transform(Adafactor()).update(
        {"w": g}, optimizers.make_transform(Adafactor()).init({"w": w}), {"w": w}
    )
    assert float(jnp.sqrt((update["w"] ** 2).mean())) <= float(jnp.sqrt((w**2).mean())) * 1.00001


def test_weight_decay_is_that_of_adamw():
    params = {"encoder/layers/0/mlp/output/kernel": jnp.full((2, 3), 0.5), "encoder/norm/scale": jnp.ones(3)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    rule = optimizers.make_transform(Adafactor(weight_decay=0.1))
    update, _ = rule.update(nothing, rule.init(params), params)
    np.testing.assert_allclose(update["encoder/layers/0/mlp/output/kernel"], 0.05)
    assert not np.any(update["encoder/norm/scale"])


# ---- in the step ----------------------------------------------------------------------------------------------------


def begin(program: TrainProgram) -> TrainState:
    groups = freezing.param_groups(program.abstract_params())
    return program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))


def run(program: TrainProgram, batches: list[dict]) -> TrainState:
    state = begin(program)
    step = jit_train_step(program, state)
    for batch in batches:
        state, _ = step(state, jax.device_put(batch, program.batch_sharding()))
    return state


@pytest.fixture(scope="module")
def batches(make_rows) -> list[dict]:
    return [make_rows("pairs", 16, seed=s) for s in range(2)]


@pytest.fixture(scope="module")
def single(make_program, batches) -> TrainState:
    return run(make_program(optimizer=SMALL, dropout=0.0), batches)


def assert_close(found: TrainState, expected: TrainState) -> None:
    """Parameters and slots. A softmax does not see the bias of keys: its gradient is rounding, and steps follow it."""
    for path, value in expected.params.items():
        tolerance = 1e-3 if path.endswith("qkv/bias") else 2e-5
        np.testing.assert_allclose(found.params[path], value, rtol=0, atol=tolerance, err_msg=path)
    for (path, value), other in zip(
        param_paths.flatten(expected.opt_state).items(), jax.tree.leaves(found.opt_state), strict=True
    ):
        np.testing.assert_allclose(other, value, rtol=2e-3, atol=1e-9, err_msg=path)


def test_a_scanned_stack_has_statistics_of_each_layer(make_program, batches, single):
    """t5x needs FactorDim.BATCH for this; here a layer's parameters are arrays of their own."""
    assert_close(run(make_program(optimizer=SMALL, dropout=0.0, segments=(2,)), batches), single)


def test_slots_follow_their_parameters(make_program):
    program = make_program(optimizer=SMALL, data=2, fsdp=2, tensor=2)
    state, placed = begin(program), program.param_shardings()
    where = {path: x.sharding.spec for path, x in param_paths.flatten(state.opt_state).items()}
    group = lambda path, slot: f"{freezing.param_group(path)}/0/{slot}/{path}"  # noqa: E731
    kernel, fused = "layers/1/mlp/output/kernel", "layers/1/attention/qkv/kernel"  # [64, 32] and [32, 3, 32]
    assert (placed[kernel].spec, placed[fused].spec) == (P("tensor", "fsdp"), P("fsdp", None, "tensor"))
    assert (where[group(kernel, "v_row")], where[group(kernel, "v_col")]) == (P("fsdp"), P("tensor"))
    assert (where[group(fused, "v_row")], where[group(fused, "v_col")]) == (P("fsdp", None), P(None, "tensor"))
    assert where[group(kernel, "v")] == P() and state.opt_state["layers/1"][0].v[kernel].shape == (1,)
    bias = "layers/1/mlp/intermediate/bias"
    assert where[group(bias, "v")] == placed[bias].spec and where[group(bias, "v_row")] == P()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_kept_axes_are_those_of_the_slots(shape, least):
    """The sizes along the axes it names are the slot's, whatever the parameter."""
    slots = jax.eval_shape(
        lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=least).init({"w": jnp.zeros(shape)})
    )
    factored = slots.v["w"].shape == (1,) != tuple(shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slots):
        axes = factored_axes(path, leaf.shape, tuple(shape))
        if axes or (factored and path[0].name in ("v_row", "v_col")):
            assert tuple(shape[axis] for axis in axes) == leaf.shape


def test_a_mesh_changes_nothing(make_program, batches, single):
    assert_close(run(make_program(optimizer=SMALL, dropout=0.0, data=2, fsdp=2, tensor=2), batches), single)


def test_slots_come_back_from_a_checkpoint(make_program, single, tmp_path: Path):
    """Saved from one device, restored onto eight, bit for bit."""
    program = make_program(optimizer=SMALL, data=2, fsdp=2, tensor=2)
    like = program.abstract_state(freezing.param_groups(program.abstract_params()), jax.random.key(0))
    with CheckpointManager(tmp_path, CheckpointPolicy()) as checkpoints:
        checkpoints.save(2, to_tree(single), {"step": 2})
    _, tree, _ = CheckpointReader(tmp_path).restore(to_tree(like))
    found = from_tree(tree, like)
    assert_same(to_tree(found), to_tree(single))
    for x, wanted in zip(jax.tree.leaves(found.opt_state), jax.tree.leaves(like.opt_state), strict=True):
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
    assert int(found.opt_state["heads"][0].count) == 2
