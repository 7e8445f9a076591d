"""Contractions with low-precision gradients, norms and activations."""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

REMAT_NAME = "matmul"  # saved by remat: dots; jax's own policies do not look inside `einsum_lowp`
ROWS_OF_ONES = 8  # matrix-vector products have no bfloat16 kernel on the CPU


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum_lowp(spec: str, a: jax.Array, b: jax.Array, platform: str) -> jax.Array:
    """einsum(spec, a, b) whose gradient dots also have operands of this dtype and accumulate in float32.

    Autodiff of a bfloat16 dot with float32 accumulation gives float32 x bfloat16 dots, which do not use matrix units.
    The result is float32 on the CPU (the only fast form there), elsewhere of the operands' dtype. `spec` must not sum
    an index of only one operand.
    """
    accumulate = jnp.float32 if platform == "cpu" else a.dtype
    return jnp.einsum(spec, a, b, preferred_element_type=accumulate)


def _einsum_lowp_forward(spec: str, a: jax.Array, b: jax.Array, platform: str) -> tuple[jax.Array, tuple]:
    return einsum_lowp(spec, a, b, platform), (a, b)


def _einsum_lowp_backward(spec: str, platform: str, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = saved
    left, right, out = re.split(",|->", spec)
    g = g.astype(a.dtype)
    da = jnp.einsum(f"{out},{right}->{left}", g, b, preferred_element_type=jnp.float32)
    batch = "".join(i for i in right if i in left and i in out)
    if batch:
        db = _batched_gradient(spec, batch, a, g, platform)
    else:
        db = jnp.einsum(f"{left},{out}->{right}", a, g, preferred_element_type=jnp.float32)
    return da.astype(a.dtype), db.astype(b.dtype)


def _batched_gradient(spec: str, batch: str, a: jax.Array, g: jax.Array, platform: str) -> jax.Array:
    """einsum(left,out->right) with the summed index last in the first operand, as the CPU's matrix units need it."""
    left, right, out = re.split(",|->", spec)
    rows, columns = right[-1], next(i for i in right[:-1] if i not in batch)
    summed = next(i for i in left if i in out and i not in batch)
    (first, x), (second, y) = ((left, a), (out, g)) if rows in left else ((out, g), (left, a))
    x = jnp.einsum(f"{first}->{batch}{rows}{summed}", x)
    y = jnp.einsum(f"{second}->{batch}{summed}{columns}", y)
    spec = f"{batch}{rows}{summed},{batch}{summed}{columns}->{batch}{rows}{columns}"
    found = jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
    if platform == "cpu":  # else the simplifier folds the transpose into the dot and swaps its operands
        found = lax.optimization_barrier(found)
    return jnp.einsum(f"{batch}{rows}{columns}->{right}", found)


einsum_lowp.defvjp(_einsum_lowp_forward, _einsum_lowp_backward)


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y [..., *F] + bias [*F]; the bias gradient is a dot with ones, faster than a column reduction."""
    return y + bias.astype(y.dtype)


def _column_sum(g: jax.Array, trailing: int) -> jax.Array:
    flat = g.reshape(-1, *g.shape[g.ndim - trailing :])
    ones = jnp.ones((ROWS_OF_ONES, flat.shape[0]), g.dtype)
    sums = lax.dot_general(ones, flat, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return sums[0]


def _add_bias_forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return add_bias(y, bias), bias


def _add_bias_backward(bias: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return g, _column_sum(g.astype(bias.dtype), bias.ndim).astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer norm over the last axis: statistics in float32, result in x's dtype (arXiv 1607.06450)."""
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> tuple[jax.Array, tuple]:
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    inverse = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    y = (centred * inverse * scale + bias).astype(x.dtype)
    return y, (x, mean, inverse, scale)


def _layer_norm_backward(eps: float, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale = saved
    normal = (x.astype(jnp.float32) - mean) * inverse
    g32 = g.astype(jnp.float32)
    d_scale = _column_sum((g32 * normal).astype(x.dtype), 1)
    d_bias = _column_sum(g.astype(x.dtype), 1)
    gs = g32 * scale
    dx = inverse * (gs - gs.mean(-1, keepdims=True) - normal * (gs * normal).mean(-1, keepdims=True))
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis: statistics in float32, result in x's dtype.

    arXiv 1910.07467; T5's layer norm (t5x layers.py LayerNorm). Saves x and the inverse root for the gradient.
    """
    return _rms_norm_forward(x, scale, eps)[0]


def _rms_norm_forward(x: jax.Array, scale: jax.Array, eps: float) -> tuple[jax.Array, tuple]:
    x32 = x.astype(jnp.float32)
    inverse = lax.rsqrt((x32 * x32).mean(-1, keepdims=True) + eps)
    return (x32 * inverse * scale).astype(x.dtype), (x, inverse, scale)


def _rms_norm_backward(eps: float, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, inverse, scale = saved
    normal = x.astype(jnp.float32) * inverse
    g32 = g.astype(jnp.float32)
    d_scale = _column_sum((g32 * normal).astype(x.dtype), 1)
    gs = g32 * scale
    dx = inverse * (gs - normal * (gs * normal).mean(-1, keepdims=True))
    return dx.astype(x.dtype), d_scale.astype(scale.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def _gelu(x: jax.Array) -> jax.Array:
    """x*Phi(x). jax.nn.gelu uses erfc, which is more accurate near 0 and takes 2.4 times as long."""
    return x * (0.5 + 0.5 * lax.erf(x * 0.7071067811865476))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_new": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def activation(name: str, x: jax.Array) -> jax.Array:
    """Computed in float32, result in x's dtype; saves only x for the gradient.

    gelu: x*Phi(x) with erf (Hugging Face BERT); gelu_new: the tanh form of google-research/bert's modeling.py; relu,
    silu and quick_gelu as in transformers' activations.py.
    """
    return ACTIVATIONS[name](x.astype(jnp.float32)).astype(x.dtype)


def _activation_forward(name: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return activation(name, x), x


def _activation_backward(name: str, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    _, pull = jax.vjp(ACTIVATIONS[name], x.astype(jnp.float32))
    return (pull(g.astype(jnp.float32))[0].astype(x.dtype),)


activation.defvjp(_activation_forward, _activation_backward)
