"""Building blocks: contractions with low-precision gradients, dense, layer norm, dropout and activations."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from bertjax.models.execution import Execution
from bertjax.models.positions import leave
from bertjax.parallel.mesh import gathered, own_part, whole

Initializer = Callable[..., jax.Array]
KEPT = "matmul"  # what remat "dots" keeps; jax's own policies do not look into `contract`
ROWS_OF_ONES = 8  # a single row would be a matrix-vector product, which has no bfloat16 kernel on the CPU


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contract(spec: str, a: jax.Array, b: jax.Array, platform: str) -> jax.Array:
    """`einsum(spec, a, b)` whose gradient dots also run in the operands' dtype, accumulating in float32.

    Plain autodiff of a float32-accumulating bfloat16 dot transposes to float32 x bfloat16 dots, which miss the matrix
    units. On the CPU the result stays float32 (the only fast form there), elsewhere it has the operands' dtype.
    `spec` must not sum an index that only one operand has.
    """
    accumulate = jnp.float32 if platform == "cpu" else a.dtype
    return jnp.einsum(spec, a, b, preferred_element_type=accumulate)


def _contract_forward(spec: str, a: jax.Array, b: jax.Array, platform: str) -> tuple[jax.Array, tuple]:
    return contract(spec, a, b, platform), (a, b)


def _contract_backward(spec: str, platform: str, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
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
    """einsum(left,out->right) with the summed index last in the first operand, which the CPU's matrix units ask for."""
    left, right, out = re.split(",|->", spec)
    rows, columns = right[-1], next(i for i in right[:-1] if i not in batch)
    summed = next(i for i in left if i in out and i not in batch)
    (first, x), (second, y) = ((left, a), (out, g)) if rows in left else ((out, g), (left, a))
    x = jnp.einsum(f"{first}->{batch}{rows}{summed}", x)
    y = jnp.einsum(f"{second}->{batch}{summed}{columns}", y)
    spec = f"{batch}{rows}{summed},{batch}{summed}{columns}->{batch}{rows}{columns}"
    found = jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
    if platform == "cpu":  # or the simplifier folds the transposition below into the dot, and swaps the operands back
        found = lax.optimization_barrier(found)
    return jnp.einsum(f"{batch}{rows}{columns}->{right}", found)


contract.defvjp(_contract_forward, _contract_backward)


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y [..., *F] + bias [*F]; the bias gradient is a dot with ones, which is faster than a column reduction."""
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
    """Layer normalisation over the last axis: statistics in float32, result in x's dtype (arXiv 1607.06450)."""
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

    arXiv 1910.07467; T5's layer norm (t5x layers.py LayerNorm). Only x and the inverse root are kept.
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


def _mix(h: jax.Array) -> jax.Array:
    """lowbias32 (Chris Wellons' hash-prospector): every input bit flips each output bit with probability near 1/2."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


def hash_bits(key: jax.Array, shape: tuple[int, ...], names: Sequence[str | None] = ("batch",)) -> jax.Array:
    """Random uint32 [*shape] from a key and the element's global coordinates: the same bits under any sharding.

    Purely elementwise, so the compiler fuses it into its consumer and recomputes it in the backward pass. `names` are
    the logical axes, None for those left out: inside `jax.shard_map` they tell which part of the whole this is.
    """
    seeds = jax.random.bits(key, (2,), jnp.uint32)
    names = (*names, *(None,) * (len(shape) - len(names)))

    def coordinate(shape: tuple[int, ...], axis: int) -> tuple[int, jax.Array]:
        parts, part = own_part(names[axis])
        place = lax.broadcasted_iota(jnp.uint32, shape, axis)
        if parts > 1:
            place = place + jnp.asarray(part, jnp.uint32) * jnp.uint32(shape[axis])
        return parts * shape[axis], place

    row = jnp.zeros(shape[:-1] + (1,), jnp.uint32) + seeds[0]
    for axis in range(len(shape) - 1):
        count, place = coordinate(row.shape, axis)
        row = row * jnp.uint32(count) + place
    _, column = coordinate(shape, len(shape) - 1)
    return _mix(_mix(row) ^ (column * jnp.uint32(0x9E3779B9) + seeds[1]))


def dropout(
    x: jax.Array, rate: float, key: jax.Array | None, execution: Execution, *, along_length: bool = False,
    names: Sequence[str | None] = ("batch", "sequence"),
) -> jax.Array:  # fmt: skip
    """Inverted dropout (arXiv 1207.0580); no key means evaluation. `names` are logical axes, as of `hash_bits`.

    `along_length` draws one mask for the whole next to last axis, as T5 does (t5x network.py: broadcast_dims=(-2,)).
    """
    if key is None or rate == 0.0:
        return x
    shape = (*x.shape[:-2], 1, x.shape[-1]) if along_length else x.shape
    if along_length:  # the one mask is that of every part
        names = [None if axis == x.ndim - 2 else name for axis, name in enumerate(names)]
    if execution.dropout_rng == "threefry":
        keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    else:
        keep = hash_bits(key, shape, names) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


def _gelu(x: jax.Array) -> jax.Array:
    """x*Phi(x). jax's own form takes erfc: relative accuracy where the result is next to 0, at 2.4 times the cost."""
    return x * (0.5 + 0.5 * lax.erf(x * 0.7071067811865476))


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": _gelu, "gelu_new": jax.nn.gelu, "relu": jax.nn.relu, "silu": jax.nn.silu, "quick_gelu": _quick_gelu,
}  # fmt: skip


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def activation(name: str, x: jax.Array) -> jax.Array:
    """Computed in float32, result in x's dtype; only x is kept for the gradient, not the float32 steps between.

    gelu: x*Phi(x) by erf (Hugging Face BERT); gelu_new: the tanh form of google-research/bert's modeling.py; relu, silu
    and quick_gelu as in transformers' activations.py.
    """
    return ACTIVATIONS[name](x.astype(jnp.float32)).astype(x.dtype)


def _activation_forward(name: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return activation(name, x), x


def _activation_backward(name: str, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    _, pull = jax.vjp(ACTIVATIONS[name], x.astype(jnp.float32))
    return (pull(g.astype(jnp.float32))[0].astype(x.dtype),)


activation.defvjp(_activation_forward, _activation_backward)


def axes(*names: str | None) -> dict[str, tuple[str | None, ...]]:
    return {"out_sharding": names}


class Dense(nnx.Module):
    """y [B, S, *out] = x [B, S, D] @ kernel [D, *out] + bias [*out], in the execution's dtype."""

    def __init__(self, shape: tuple[int, ...], names: tuple[str | None, ...], init: Initializer, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32), **axes(*names))
        self.bias = nnx.Param(jnp.zeros(shape[1:], jnp.float32), **axes(*names[1:]))
        self.names = names

    def __call__(self, x: jax.Array, execution: Execution) -> jax.Array:
        kernel = gathered(self.kernel[...].astype(execution.dtype), *self.names)
        out = "tf" if kernel.ndim == 3 else "f"
        lead = "bs"[: x.ndim - 1]
        y = contract(f"{lead}d,d{out}->{lead}{out}", x, kernel, execution.platform)
        y = checkpoint_name(leave(y, self.names), KEPT)
        return add_bias(y, whole(self.bias[...], *self.names[1:])).astype(execution.dtype)


class LayerNorm(nnx.Module):
    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32), **axes(None))
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32), **axes(None))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


class Linear(nnx.Module):
    """y [B, S, F] = x [B, S, D] @ kernel [D, F] without a bias, in the execution's dtype."""

    def __init__(self, shape: tuple[int, int], names: tuple[str | None, str | None], std: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.normal(std)(rngs.params(), shape, jnp.float32), **axes(*names))
        self.names = names

    def __call__(self, x: jax.Array, execution: Execution) -> jax.Array:
        kernel = gathered(self.kernel[...].astype(execution.dtype), *self.names)
        y = leave(contract("bsd,df->bsf", x, kernel, execution.platform), self.names)
        return checkpoint_name(y, KEPT).astype(execution.dtype)


class RmsNorm(nnx.Module):
    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32), **axes(None))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.eps)
