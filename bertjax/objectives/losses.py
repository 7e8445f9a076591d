"""Cross-entropy of text-to-text models with z-loss, label smoothing and weights of targets (t5x/losses.py).

The backward pass saves the logits, the largest array of a step, and their log normalizers: no softmax, no second copy.
"""

from functools import partial
from math import log

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def target_losses(
    logits: jax.Array, targets: jax.Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [..., V], int targets [...] -> float32 [...] three times.

    (1) The training loss: cross-entropy with the smoothed target (1 - s on it, s / (V - 1) elsewhere) minus the entropy
    of that target, plus z_loss * log_z^2. (2) The plain cross-entropy -log p(target). (3) 1 if no logit exceeds the
    target's, else 0. Only (1) has gradients (compute_weighted_cross_entropy of t5x).
    """
    return _forward(logits, targets, z_loss, label_smoothing)[0]


def _smoothed(label_smoothing: float, vocabulary: int) -> tuple[float, float, float]:
    """Probability of the target and of each other token, and the entropy of that distribution."""
    on, off = 1.0 - label_smoothing, label_smoothing / (vocabulary - 1)
    return on, off, -(on * log(on) + (vocabulary - 1) * off * log(off + 1e-20)) if label_smoothing else 0.0


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """One-hot targets [..., V] by comparison: no communication when V is sharded."""
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]


def _forward(logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float) -> tuple:
    x = logits.astype(jnp.float32)
    peak = x.max(-1)
    log_sum = jnp.log(jnp.exp(x - peak[..., None]).sum(-1))  # a second use of the difference would store it
    target = jnp.where(_is_target(x, targets), x, 0).sum(-1) - peak
    plain, log_z = log_sum - target, log_sum + peak
    trained = plain
    if label_smoothing:
        on, off, entropy = _smoothed(label_smoothing, x.shape[-1])
        trained = log_sum - (on - off) * target - off * (x - peak[..., None]).sum(-1) - entropy
    right = (target >= 0).astype(jnp.float32)
    return (trained + z_loss * log_z**2, plain, right), (logits, targets, log_z)


def _backward(z_loss: float, label_smoothing: float, saved: tuple, gradients: tuple) -> tuple[jax.Array, None]:
    logits, targets, log_z = saved
    on, off, _ = _smoothed(label_smoothing, logits.shape[-1])
    softmax = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
    wanted = jnp.where(_is_target(logits, targets), on, off)
    slope = (1 + 2 * z_loss * log_z)[..., None] * softmax - wanted
    return (gradients[0][..., None] * slope).astype(logits.dtype), None


target_losses.defvjp(_forward, _backward)


def normalize_per_sequence(weights: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Weights [B, T] divided by their sum in the example, so that each example of a packed row has weight 1.

    Padding and examples without weight have 0 (AVERAGE_PER_SEQUENCE and _sum_weights_per_segment of t5x).
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    sums = jnp.where(same, weights[:, None, :], 0).sum(-1)
    return jnp.where((segment_ids > 0) & (sums > 0), weights / jnp.maximum(sums, 1e-30), 0)
