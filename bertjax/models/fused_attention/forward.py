"""The forward kernel: online softmax over blocks of keys (arXiv 2205.14135)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bertjax.models.fused_attention.block import dot, keep_block, may_see
from bertjax.models.fused_attention.distance_bias import diagonal_index
from bertjax.models.fused_attention.options import MASK_VALUE, FusedOptions
from bertjax.models.fused_attention.transposed import block_at, block_scores


def run_forward(
    scalars: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, query_ids: jax.Array, key_codes: jax.Array,
    diagonals: jax.Array | None, options: FusedOptions,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """scalars int32 [4] (two seeds, first row and head), q [B, H, K, Q], k, v [B, H, K, S], ids int32 [B, 1, Q].

    -> output [B, H, K, Q], statistics float32 [B, H, 1, Q]: the logarithm of each query's sum of exponentials; for a
    query without a visible key, `MASK_VALUE` times the number of keys.
    """
    (B, H, K, Q), S = q.shape, k.shape[3]
    bq, bk, bh = options.block_q, options.block_k, options.block_h
    of_queries = pl.BlockSpec((1, bh, K, bq), lambda h, b, i, j, *_: (b, h, 0, i))
    of_keys = pl.BlockSpec((1, bh, K, bk), lambda h, b, i, j, *_: (b, h, 0, j))
    specs = [
        of_queries, of_keys, of_keys,
        pl.BlockSpec((1, 1, bq), lambda h, b, i, j, *_: (b, 0, i)),
        pl.BlockSpec((1, 1, bk), lambda h, b, i, j, *_: (b, 0, j)),
    ]  # fmt: skip
    inputs = [q, k, v, query_ids, key_codes]
    if diagonals is not None:
        specs.append(pl.BlockSpec((bh, *diagonals.shape[1:]), lambda h, b, i, j, *_: (h, 0, 0, 0)))
        inputs.append(diagonals)
    scratch = [pltpu.VMEM(shape, jnp.float32) for shape in ((bh, 1, bq), (bh, 1, bq), (bh, K, bq))]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(H // bh, B, Q // bq, S // bk),
        in_specs=specs,
        out_specs=[of_queries, pl.BlockSpec((1, bh, 1, bq), lambda h, b, i, j, *_: (b, h, 0, i))],
        scratch_shapes=scratch if S > bk else [],
    )
    return pl.pallas_call(
        partial(_kernel, options=options, keys=S, queries=Q, biased=diagonals is not None),
        grid_spec=grid,
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, H, 1, Q), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * B * H * Q * S * K,
            transcendentals=B * H * Q * S,
            bytes_accessed=2 * (q.size + k.size) * q.dtype.itemsize + 4 * B * H * Q,
        ),
        interpret=options.interpret,
        name="fused_attention_forward",
    )(scalars, *inputs)


def _kernel(scalars: Any, *refs: Any, options: FusedOptions, queries: int, keys: int, biased: bool) -> None:
    q, k, v, query_ids, key_codes, *rest = refs
    diagonals, (out, statistics, *scratch) = (rest[0], rest[1:]) if biased else (None, rest)
    block_h, b, i, j = (pl.program_id(axis) for axis in range(4))
    seeds = scalars[0].astype(jnp.uint32), scalars[1].astype(jnp.uint32)
    last = keys // options.block_k - 1

    def finish(h: jax.Array, m: jax.Array, total: jax.Array, acc: jax.Array) -> None:
        out[0, h] = (acc / (total * (1.0 - options.rate))).astype(out.dtype)
        statistics[0, h] = jnp.where(m > MASK_VALUE / 2, m + jnp.log(total), MASK_VALUE * total)

    def head(h: jax.Array) -> None:
        head = scalars[3] + block_h * options.block_h + h
        at = block_at(scalars[2] + b, head, i, j, options)
        diagonal = None if diagonals is None else diagonals[h, diagonal_index(i, j, queries, options)]
        scores = block_scores(q[0, h], k[0, h], query_ids[0], key_codes[0], diagonal, at, options)
        m = jnp.max(scores, axis=0, keepdims=True)
        if scratch:
            m = jnp.maximum(scratch[0][h], m)
        p = jnp.exp(scores - m)
        total = jnp.sum(p, axis=0, keepdims=True)
        if options.rate > 0:
            p = jnp.where(keep_block(seeds, at, options), p, 0.0)
        acc = dot(v[0, h], p.astype(v.dtype), 1, 0)
        if not scratch:
            finish(h, m, total, acc)
            return
        grown = jnp.exp(scratch[0][h] - m)
        scratch[0][h] = m
        scratch[1][h] = scratch[1][h] * grown + total
        scratch[2][h] = scratch[2][h] * grown + acc

    if scratch:

        @pl.when(j == 0)
        def _() -> None:
            scratch[0][...] = jnp.full(scratch[0].shape, -jnp.inf, jnp.float32)
            scratch[1][...] = jnp.zeros(scratch[1].shape, jnp.float32)
            scratch[2][...] = jnp.zeros(scratch[2].shape, jnp.float32)

    if options.skips and scratch:
        seen = may_see(i * options.block_q, j * options.block_k, options)
        pl.when(seen)(lambda: for_heads(head, options.block_h))
    else:
        for_heads(head, options.block_h)
    if scratch:

        @pl.when(j == last)
        def _() -> None:
            for_heads(lambda h: finish(h, *(x[h] for x in scratch)), options.block_h)


def for_heads(body: Any, count: int) -> None:
    """body(h) for each head of an invocation."""
    if count == 1:
        body(0)
    else:
        lax.fori_loop(0, count, lambda h, _: (body(h), 0)[1], 0)
