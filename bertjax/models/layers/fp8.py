"""Products with operands in eight bits, for the dense layers of encoders and decoders (`run.dense_dtype: fp8`).

E4M3 forward and E5M2 for gradients (arXiv 2209.05433), one scale per tensor from its own largest magnitude ("current
scaling", as Transformer Engine's Float8CurrentScaling), so that there is no state beside the parameters. Quantization
is flax's (`flax.linen.fp8_ops`). Its modules have delayed scaling, whose histories of magnitudes are variables that
gradients overwrite: they do not fit parameters that are frozen, sharded and checkpointed as one flat tree.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2


def quantize_fp8(x: jax.Array, dtype: jnp.dtype | type) -> tuple[jax.Array, jax.Array]:
    """x [...] -> (x / scale in `dtype` [...], scale float32 []); the largest magnitude becomes that of `dtype`.

    A tensor with infinities or NaN has the same scale, and so only NaN: the step is skipped as in other dtypes. Under
    `jax.shard_map` the scale is that of a device's own part.
    """
    from flax.linen import fp8_ops

    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    limit = fp8_ops.get_fp8_max(dtype, jnp.float32)
    smallest = jnp.finfo(jnp.float32).tiny  # of a zero tensor
    scale = jnp.where(jnp.isfinite(largest), jnp.maximum(largest / limit, smallest), jnp.nan)
    return fp8_ops.quantize(x, dtype, scale, jnp.float32), scale


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum_fp8(spec: str, a: jax.Array, b: jax.Array, platform: str) -> jax.Array:
    """einsum(spec, a, b) with both operands, and those of gradients, in eight bits; see `numerics.einsum_lowp`.

    Operands are float32 or bfloat16; products accumulate in float32. The result is float32 on the CPU, elsewhere of
    the operands' dtype. Kept for gradients are the eight-bit operands. GPUs from compute capability 8.9 on multiply
    eight bits; other devices convert the operands and multiply those.
    """
    return _forward(spec, a, b, platform)[0]


def _forward(spec: str, a: jax.Array, b: jax.Array, platform: str) -> tuple[jax.Array, tuple]:
    (qa, scale_a), (qb, scale_b) = quantize_fp8(a, FORWARD), quantize_fp8(b, FORWARD)
    y = _product(spec, qa, qb, scale_a * scale_b, a.dtype, platform)
    return y, (qa, scale_a, qb, scale_b, jnp.zeros((), a.dtype), jnp.zeros((), b.dtype))


def _backward(spec: str, platform: str, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    qa, scale_a, qb, scale_b, like_a, like_b = saved
    left, right, out = re.split(",|->", spec)
    qg, scale_g = quantize_fp8(g, BACKWARD)
    da = _product(f"{out},{right}->{left}", qg, qb, scale_g * scale_b, like_a.dtype, platform)
    db = _product(f"{left},{out}->{right}", qa, qg, scale_a * scale_g, like_b.dtype, platform)
    return da.astype(like_a.dtype), db.astype(like_b.dtype)


def _product(spec: str, a: jax.Array, b: jax.Array, scale: jax.Array, dtype: jnp.dtype, platform: str) -> jax.Array:
    """The eight-bit operands go into the dot as they are: XLA makes it one call of cuBLASLt."""
    dtype = jnp.dtype(jnp.float32) if platform == "cpu" else dtype
    return (jnp.einsum(spec, a, b, preferred_element_type=dtype) * scale).astype(dtype)


einsum_fp8.defvjp(_forward, _backward)
