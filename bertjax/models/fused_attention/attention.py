"""Fused attention as one differentiable function of arrays on one device."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from bertjax.models.fused_attention import backward, forward
from bertjax.models.fused_attention import gpu as gpu_kernels
from bertjax.models.fused_attention.distance_bias import lay_out_diagonals
from bertjax.models.fused_attention.options import (
    LANES,
    FusedOptions,
    choose_block,
    choose_gpu_blocks,
    choose_heads,
)
from bertjax.models.layers.numerics import REMAT_NAME

_NO_QUERY, _NO_KEY = -3, -4  # ids of padding: not those of any key or query, also as a code


class DropoutBits(NamedTuple):
    """What decides the bits of dropout on probabilities, those of `hash_bits` for [rows, heads, queries, keys].

    Attributes:
        seeds: of `hash_seeds`, uint32 [2].
        first_row, first_head: numbers of these arrays' first row and head among those of all devices, int32 [].
        rows, heads: how many all devices have.
    """

    seeds: jax.Array
    first_row: jax.Array | int
    first_head: jax.Array | int
    rows: int
    heads: int


def fused_attention(
    q_BQHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, query_ids_BQ: jax.Array, key_ids_BS: jax.Array, *,
    scale: float, rate: float = 0.0, bits: DropoutBits | None = None, bias: jax.Array | None = None,
    causal: bool = False, prefix_BS: jax.Array | None = None, window: int | None = None, gpu: bool = False,
    interpret: bool = False, blocks: tuple[int, int, int] | None = None,
) -> jax.Array:  # fmt: skip
    """dropout(softmax(q k^T scale + bias)) v -> [B, Q, H, K] in q's dtype, without an array of scores in memory.

    FlashAttention (arXiv 2205.14135, 2307.08691): online softmax, and probabilities recomputed for gradients. Lengths
    are padded to multiples of 128. Products are in the operands' dtype (float32 or bfloat16) and accumulate in float32;
    softmax and sums are float32.

    Args:
        query_ids_BQ, key_ids_BS: int32; a query sees the keys with its id. A query without a visible key averages
            values, of all keys unless `causal` or `window` leaves out blocks; its gradients are those of that.
        rate: of dropout on the probabilities, by `bits`.
        bias: float32 [H, Q + S - 1], added to scores by distance: index Q - 1 is for key and query at one position.
        causal: a query sees no later key, except where `prefix_BS`, int [B, S], is positive.
        window: a query sees keys at most this far from it.
        gpu: use the kernels for GPUs, else those for TPUs.
        interpret: run by Pallas's interpreter, on any platform.
        blocks: (queries, keys, heads) of one invocation, divisors of the padded lengths and of H; the first two are
            multiples of 128, on GPUs powers of two.

    Raises ValueError for dropout without bits, and for `causal` or `window` where Q is not S.
    """
    (B, Q, H, K), S = q_BQHK.shape, k_BSHK.shape[1]
    if (causal or window is not None) and Q != S:
        raise ValueError(f"causal attention and windows need as many queries as keys, not {Q} and {S}")
    if rate > 0 and bits is None:
        raise ValueError("dropout needs its bits")
    more_q, more_k = -Q % LANES, -S % LANES
    if blocks is None and gpu:
        blocks = choose_gpu_blocks(K)
    elif blocks is None:
        block_q, block_k = choose_block(Q + more_q), choose_block(S + more_k)
        blocks = block_q, block_k, choose_heads(H, block_q, block_k)
    bits = DropoutBits(jnp.zeros(2, jnp.uint32), 0, 0, B, H) if bits is None else bits
    options = FusedOptions(
        scale, rate, (bits.rows, bits.heads, Q), S, causal, prefix_BS is not None, window, *blocks, gpu, interpret
    )  # fmt: skip
    seeds = lax.bitcast_convert_type(bits.seeds, jnp.int32)
    first = jnp.stack([jnp.asarray(n, jnp.int32) for n in (bits.first_row, bits.first_head)])
    codes = key_ids_BS if prefix_BS is None else 2 * key_ids_BS + (prefix_BS > 0)
    ids = _pad(query_ids_BQ, more_q, _NO_QUERY), _pad(codes, more_k, _NO_KEY)
    rows = (x.astype(jnp.int32)[:, None] for x in ids)
    if bias is not None:
        bias = jnp.pad(bias.astype(jnp.float32), ((0, 0), (more_q, more_k)))
    q, k, v = (_pad(x, more, 0) for x, more in ((q_BQHK, more_q), (k_BSHK, more_k), (v_BSHK, more_k)))
    scalars = jnp.concatenate([seeds, first])
    if gpu:
        return _attend(options, scalars, q, k, v, *rows, bias)[:, :Q]
    bias = None if bias is None else lay_out_diagonals(bias, Q + more_q, S + more_k, options)
    q, k, v = (jnp.transpose(x, (0, 2, 3, 1)) for x in (q, k, v))
    return jnp.transpose(_attend(options, scalars, q, k, v, *rows, bias), (0, 3, 1, 2))[:, :Q]


def _pad(x: jax.Array, more: int, value: int) -> jax.Array:
    """Append positions to x [B, S, ...]."""
    width = [(0, 0), (0, more), *((0, 0),) * (x.ndim - 2)]
    return jnp.pad(x, width, constant_values=value) if more else x


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    options: FusedOptions, scalars: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, query_ids: jax.Array,
    key_codes: jax.Array, bias: jax.Array | None,
) -> jax.Array:  # fmt: skip
    """Arrays in the layout of the platform's kernels."""
    return _attend_forward(options, scalars, q, k, v, query_ids, key_codes, bias)[0]


def _attend_forward(
    options: FusedOptions, scalars: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, query_ids: jax.Array,
    key_codes: jax.Array, bias: jax.Array | None,
) -> tuple[jax.Array, tuple]:  # fmt: skip
    run = gpu_kernels.run_forward if options.gpu else forward.run_forward
    out, statistics = run(scalars, q, k, v, query_ids, key_codes, bias, options)
    out, statistics = (checkpoint_name(x, REMAT_NAME) for x in (out, statistics))
    return out, (scalars, q, k, v, query_ids, key_codes, bias, out, statistics)


def _attend_backward(options: FusedOptions, saved: tuple, g: jax.Array) -> tuple[jax.Array | None, ...]:
    run: Callable[..., tuple] = gpu_kernels.run_backward if options.gpu else backward.run_backward
    dq, dk, dv, *d_bias = run(*saved, g, options)
    return None, dq, dk, dv, None, None, (d_bias[0] if d_bias else None)


_attend.defvjp(_attend_forward, _attend_backward)
