"""The Objective record and the sums that objectives return."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bertjax.config.schema.distillation import Distillation
from bertjax.models.registry import Module

Batch = Mapping[str, jax.Array]
FEATURES = "features"  # field of a batch with kept hidden states, see `encoder.features`
FROZEN_STATES = "frozen_states"  # the same of the frozen layers of an encoder whose upper layers train
ALL_POSITIONS = "all"
Outputs = Mapping[str, jax.Array]  # of a model for a batch, with leading axis B: "hidden" [B, S, D] and logits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossTerm:
    """Sums of one loss over a batch, float32 scalars. `correct` sums the weights of correct predictions.

    `by_task`, for batches of T tasks: float32 [T, 2], loss and weight of each. `train_loss`: the sum to train on, if
    not `loss`, such as one with regularization or other weights. `positives`, of a yes-or-no decision: float32 [3], the
    weights of true positives, predicted positives and positives. `by_score`, of one without a key: float32 [2, bins],
    the weights of negatives and positives by their score, which rises from bin to bin.
    """

    loss: jax.Array
    correct: jax.Array
    weight: jax.Array
    by_task: jax.Array | None = None
    train_loss: jax.Array | None = None
    positives: jax.Array | None = None
    by_score: jax.Array | None = None


@dataclass(frozen=True)
class SoftTargets:
    """How an objective learns a teacher's outputs: its losses in two steps, so that both read outputs computed once.

    Attributes:
        heads: of the teacher that are read.
        outputs: (model, batch, key) -> what the losses read of the model.
        losses: (outputs of the model, batch) -> the objective's own terms.
        compare: (outputs, the teacher's outputs, batch) -> (losses [B, N], whether both predict the same [B, N]).
        weights: batch -> weights of these losses, float32 [B, N].
        tokens: batch -> weights of the hidden states, float32 [B, S].
        teacher_outputs: (teacher, batch) -> what `compare` reads of it; None: `outputs` without a key.
        row_widths: {batch field: its first dimension} -> the same, as the teacher and the model compute them.
    """

    heads: tuple[str, ...]
    outputs: Callable[[Module, Batch, jax.Array | None], Outputs]
    losses: Callable[[Outputs, Batch], dict[str, LossTerm]]
    compare: Callable[[Outputs, Outputs, Batch], tuple[jax.Array, jax.Array]]
    weights: Callable[[Batch], jax.Array]
    tokens: Callable[[Batch], jax.Array] = lambda batch: (batch["segment_ids"] > 0).astype(jnp.float32)
    teacher_outputs: Callable[[Module, Batch], Outputs] | None = None
    row_widths: Callable[[dict[str, int]], dict[str, int]] = lambda widths: widths


@dataclass(frozen=True)
class Objective:
    """An objective; `normalizers` maps a global batch to {name of a loss: divisor of its sum}."""

    heads: tuple[str, ...]  # of the model that it reads
    num_labels: int  # outputs of a classifier head
    weights: Mapping[str, float]  # {name of a loss: its weight in the total loss}
    normalizers: Callable[[Batch], dict[str, jax.Array]]
    losses: Callable[[Module, Batch, jax.Array | None], dict[str, LossTerm]]  # of model, batch and key
    multi_label: bool = False  # whether a text may have several of the labels, or none
    # field of the positions [B, G] whose hidden states its losses read through `encoder.encode`, or ALL_POSITIONS;
    # None: they read more of the encoder, whose outputs cannot be kept
    kept_positions: str | None = None
    decisions: tuple[str, ...] = ()  # losses whose terms have `positives`
    # {field: (shape, dtype)} of a row -> sequences of equal length that the encoder reads one by one
    sequences: Callable[[Mapping[str, Any]], int] = lambda fields: 1
    # (model, batch of B rows of T texts) -> the vectors of the texts, float32 [B, T, D], of sentence embeddings
    vectors: Callable[[Module, Batch], jax.Array] | None = None
    # section -> how it learns a teacher's outputs; None: it cannot
    soft_targets: Callable[[Distillation], SoftTargets] | None = None
    # of a distilled one: (teacher, batch) -> fields that its `losses` read, each [B, ...], for the batch
    teach: Callable[[Module, Batch], dict[str, jax.Array]] | None = None
    # {batch field: its first dimension} -> the same, as the model computes them
    row_widths: Callable[[dict[str, int]], dict[str, int]] = lambda widths: widths

    def total_loss(self, losses: Mapping[str, LossTerm], normalizers: Mapping[str, jax.Array]) -> jax.Array:
        sums = {name: t.loss if t.train_loss is None else t.train_loss for name, t in losses.items()}
        return sum((s * sums[name] / normalizers[name] for name, s in self.weights.items()), jnp.float32(0))


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits [..., V])[target] in float32 -> [...]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - target_logits(logits, targets)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array, positive: jax.Array | float = 1.0) -> jax.Array:
    """-(positive * y log sigmoid(x) + (1 - y) log sigmoid(-x)) in float32, logits x and targets y [...] -> [...].

    As `binary_cross_entropy_with_logits` of PyTorch, whose `pos_weight` is `positive`.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return -(positive * targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))


def target_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits [..., V] at targets [...], by comparison: needs no communication when V is sharded."""
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    return jnp.where(hit, logits, 0).sum(-1)


def is_correct(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Whether no logit [..., V] exceeds the target's -> bool [...].

    Over a vocabulary, a maximum is much cheaper than an argmax, which takes a tenth of a small BERT's step on the CPU.
    """
    logits = jax.lax.stop_gradient(logits.astype(jnp.float32))
    return target_logits(logits, targets) >= logits.max(-1)


def weighted_sums(loss: jax.Array, right: jax.Array, weights: jax.Array, batch: Batch, tasks: int) -> LossTerm:
    """Weighted sums of losses [B, N] and correct predictions [B, N]."""
    by_task = None
    if tasks > 1 and "task_ids" in batch:  # an evaluation has one task
        rows = jnp.stack([(loss * weights).sum(-1), weights.sum(-1)], axis=-1)
        by_task = jnp.where(_task_membership(batch, tasks)[..., None], rows[:, None], 0).sum(0)
    return LossTerm((loss * weights).sum(), (right * weights).sum(), weights.sum(), by_task)


def _task_membership(batch: Batch, tasks: int) -> jax.Array:
    """Whether a row is of a task: bool [B, T]."""
    return batch["task_ids"][:, None] == jnp.arange(tasks)


def rows_by_task(batch: Batch, tasks: int) -> jax.Array:
    """Rows of each task in the batch: int32 [T]."""
    return _task_membership(batch, tasks).sum(0, dtype=jnp.int32)
