"""Adapters of encoders (arXiv 1902.00751): small layers inside the frozen ones, near the identity at first."""

from typing import Any

import jax
from flax import nnx

from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.modules import Dense
from bertjax.models.layers.numerics import activation

STD = 1e-3  # init_scale of feedforward_adapter


def near_zero(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Normal, truncated at two standard deviations, as tf.truncated_normal_initializer(stddev=1e-3)."""
    return STD * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)


class Adapter(nnx.Module):
    """x [B, S, D] + output(gelu(intermediate(x))): feedforward_adapter of google-research/adapter-bert modeling.py.

    Every `tensor` shard computes all columns, which costs less than an exchange of activations.
    """

    def __init__(self, width: int, size: int, compute: ComputeOptions, rngs: nnx.Rngs):
        own = nnx.Rngs(params=rngs.peft())
        self.intermediate = Dense((width, size), ("embed", None), near_zero, compute, own)
        self.output = Dense((size, width), (None, "embed"), near_zero, compute, own)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.output(activation("gelu_new", self.intermediate(x)))


def adapt(sublayer: Any, x: jax.Array) -> jax.Array:
    """x through the adapter of a sublayer, if it has one."""
    return sublayer.adapter(x) if hasattr(sublayer, "adapter") else x
