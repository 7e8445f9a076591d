"""Skip a step whose loss or gradient norm is far above those of the last steps.

The rule of OLMo's SkipStepOptimizer: a value above mean + `sigma` standard deviations of the last `window` steps is a
spike, once half of the window is filled. The window is part of the training state, so a resumed run skips the same
steps, and nothing waits for the host.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

CAP = 2.0  # a spike enters the window as at most this many limits above the mean
RELATIVE_FLOOR = 1e-6  # of the deviation, in means: equal values differ by rounding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpikeWindow:
    """The losses and gradient norms (float32 [window]) of the last steps, overwritten in a circle."""

    losses: jax.Array
    norms: jax.Array
    count: jax.Array  # int32, steps since the window was empty


@dataclass(frozen=True)
class SpikeRule:
    """When a step is a spike; `after`: the first steps of the stage, which are never skipped."""

    window: int
    sigma: float
    after: int


def empty_window(size: int) -> SpikeWindow:
    return SpikeWindow(jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.float32), jnp.int32(0))


def check(
    rule: SpikeRule, window: SpikeWindow, step: jax.Array, loss: jax.Array, norm: jax.Array
) -> tuple[jax.Array, SpikeWindow]:
    """-> (whether the step is a spike, the window with its values).

    A spike enters the window with a bounded value: one huge value would hide the next spikes, while a lasting change
    raises the limit until its steps are taken. A step that is not finite is no spike and does not enter.
    """
    loss_limit, loss_cap = _limits(rule, window.losses, window.count)
    norm_limit, norm_cap = _limits(rule, window.norms, window.count)
    ready = (window.count >= rule.window // 2) & (step >= rule.after)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    is_spike = ready & finite & ((loss > loss_limit) | (norm > norm_limit))
    place = window.count % rule.window
    bounded = lambda x, cap: jnp.where(ready, jnp.minimum(x, cap), x)  # noqa: E731
    losses = window.losses.at[place].set(bounded(loss, loss_cap))
    norms = window.norms.at[place].set(bounded(norm, norm_cap))
    kept = SpikeWindow(losses, norms, window.count + 1)
    return is_spike, jax.tree.map(lambda new, old: jnp.where(finite, new, old), kept, window)


def _limits(rule: SpikeRule, values: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-> (the value above which a step is a spike, the largest value that enters the window)."""
    known = jnp.arange(rule.window) < count
    number = jnp.maximum(jnp.minimum(count, rule.window), 2).astype(jnp.float32)
    mean = jnp.where(known, values, 0).sum() / number
    variance = jnp.where(known, jnp.square(values - mean), 0).sum() / (number - 1)
    distance = rule.sigma * jnp.maximum(jnp.sqrt(variance), RELATIVE_FLOOR * jnp.abs(mean))
    return mean + distance, mean + CAP * distance
