"""Objectives against straightforward numpy, with the model's logits given."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.model import BertConfig
from bertjax.config.schema.training import ClassificationObjective, MlmNspObjective, SpanQaObjective
from bertjax.models.registry import build_model, init_params
from bertjax.objectives import base
from bertjax.objectives.registry import build

B, S, K, V, G = 3, 10, 4, 7, 2
ENCODED = ("input_ids", "token_type_ids", "segment_ids", "positions")


def answering(**logits: object) -> SimpleNamespace:
    """A model whose heads answer with these logits, whatever they are asked."""
    heads = {f"{name}_logits": (lambda *_, value=value: value) for name, value in logits.items()}
    return SimpleNamespace(encode=lambda *_, **__: None, **heads)


def softmax_loss(logits: np.ndarray, target: int) -> float:
    logits = np.float64(logits)
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])


def encoder_fields(rows: int = B) -> dict[str, np.ndarray]:
    return {name: np.ones((rows, S), np.int32) for name in ENCODED}


def pretraining_batch(rng: np.random.Generator, groups: int = 1) -> dict[str, np.ndarray]:
    return encoder_fields() | {
        "masked_positions": rng.integers(0, S, (B, K)).astype(np.int32),
        "masked_ids": rng.integers(0, V, (B, K)).astype(np.int32),
        "masked_weights": np.float32([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]),
        "cls_positions": np.zeros((B, groups), np.int32),
        "nsp_labels": rng.integers(0, 2, (B, groups)).astype(np.int32),
        "nsp_weights": np.ones((B, groups), np.float32),
    }


def total(objective: base.Objective, model: SimpleNamespace, batch: dict) -> float:
    return float(objective.total_loss(objective.losses(model, batch, None), objective.normalizers(batch)))


@given(st.integers(0, 10_000), st.floats(-50, 50), st.floats(0.1, 30))
@settings(max_examples=30, deadline=None)
def test_cross_entropy_is_log_softmax(seed, shift, scale):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(2, 3, V)) * scale + shift, jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (2, 3)))
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(base.cross_entropy(logits, targets), expected, rtol=1e-4, atol=1e-4)
    grads = jax.grad(lambda x: base.cross_entropy(x, targets).sum())(logits)
    np.testing.assert_allclose(grads, jax.nn.softmax(logits) - jax.nn.one_hot(targets, V), atol=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_top_is_argmax_without_ties(seed):
    rng = np.random.default_rng(seed)
    logits, targets = rng.permuted(np.arange(3.0 * V).reshape(3, V), axis=1) - 9, rng.integers(0, V, 3)
    np.testing.assert_array_equal(
        base.is_correct(jnp.asarray(logits), jnp.asarray(targets)), logits.argmax(-1) == targets
    )


def test_cross_entropy_of_low_precision_logits_is_float32():
    logits = jnp.asarray([[8.0, 1.0, -3.0]], jnp.bfloat16)
    found = base.cross_entropy(logits, jnp.asarray([1]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0], softmax_loss([8, 1, -3], 1), rtol=1e-6)


def test_pretraining_loss_is_that_of_run_pretraining():
    """sum(w ce) / (sum(w) + 1e-5) + mean(NSP ce); slots of weight zero do not count, whatever they hold."""
    rng = np.random.default_rng(0)
    batch, mlm, nsp = pretraining_batch(rng), rng.normal(size=(B, K, V)), rng.normal(size=(B, 1, 2))
    model = answering(mlm=jnp.float32(mlm), nsp=jnp.float32(nsp))
    weights, ids = batch["masked_weights"], batch["masked_ids"]
    losses = [softmax_loss(mlm[b, k], ids[b, k]) for b in range(B) for k in range(K) if weights[b, k]]
    expected = sum(losses) / (5 + 1e-5)
    expected += np.mean([softmax_loss(nsp[b, 0], batch["nsp_labels"][b, 0]) for b in range(B)])
    objective = build(MlmNspObjective())
    assert objective.heads == ("mlm", "nsp")
    assert total(objective, model, batch) == pytest.approx(expected, rel=1e-6)
    batch["masked_ids"] = np.where(weights > 0, ids, (ids + 1) % V)
    assert total(objective, model, batch) == pytest.approx(expected, rel=1e-6)
    terms = objective.losses(model, batch, None)
    hits = [mlm[b, k].argmax() == ids[b, k] for b in range(B) for k in range(K) if weights[b, k]]
    assert float(terms["mlm"].correct) == sum(hits) and float(terms["mlm"].weight) == 5
    assert float(terms["nsp"].correct) == sum(nsp[:, 0].argmax(-1) == batch["nsp_labels"][:, 0])


def test_the_small_constant_of_the_divisor_shows_with_few_masks():
    """With one masked position of loss ln 7 the mean is ln 7 / (1 + 1e-5); with none it is 0, not NaN."""
    batch = pretraining_batch(np.random.default_rng(0)) | {"masked_weights": np.zeros((B, K), np.float32)}
    model, objective = answering(mlm=jnp.zeros((B, K, V))), build(MlmNspObjective(nsp_weight=0))
    assert objective.heads == ("mlm",)
    assert total(objective, model, batch) == 0
    batch["masked_weights"][1, 2] = 1
    assert np.float32(batch["masked_weights"].sum() + 1e-5) == np.float32(1.00001)
    np.testing.assert_allclose(float(objective.normalizers(batch)["mlm"]), 1.00001, rtol=1e-7)
    np.testing.assert_allclose(total(objective, model, batch), np.log(7) / 1.00001, rtol=2e-7)


def test_weights_scale_the_two_losses():
    rng = np.random.default_rng(0)
    batch = pretraining_batch(rng)
    model = answering(mlm=jnp.float32(rng.normal(size=(B, K, V))), nsp=jnp.float32(rng.normal(size=(B, 1, 2))))
    alone = [total(build(MlmNspObjective(mlm_weight=m, nsp_weight=n)), model, batch) for m, n in ((1, 0), (0, 1))]
    both = total(build(MlmNspObjective(mlm_weight=2, nsp_weight=0.5)), model, batch)
    assert both == pytest.approx(2 * alone[0] + 0.5 * alone[1], rel=1e-6)


def span_batch() -> dict[str, np.ndarray]:
    """Row 0: examples of 5 and 4 tokens; row 1: one of 6 and no second; row 2: two, the second without weight."""
    return encoder_fields() | {
        "segment_ids": np.int32([[1] * 5 + [2] * 4 + [0], [1] * 6 + [0] * 4, [1] * 3 + [2] * 3 + [0] * 4]),
        "cls_positions": np.int32([[0, 5], [0, 0], [0, 3]]),
        "start_positions": np.int32([[2, 5], [1, 0], [0, 4]]),
        "end_positions": np.int32([[4, 8], [1, 0], [2, 5]]),
        "span_weights": np.float32([[1, 1], [1, 0], [1, 0]]),
    }


def test_span_loss_is_the_mean_over_examples():
    """run_squad.py: (start + end) / 2, the softmax over the example's own tokens."""
    rng = np.random.default_rng(1)
    batch, start, end = span_batch(), rng.normal(size=(B, S)), rng.normal(size=(B, S))
    losses, right = [], []
    for b, g in ((0, 0), (0, 1), (1, 0), (2, 0)):
        own = np.flatnonzero(batch["segment_ids"][b] == g + 1)
        targets = batch["start_positions"][b, g] - own[0], batch["end_positions"][b, g] - own[0]
        pairs = [(x[b, own], t) for x, t in zip((start, end), targets, strict=True)]
        losses.append(sum(softmax_loss(x, t) for x, t in pairs) / 2)
        right.append(all(x.argmax() == t for x, t in pairs))
    model, objective = answering(qa=(jnp.float32(start), jnp.float32(end))), build(SpanQaObjective())
    term = objective.losses(model, batch, None)["span"]
    assert total(objective, model, batch) == pytest.approx(np.mean(losses), rel=1e-6)
    assert float(term.weight) == 4 and float(term.correct) == sum(right)
    assert float(term.loss) == pytest.approx(sum(losses), rel=1e-6)


def test_span_accuracy_needs_start_and_end():
    batch = span_batch()
    start, end = (np.zeros((B, S), np.float32) for _ in range(2))
    for b, g in ((0, 0), (0, 1), (1, 0)):
        start[b, batch["start_positions"][b, g]] = 9
        end[b, batch["end_positions"][b, g]] = 9
    end[0, 8], end[0, 6] = 0, 9  # the second example's end is wrong
    term = build(SpanQaObjective()).losses(answering(qa=(jnp.asarray(start), jnp.asarray(end))), batch, None)
    assert float(term["span"].correct) == 2


def test_absent_examples_and_padding_get_no_gradient():
    batch, objective = span_batch(), build(SpanQaObjective())

    def loss(logits):
        return objective.total_loss(objective.losses(answering(qa=logits), batch, None), objective.normalizers(batch))

    rng = np.random.default_rng(2)
    logits = tuple(jnp.asarray(rng.normal(size=(B, S)), jnp.float32) for _ in range(2))
    for grad in jax.grad(loss)(logits):
        assert np.all(np.isfinite(grad)) and not np.any(np.asarray(grad)[batch["segment_ids"] == 0])
        assert not np.any(grad[2, 3:6])  # real tokens of an example whose weight is zero
        np.testing.assert_allclose(grad.sum(-1), 0, atol=1e-6)  # softmax - onehot, for each example


def class_batch(labels: np.ndarray) -> dict[str, np.ndarray]:
    weights = np.ones((B, 1), np.float32)
    weights[2] = 0
    return encoder_fields() | {"cls_positions": np.zeros((B, 1), np.int32), "labels": labels, "label_weights": weights}


def test_classification_loss():
    logits = np.random.default_rng(3).normal(size=(B, 1, 3))
    batch = class_batch(np.int32([[2], [0], [1]]))
    objective = build(ClassificationObjective(num_labels=3))
    assert objective.num_labels == 3 and objective.heads == ("classifier",)
    expected = (softmax_loss(logits[0, 0], 2) + softmax_loss(logits[1, 0], 0)) / 2
    assert total(objective, answering(**{"class": jnp.float32(logits)}), batch) == pytest.approx(expected, rel=1e-6)


def test_regression_is_mean_squared_error():
    """run_classifier-style tasks with one label, as for STS-B."""
    logits, labels = np.float32([[[2.0]], [[0.5]], [[9.0]]]), np.float32([[2.4], [3.5], [0.0]])
    objective, batch = build(ClassificationObjective(num_labels=1)), class_batch(labels)
    model = answering(**{"class": jnp.asarray(logits)})
    assert total(objective, model, batch) == pytest.approx((0.16 + 9.0) / 2, rel=1e-6)
    assert float(objective.losses(model, batch, None)["label"].correct) == 1  # within one half


def weighed_batch(rng: np.random.Generator, several: bool) -> dict[str, np.ndarray]:
    """Two examples a row, as packed ones are; three of the six have no label."""
    labels = rng.integers(0, 2, (B, 2, 3)).astype(np.uint8) if several else rng.integers(0, 3, (B, 2)).astype(np.int32)
    weights = np.float32([[1, 1], [0, 1], [0, 0]])
    return encoder_fields() | {"cls_positions": np.zeros((B, 2), np.int32), "labels": labels, "label_weights": weights}


@pytest.mark.parametrize("weights", [None, [0.5, 3.0, 1.25]])
@pytest.mark.parametrize("several", [False, True])
def test_weights_of_classes_are_those_of_torch(several, weights):
    """CrossEntropyLoss(weight=), BCEWithLogitsLoss(pos_weight=): losses, gradients, and parts that add up."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    batch, logits = weighed_batch(rng, several), rng.normal(size=(B, 2, 3)).astype(np.float32) * 3
    kind = "multi_label_classification" if several else None
    objective = build(ClassificationObjective(num_labels=3, problem_type=kind, class_weights=weights))
    there = batch["label_weights"] > 0
    theirs, labels = torch.tensor(logits[there], requires_grad=True), torch.tensor(batch["labels"][there])
    weight = None if weights is None else torch.tensor(weights)
    if several:
        expected = torch.nn.BCEWithLogitsLoss(pos_weight=weight)(theirs, labels.float())
    else:
        expected = torch.nn.CrossEntropyLoss(weight=weight)(theirs, labels.long())
    expected.backward()

    def loss(x: jax.Array, rows: slice = slice(None)) -> jax.Array:
        some = {name: values[rows] for name, values in batch.items()}
        return objective.total_loss(
            objective.losses(answering(**{"class": x[rows]}), some, None), objective.normalizers(batch)
        )

    assert float(loss(jnp.asarray(logits))) == pytest.approx(expected.item(), rel=1e-6)
    parts = [float(loss(jnp.asarray(logits), rows)) for rows in (slice(0, 1), slice(1, 3))]
    assert sum(parts) == pytest.approx(expected.item(), rel=1e-6)
    grads = np.asarray(jax.grad(loss)(jnp.asarray(logits)))
    np.testing.assert_allclose(grads[there], theirs.grad.numpy(), atol=2e-7)
    assert not grads[~there].any()
    term = objective.losses(answering(**{"class": jnp.asarray(logits)}), batch, None)["label"]
    plain = build(ClassificationObjective(num_labels=3, problem_type=kind))
    unweighed = plain.losses(answering(**{"class": jnp.asarray(logits)}), batch, None)["label"]
    assert float(term.loss) == pytest.approx(float(unweighed.loss)) and float(term.weight) == 3  # the loss of the log


def test_a_text_is_right_with_all_of_its_labels():
    logits = np.float32([[[5, -5, -5], [5, 5, -5]], [[1, 1, 1], [-1, -1, -1]], [[0, 0, 0]] * 2])
    batch = encoder_fields() | {"cls_positions": np.zeros((B, 2), np.int32), "label_weights": np.float32([[1, 1]] * 3)}
    batch["labels"] = np.uint8([[[1, 0, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]], [[1, 1, 1], [0, 0, 0]]])
    objective = build(ClassificationObjective(num_labels=3, problem_type="multi_label_classification"))
    term = objective.losses(answering(**{"class": jnp.asarray(logits)}), batch, None)["label"]
    assert float(term.correct) == 4 and float(term.weight) == 6  # a probability of 0.5 is a label


@pytest.mark.parametrize("kind", ["pairs", "span"])
def test_sums_add_up_over_the_parts_of_a_batch(kind):
    """What makes accumulation and several hosts exact: sums and weights, no means."""
    rng = np.random.default_rng(4)
    if kind == "pairs":
        batch, objective = pretraining_batch(rng), build(MlmNspObjective())
        logits = {"mlm": jnp.float32(rng.normal(size=(B, K, V))), "nsp": jnp.float32(rng.normal(size=(B, 1, 2)))}
    else:
        batch, objective = span_batch(), build(SpanQaObjective())
        logits = {"qa": jnp.float32(rng.normal(size=(2, B, S)))}
    cut = lambda x, rows: x[:, rows] if kind == "span" else x[rows]  # noqa: E731
    parts = [
        objective.losses(
            answering(**{n: cut(x, rows) for n, x in logits.items()}), {n: x[rows] for n, x in batch.items()}, None
        )
        for rows in (slice(0, 1), slice(1, 3))
    ]
    whole = objective.losses(answering(**logits), batch, None)
    added = jax.tree.map(jnp.add, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)
    np.testing.assert_allclose(
        float(objective.total_loss(added, objective.normalizers(batch))),
        float(objective.total_loss(whole, objective.normalizers(batch))), rtol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["pairs", "span", "label"])
def test_a_mixture_knows_the_sums_of_each_task(kind):
    """Task t's loss and weight are those of a batch of its rows alone; a task without rows has none."""
    rng = np.random.default_rng(6)
    task_ids = np.int32([2, 0, 2])
    if kind == "pairs":
        batch, config = pretraining_batch(rng), MlmNspObjective()
        logits = {"mlm": jnp.float32(rng.normal(size=(B, K, V))), "nsp": jnp.float32(rng.normal(size=(B, 1, 2)))}
    elif kind == "span":
        batch, config = span_batch(), SpanQaObjective()
        logits = {"qa": jnp.float32(rng.normal(size=(2, B, S)))}
    else:
        config, logits = ClassificationObjective(num_labels=3), {"class": jnp.float32(rng.normal(size=(B, 1, 3)))}
        batch = encoder_fields() | {"labels": np.int32([[0], [1], [2]]), "label_weights": np.ones((B, 1), np.float32)}
        batch["cls_positions"] = np.zeros((B, 1), np.int32)
    cut = lambda x, rows: x[:, rows] if kind == "span" else x[rows]  # noqa: E731
    plain, mixed = build(config), build(config, tasks=4)
    assert all(term.by_task is None for term in mixed.losses(answering(**logits), batch, None).values())
    found = mixed.losses(answering(**logits), batch | {"task_ids": task_ids}, None)
    for task in range(4):
        rows = np.flatnonzero(task_ids == task)
        alone = {n: x[rows] for n, x in batch.items()}
        expected = plain.losses(answering(**{n: cut(x, rows) for n, x in logits.items()}), alone, None)
        for name, term in found.items():
            assert term.by_task.shape == (4, 2)
            np.testing.assert_allclose(term.by_task[task], [expected[name].loss, expected[name].weight], rtol=1e-6)
    np.testing.assert_array_equal(base.rows_by_task({"task_ids": task_ids}, 4), [1, 0, 2, 0])


def test_a_packed_row_is_the_sum_of_its_examples():
    """A real model: two pre-training examples in one row give the sums of two rows."""
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    rng, first, second = np.random.default_rng(5), 6, 8
    ids = [rng.integers(1, 30, n) for n in (first, second)]
    masks = [np.array([1, 4]), np.array([2, 5])]
    real = np.arange(16) < np.array([[first], [second]])
    single = {
        "input_ids": np.stack([np.pad(x, (0, 16 - len(x))) for x in ids]),
        "token_type_ids": (real & (np.arange(16) >= 3)).astype(int),
        "segment_ids": real.astype(int),
        "positions": np.arange(16) * real,
        "masked_positions": np.stack(masks),
        "masked_ids": np.array([[3, 4], [5, 6]]),
        "masked_weights": np.ones((2, 2), np.float32),
        "cls_positions": np.zeros((2, 1), int),
        "nsp_labels": np.array([[0], [1]]),
        "nsp_weights": np.ones((2, 1), np.float32),
    }
    join = lambda a, b: np.pad(np.concatenate([a[:first], b[:second]]), (0, 2))[None]  # noqa: E731
    packed = {name: join(*single[name]) for name in ENCODED} | {
        "segment_ids": join(single["segment_ids"][0], 2 * single["segment_ids"][1]),
        "masked_positions": np.concatenate([masks[0], masks[1] + first])[None],
        "cls_positions": np.array([[0, first]]),
    }
    packed |= {n: single[n].reshape(1, -1) for n in ("masked_ids", "masked_weights", "nsp_labels", "nsp_weights")}
    objective = build(MlmNspObjective())
    params = jax.jit(lambda key: init_params(config, objective.heads, 2, key))(jax.random.key(0))
    terms = jax.jit(lambda batch: objective.losses(build_model(config, objective.heads, params), batch, None))
    found, expected = terms(packed), terms(single)
    for name in ("mlm", "nsp"):
        np.testing.assert_allclose(found[name].loss, expected[name].loss, rtol=1e-5)
        assert float(found[name].weight) == float(expected[name].weight)
