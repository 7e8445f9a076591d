"""Optimizers against the formulas of google-research/bert optimization.py and against optax; the schedule's numbers."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bertjax.config.schema.model import BertConfig
from bertjax.config.schema.training import AdamW
from bertjax.models import param_paths, registry
from bertjax.training import optimizers

PATHS = (
    "embeddings/word/embedding",
    "layers/0/mlp/output/kernel",
    "layers/0/mlp/output/bias",
    "layers/0/mlp/norm/scale",
)


def rate(step: int, steps: int = 100_000, **options: object) -> float:
    return float(optimizers.schedule(AdamW(learning_rate=1e-4, **options), steps)(step))


@pytest.mark.parametrize(
    ("step", "expected"),
    [  # optimization.py create_optimizer with lr 1e-4, N = 100,000, W = 10,000: polynomial decay counts from step 0
        (0, 0.0), (1, 1e-8), (5_000, 5e-5), (9_999, 9.999e-5), (10_000, 9.0e-5), (10_001, 8.9999e-5), (50_000, 5e-5),
        (99_999, 1e-9), (100_000, 0.0), (100_001, 0.0),
    ],
)  # fmt: skip
def test_linear_schedule_has_the_reference_numbers(step, expected):
    np.testing.assert_allclose(rate(step, warmup_steps=10_000), expected, rtol=1e-6)
    np.testing.assert_allclose(rate(step, warmup_ratio=0.1), rate(step, warmup_steps=10_000), rtol=0)


def test_the_rate_drops_where_the_warm_up_ends():
    """transformers' (N - s) / (N - W) would be 1e-4 there; the reference jumps from 9.999e-5 to 9.0e-5."""
    before, after = rate(9_999, warmup_steps=10_000), rate(10_000, warmup_steps=10_000)
    assert after / before == pytest.approx(0.90009, rel=1e-4)


def test_schedules_without_warm_up_or_decay():
    assert rate(0, warmup_steps=0) == pytest.approx(1e-4)
    assert [rate(s, schedule="constant", warmup_steps=4) for s in (0, 2, 4, 99_999)] == pytest.approx(
        [0, 5e-5, 1e-4, 1e-4]
    )
    assert optimizers.warmup_steps(AdamW(warmup_ratio=0.1), 88) == 8  # int(), as run_squad.py truncates


def reference_adam(params: dict, grads: list[dict], rates: list[float]) -> dict:
    """AdamWeightDecayOptimizer.apply_gradients of optimization.py, in float64."""
    params = {path: np.float64(w) for path, w in params.items()}
    m = {path: np.zeros_like(w) for path, w in params.items()}
    v = {path: np.zeros_like(w) for path, w in params.items()}
    for step_grads, lr in zip(grads, rates, strict=True):
        for path, g in step_grads.items():
            g = np.float64(g)
            m[path] = 0.9 * m[path] + 0.1 * g
            v[path] = 0.999 * v[path] + 0.001 * np.square(g)
            update = m[path] / (np.sqrt(v[path]) + 1e-6)
            if not any(name in path for name in ("norm", "bias")):
                update = update + 0.01 * params[path]
            params[path] = params[path] - lr * update
    return params


def ours(config: AdamW, params: dict, grads: list[dict], rates: list[float]) -> dict:
    tx = optimizers.make_transform(config)
    slots = tx.init(params)
    for step_grads, lr in zip(grads, rates, strict=True):
        update, slots = tx.update(step_grads, slots, params)
        params = {path: w - lr * update[path] for path, w in params.items()}
    return params


@pytest.fixture
def problem() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    draw = lambda: {path: jnp.asarray(rng.normal(size=(4, 5)), jnp.float32) for path in PATHS}  # noqa: E731
    scales = [1.0, 1e-3, 1e-7, 10.0, 0.0, 1.0]  # below eps too, and a step without any gradient
    grads = [{path: scale * g for path, g in draw().items()} for scale in scales]
    return SimpleNamespace(params=draw(), grads=grads, rates=[0.0, 0.1, 0.2, 0.3, 0.2, 0.1])


def test_bert_adamw_follows_the_reference_over_steps(problem):
    found = ours(AdamW(kind="bert_adamw"), problem.params, problem.grads, problem.rates)
    for path, expected in reference_adam(problem.params, problem.grads, problem.rates).items():
        np.testing.assert_allclose(found[path], expected, rtol=2e-5, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("g", [1.0, -3.0, 1e-4, 1e-8])
def test_first_bert_adamw_update_has_no_bias_correction(g):
    """update = .1 g / (sqrt(.001 g^2) + 1e-6): 3.16 for large gradients, where a corrected Adam would give 1."""
    tx = optimizers.make_transform(AdamW(weight_decay=0))
    params = {"layers/0/mlp/output/kernel": jnp.zeros(1)}
    update, _ = tx.update({path: jnp.full(1, g) for path in params}, tx.init(params), params)
    np.testing.assert_allclose(*update.values(), g * 0.1 / (np.sqrt(0.001 * g * g) + 1e-6), rtol=1e-5)


def test_adamw_is_optax_adamw(problem):
    config = AdamW(kind="adamw", weight_decay=0.02, b1=0.8, b2=0.99, eps=1e-5)
    mask = dict(zip(PATHS, (True, True, False, False), strict=True))
    params, slots = problem.params, None
    for grads, lr in zip(problem.grads, problem.rates, strict=True):
        tx = optax.adamw(lr, 0.8, 0.99, 1e-5, weight_decay=0.02, mask=mask)
        slots = tx.init(params) if slots is None else slots
        updates, slots = tx.update(grads, slots, params)
        params = optax.apply_updates(params, updates)
    found = ours(config, problem.params, problem.grads, problem.rates)
    for path in PATHS:
        np.testing.assert_allclose(found[path], params[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("limit", [0.5, 5.0, 50.0, None])
def test_clip_is_clip_by_global_norm(limit):
    """tf.clip_by_global_norm: t * clip_norm / max(global_norm, clip_norm)."""
    grads = {"a": np.float32([[3.0, 0.0]]), "b": np.float32([0.0, 4.0, 0.0])}
    clipped, norm = optimizers.clip_by_global_norm({path: jnp.asarray(g) for path, g in grads.items()}, limit)
    assert float(norm) == pytest.approx(5.0)
    for path, g in grads.items():
        expected = g if limit is None else g * limit / max(5.0, limit)
        np.testing.assert_allclose(clipped[path], expected, rtol=1e-6)


def test_clipping_nothing_stays_finite():
    clipped, norm = optimizers.clip_by_global_norm({"a": jnp.zeros(3)}, 1.0)
    assert float(norm) == 0 and not np.any(clipped["a"])


def test_decay_spares_norms_and_biases_only():
    """optimization.py: exclude_from_weight_decay=["LayerNorm", "layer_norm", "bias"]; embeddings are decayed."""
    abstract = registry.abstract_model(BertConfig(num_hidden_layers=2), ("mlm", "nsp", "qa", "classifier"))[1]
    shapes = {p.removesuffix("/value"): x.shape for p, x in param_paths.flatten(abstract).items()}
    decayed = {path for path in shapes if optimizers.has_weight_decay(path)}
    assert {p.rsplit("/", 1)[1] for p in decayed} == {"embedding", "kernel"}
    assert {p.rsplit("/", 1)[1] for p in shapes.keys() - decayed} == {"scale", "bias"}
    assert {f"embeddings/{t}/embedding" for t in ("word", "position", "token_type")} <= decayed
    assert not any("norm" in path for path in decayed)
    assert jax.tree.leaves(shapes) and "heads/mlm/bias" in shapes.keys() - decayed
