"""The objective of text-to-text models and its losses, against t5x's numbers, torch and straightforward numpy."""

from collections.abc import Callable
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.model import T5Config
from bertjax.config.schema.training import TextToTextObjective
from bertjax.models.layers.numerics import einsum_lowp
from bertjax.models.registry import build_model, init_params
from bertjax.objectives import base
from bertjax.objectives.losses import normalize_per_sequence, target_losses
from bertjax.objectives.registry import build

B, S, T, V = 3, 7, 6, 11
Numbers = tuple[np.ndarray, np.ndarray, np.ndarray]


def numbers(seed: int = 0, scale: float = 3.0) -> Numbers:
    """Logits, targets and weights; the weights of the last row are all 0."""
    rng = np.random.default_rng(seed)
    weights = np.float32([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0] * 6])
    return np.float32(rng.normal(size=(B, T, V)) * scale), rng.integers(0, V, (B, T)).astype(np.int32), weights


def reference(logits: np.ndarray, targets: np.ndarray, z_loss: float, smoothing: float) -> Numbers:
    """compute_weighted_cross_entropy and cross_entropy_with_logits of t5x/losses.py in float64: loss, z term, plain."""
    x, width = np.float64(logits), logits.shape[-1]
    log_z = np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)) + x.max(-1)
    log_p = x - log_z[..., None]
    hot = np.eye(width)[targets]
    confidence, low = 1 - smoothing, smoothing / (width - 1)
    constant = -(confidence * np.log(confidence) + (width - 1) * low * np.log(low + 1e-20))
    loss = -((confidence * hot + low * (1 - hot)) * log_p).sum(-1) - constant
    return loss + z_loss * log_z**2, z_loss * log_z**2, -(hot * log_p).sum(-1)


# ---- the loss of one target -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-4, 0.0), (0.1, 0.1), (0.0, 0.3)])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_losses_are_those_of_t5x(z_loss, smoothing, scale):
    logits, targets, _ = numbers(scale=scale)
    trained, plain, right = target_losses(jnp.asarray(logits), jnp.asarray(targets), z_loss, smoothing)
    loss, _, cross_entropy = reference(logits, targets, z_loss, smoothing)
    np.testing.assert_allclose(trained, loss, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(plain, cross_entropy, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(right, logits.argmax(-1) == targets)


@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-4, 0.0), (0.1, 0.1)])
def test_loss_and_gradient_are_those_of_torch(z_loss, smoothing):
    """torch spreads its smoothing over the target too: t5x's s is torch's s * V / (V - 1)."""
    torch = pytest.importorskip("torch")
    logits, targets, weights = numbers(1)
    x = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        x.reshape(-1, V), torch.tensor(targets.reshape(-1)).long(), reduction="none",
        label_smoothing=smoothing * V / (V - 1),
    )  # fmt: skip
    loss = loss + z_loss * torch.logsumexp(x.reshape(-1, V), -1) ** 2
    (loss * torch.tensor(weights.reshape(-1))).sum().backward()
    constant = reference(np.zeros((1, V)), np.zeros(1, int), 0.0, smoothing)[0] - np.log(V)  # less the target's entropy
    found, grads = jax.value_and_grad(
        lambda x: (target_losses(x, jnp.asarray(targets), z_loss, smoothing)[0] * weights).sum()
    )(jnp.asarray(logits))
    expected = (loss.detach().numpy().reshape(B, T) + constant) * weights
    np.testing.assert_allclose(found, expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(grads, x.grad, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 10_000), st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_a_perfect_guess_costs_nothing_and_slopes_add_up(seed, shift):
    """With smoothing the loss of the smoothed target itself is 0; without z-loss the slope along all logits is 0."""
    targets = jnp.asarray(np.random.default_rng(seed).integers(0, V, (B, T)))
    perfect = jnp.log(jnp.where(jax.nn.one_hot(targets, V) > 0, 0.9, 0.1 / (V - 1))) + shift
    np.testing.assert_allclose(target_losses(perfect, targets, 0.0, 0.1)[0], 0, atol=2e-5)
    grads = jax.grad(lambda x: target_losses(x, targets, 0.0, 0.1)[0].sum())(jnp.asarray(numbers(seed)[0]))
    np.testing.assert_allclose(grads.sum(-1), 0, atol=1e-5)


def test_low_precision_logits_are_summed_in_float32():
    logits, targets, _ = numbers(2)
    half = jnp.asarray(logits, jnp.bfloat16)
    for found, expected in zip(
        target_losses(half, jnp.asarray(targets), 0.1, 0.1),
        target_losses(half.astype(jnp.float32), jnp.asarray(targets), 0.1, 0.1), strict=True,
    ):  # fmt: skip
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, expected)
    assert jax.grad(lambda x: target_losses(x, targets, 0.1, 0.1)[0].sum())(half).dtype == jnp.bfloat16


def test_the_backward_pass_keeps_the_logits_alone():
    """Of a vocabulary's width nothing is stored but the logits and their gradient; autodiff of log_softmax stores 4."""
    rows, width = 64, 4096
    shapes = jax.ShapeDtypeStruct((8, rows, 16), jnp.float32), jax.ShapeDtypeStruct((16, width), jnp.float32)
    targets = jnp.zeros((8, rows), jnp.int32)

    def loss(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        trained, plain, right = target_losses(einsum_lowp("btd,dv->btv", x, kernel, "cpu"), targets, 1e-4, 0.0)
        return trained.sum(), (plain.sum(), right.sum())

    memory = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 2.1 * 8 * rows * width * 4


# ---- what a target weighs -------------------------------------------------------------------------------------------


def test_weights_per_segment_are_those_of_t5x():
    """losses_test.py test_sum_weights_per_segment, test_average_per_sequence_with_weights_with_packing."""
    weights = np.float32([[0.5, 1.0, 0.25, 2.0, 1.5], [1.0, 2.0, 3.0, 4.0, 5.0]])
    segments = np.int32([[1, 1, 1, 2, 3], [1, 2, 2, 3, 0]])
    expected = [[0.5 / 1.75, 1 / 1.75, 0.25 / 1.75, 1, 1], [1, 0.4, 0.6, 1, 0]]
    np.testing.assert_allclose(normalize_per_sequence(jnp.asarray(weights), jnp.asarray(segments)), expected, rtol=1e-6)
    assert divided("average_per_sequence", weights, segments) == pytest.approx(6.0)


def test_weights_of_unpacked_rows_are_those_of_t5x():
    """losses_test.py test_num_real_target_tokens, _num_total_target_tokens, _average_per_sequence(_with_weights)."""
    plain = np.float32([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    weights = np.float32([[0.5, 1.0, 0.25, 2.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]])
    segments = plain.astype(np.int32)
    assert divided("num_real_target_tokens", plain, segments) == 6
    assert divided("num_total_target_tokens", plain, segments) == 10
    assert divided("average_per_sequence", plain, segments) == pytest.approx(2.0)
    assert divided("average_per_sequence", weights, segments) == pytest.approx(2.0)
    assert divided("sum", plain, segments) == 1 and divided(233472, plain, segments) == 233472
    for given_weights, row in ((plain, [0.25] * 4 + [0]), (weights, [0.5 / 3.75, 1 / 3.75, 0.25 / 3.75, 2 / 3.75, 0])):
        found = normalize_per_sequence(jnp.asarray(given_weights), jnp.asarray(segments))
        np.testing.assert_allclose(found, [row, [0.5, 0.5, 0, 0, 0]], rtol=1e-6)


def divided(factor: str | float, weights: np.ndarray, segments: np.ndarray) -> float:
    objective = build(TextToTextObjective(loss_normalizing_factor=factor))
    batch = {"target_weights": jnp.asarray(weights), "target_segment_ids": jnp.asarray(segments)}
    return float(objective.normalizers(batch)["target"])


# ---- the objective --------------------------------------------------------------------------------------------------


def batch_of(weights: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    ones = lambda length: np.ones((len(targets), length), np.int32)  # noqa: E731
    return {
        "input_ids": ones(S), "segment_ids": ones(S), "positions": ones(S) * np.arange(S, dtype=np.int32),
        "target_ids": targets, "target_segment_ids": (weights > 0).astype(np.int32), "target_weights": weights,
        "target_positions": np.where(weights > 0, np.arange(T), 0).astype(np.int32),
    }  # fmt: skip


def answering(logits: np.ndarray) -> SimpleNamespace:
    """A model that answers with these logits, whatever it is asked."""
    calls = {name: lambda *_, **__: None for name in ("encode", "decode")}
    config = SimpleNamespace(decoder_start_token_id=0)
    return SimpleNamespace(**calls, config=config, logits=lambda _: jnp.asarray(logits))


def total(objective: base.Objective, model: SimpleNamespace, batch: dict) -> float:
    return float(objective.total_loss(objective.losses(model, batch, None), objective.normalizers(batch)))


def test_the_total_is_that_of_t5x_and_the_term_is_the_plain_cross_entropy():
    logits, targets, weights = numbers(3)
    batch, model = batch_of(weights, targets), answering(logits)
    trained, _, plain = reference(logits, targets, 0.1, 0.1)
    lengths = weights.sum(1, keepdims=True)
    shares = np.where(lengths > 0, weights / np.maximum(lengths, 1), 0)
    expected = {
        "num_real_target_tokens": (trained * weights).sum() / 7,
        "num_total_target_tokens": (trained * weights).sum() / (B * T),
        "average_per_sequence": (trained * shares).sum() / 2,
        "sum": (trained * weights).sum(),
        2.5: (trained * weights).sum() / 2.5,
    }
    for factor, value in expected.items():
        config = TextToTextObjective(z_loss=0.1, label_smoothing=0.1, loss_normalizing_factor=factor)
        objective = build(config)
        assert objective.heads == ("lm",)
        assert total(objective, model, batch) == pytest.approx(value, rel=1e-5), factor
        term = objective.losses(model, batch, None)["target"]
        assert float(term.weight) == 7  # the record's loss is a mean over targets, however the total is divided
        assert float(term.loss) == pytest.approx((plain * weights).sum(), rel=1e-5)
        assert float(term.correct) == ((logits.argmax(-1) == targets) * weights).sum()


def test_a_batch_without_targets_is_zero_and_not_nan():
    logits, targets, weights = numbers()
    for factor in ("num_real_target_tokens", "average_per_sequence"):
        objective = build(TextToTextObjective(loss_normalizing_factor=factor))
        assert total(objective, answering(logits), batch_of(weights * 0, targets)) == 0


@pytest.mark.parametrize("factor", ["num_real_target_tokens", "average_per_sequence"])
def test_sums_add_up_over_the_parts_of_a_batch_and_over_its_tasks(factor):
    """What makes accumulation, several hosts and the losses of a mixture exact."""
    logits, targets, weights = numbers(4)
    batch = batch_of(weights, targets) | {"task_ids": np.int32([1, 0, 1])}
    objective = build(TextToTextObjective(loss_normalizing_factor=factor, label_smoothing=0.1), tasks=3)
    part = lambda rows: objective.losses(answering(logits[rows]), {n: x[rows] for n, x in batch.items()}, None)  # noqa: E731
    whole = part(slice(None))
    added = jax.tree.map(jnp.add, part(slice(0, 1)), part(slice(1, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)
    for task in range(3):
        rows = np.flatnonzero(batch["task_ids"] == task)
        alone = part(rows)["target"]
        np.testing.assert_allclose(whole["target"].by_task[task], [alone.loss, alone.weight], rtol=1e-5)


TINY = {
    "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0,
}  # fmt: skip


def tiny(**options: object) -> tuple[dict[str, jax.Array], Callable[[dict], dict]]:
    """Parameters of a small model, and its summed terms by batch."""
    config, objective = T5Config(**TINY | options), build(TextToTextObjective(z_loss=0.01))
    params = jax.jit(lambda key: init_params(config, objective.heads, 2, key))(jax.random.key(0))
    apply = lambda batch: objective.losses(build_model(config, objective.heads, params), batch, None)  # noqa: E731
    return params, jax.jit(apply)


def test_a_packed_row_is_the_sum_of_its_examples():
    rng = np.random.default_rng(5)
    _, terms = tiny()
    lengths = [(3, 4), (4, 2)]
    single = {}
    for name, side, room in (("input_ids", 0, S), ("target_ids", 1, T)):
        single[name] = np.stack([np.pad(rng.integers(2, 40, n[side]), (0, room - n[side])) for n in lengths])
    real = {name: (single[name] > 0).astype(np.int32) for name in single}
    single |= {
        "segment_ids": real["input_ids"], "positions": real["input_ids"] * np.arange(S),
        "target_segment_ids": real["target_ids"], "target_positions": real["target_ids"] * np.arange(T),
        "target_weights": np.float32(real["target_ids"]),
    }  # fmt: skip
    packed = {}
    for name, values in single.items():
        side = int(name.startswith("target"))
        first, second = (values[i, : lengths[i][side]] * (i + 1 if "segment" in name else 1) for i in (0, 1))
        packed[name] = np.concatenate([first, second])[None]
    found, expected = terms(packed)["target"], terms(single)["target"]
    for name in ("loss", "correct", "weight", "train_loss"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, err_msg=name)


def test_a_decoder_alone_is_scored_on_its_targets():
    """The loss is the one of its logits, of weighted targets only, and what the prefix holds changes it."""
    params, terms = tiny(architecture="decoder_only")
    rng = np.random.default_rng(6)
    ids = rng.integers(2, 40, (2, T)).astype(np.int32)
    weights = np.float32([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]])
    segments = np.int32([[1] * 6, [1] * 4 + [0] * 2])
    batch = {
        "target_ids": ids * segments, "target_segment_ids": segments, "target_weights": weights,
        "target_positions": segments * np.arange(T, dtype=np.int32),
        "prefix_mask": np.int32(np.arange(T) < 2) * segments,
    }  # fmt: skip
    found = terms(batch)["target"]
    assert float(found.weight) == 6
    model = build_model(T5Config(**TINY, architecture="decoder_only"), ("lm",), params)
    inputs = np.pad(batch["target_ids"][:, :-1], ((0, 0), (1, 0)))
    logits = model.logits(model.decode(inputs, segments, None, None, prefix_mask=batch["prefix_mask"]))
    trained, _, plain = reference(np.asarray(logits), batch["target_ids"], 0.01, 0.0)
    np.testing.assert_allclose(
        [found.loss, found.train_loss], [(x * weights).sum() for x in (plain, trained)], rtol=1e-5
    )
    batch["target_ids"] = np.where(np.arange(T) == 0, (ids + 1) % 40, batch["target_ids"])
    assert abs(float(terms(batch)["target"].loss - found.loss)) > 1e-3
