"""What every objective returns, and the sums they share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bertjax.models.registry import Module

Batch = Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossTerm:
    """One part of an objective over a batch; float32 scalars. `correct` counts weighted right predictions.

    `by_task`, where the batch comes from several: float32 [T, 2], loss and weight of each. `train_loss`, where it is not
    `loss`: the sum that the objective adds up instead, with what regularises it and with other weights.
    """

    loss: jax.Array
    correct: jax.Array
    weight: jax.Array
    by_task: jax.Array | None = None
    train_loss: jax.Array | None = None


@dataclass(frozen=True)
class Objective:
    """Attributes:
    heads: the model heads it reads.
    weights: its losses and their share in the total loss.
    normalizers: batch -> {term: what its loss sum is divided by}, of the whole batch and before the model runs.
    losses: (model, batch, key or None) -> {term: Term}.
    """

    heads: tuple[str, ...]
    num_labels: int
    weights: Mapping[str, float]
    normalizers: Callable[[Batch], dict[str, jax.Array]]
    losses: Callable[[Module, Batch, jax.Array | None], dict[str, LossTerm]]

    def total_loss(self, losses: Mapping[str, LossTerm], normalizers: Mapping[str, jax.Array]) -> jax.Array:
        sums = {name: t.loss if t.train_loss is None else t.train_loss for name, t in losses.items()}
        return sum((s * sums[name] / normalizers[name] for name, s in self.weights.items()), jnp.float32(0))


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits [..., V])[target] in float32 -> [...]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - target_logits(logits, targets)


def target_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits [..., V] at targets [...], by comparison, which stays local when V is split over devices."""
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    return jnp.where(hit, logits, 0).sum(-1)


def is_correct(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Whether no logit [..., V] exceeds the target's -> bool [...].

    Over a vocabulary a maximum is much cheaper than an argmax, a tenth of a small BERT's whole step on the CPU.
    """
    logits = jax.lax.stop_gradient(logits.astype(jnp.float32))
    return target_logits(logits, targets) >= logits.max(-1)


def weighted_sums(loss: jax.Array, right: jax.Array, weights: jax.Array, batch: Batch, tasks: int) -> LossTerm:
    """Sums over losses [B, N] with their weights."""
    by_task = None
    if tasks > 1 and "task_ids" in batch:  # an evaluation has one task
        rows = jnp.stack([(loss * weights).sum(-1), weights.sum(-1)], axis=-1)
        by_task = jnp.where(_task_membership(batch, tasks)[..., None], rows[:, None], 0).sum(0)
    return LossTerm((loss * weights).sum(), (right * weights).sum(), weights.sum(), by_task)


def _task_membership(batch: Batch, tasks: int) -> jax.Array:
    """Which task each row comes from: bool [B, T]."""
    return batch["task_ids"][:, None] == jnp.arange(tasks)


def rows_by_task(batch: Batch, tasks: int) -> jax.Array:
    """How many rows each task has in the batch: int32 [T]."""
    return _task_membership(batch, tasks).sum(0, dtype=jnp.int32)
