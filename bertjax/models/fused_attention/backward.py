"""The backward kernel: recomputes the probabilities of a block and adds up all gradients in one pass."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bertjax.models.fused_attention.block import dot, keep_block, may_see
from bertjax.models.fused_attention.distance_bias import add_block, diagonal_index
from bertjax.models.fused_attention.forward import for_heads
from bertjax.models.fused_attention.options import MASK_VALUE, FusedOptions
from bertjax.models.fused_attention.transposed import block_at, block_scores


def run_backward(
    scalars: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, query_ids: jax.Array, key_codes: jax.Array,
    diagonals: jax.Array | None, out: jax.Array, statistics: jax.Array, g: jax.Array, options: FusedOptions,
) -> tuple[jax.Array, ...]:  # fmt: skip
    """As `run_forward`, with its results; g [B, H, K, Q] is the gradient of the output.

    -> gradients of q, k, v and, with a bias, of its diagonals (float32, summed over B).
    """
    (B, H, K, Q), S = q.shape, k.shape[3]
    bq, bk, bh = options.block_q, options.block_k, options.block_h
    last = S // bk - 1
    delta = jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32), axis=2, keepdims=True)
    # the grid goes over queries for each block of keys: the gradient of queries is complete in the last round
    of_queries = pl.BlockSpec((1, bh, K, bq), lambda h, b, j, i, *_: (b, h, 0, i))
    of_keys = pl.BlockSpec((1, bh, K, bk), lambda h, b, j, i, *_: (b, h, 0, j))
    of_rows = pl.BlockSpec((1, bh, 1, bq), lambda h, b, j, i, *_: (b, h, 0, i))
    specs = [
        of_queries, of_keys, of_keys,
        pl.BlockSpec((1, 1, bq), lambda h, b, j, i, *_: (b, 0, i)),
        pl.BlockSpec((1, 1, bk), lambda h, b, j, i, *_: (b, 0, j)),
        of_rows, of_rows, of_queries,
    ]  # fmt: skip
    inputs = [q, k, v, query_ids, key_codes, statistics, delta, g]
    complete = pl.BlockSpec((1, bh, K, bq), lambda h, b, j, i, *_: (b, h, 0, jnp.where(j == last, i, 0)))
    outs = [complete, of_keys, of_keys]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    if diagonals is not None:
        whole = pl.BlockSpec((bh, *diagonals.shape[1:]), lambda h, b, j, i, *_: (h, 0, 0, 0))
        specs.append(whole)
        inputs.append(diagonals)
        outs.append(whole)
        shapes.append(jax.ShapeDtypeStruct(diagonals.shape, jnp.float32))
    scratch = [pltpu.VMEM(shape, jnp.float32) for shape in ((bh, Q // bq, K, bq), (bh, K, bk), (bh, K, bk))]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(H // bh, B, S // bk, Q // bq),
        in_specs=specs,
        out_specs=outs,
        scratch_shapes=scratch,
    )
    return pl.pallas_call(
        partial(_kernel, options=options, keys=S, queries=Q, biased=diagonals is not None),
        grid_spec=grid,
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=10 * B * H * Q * S * K,
            transcendentals=B * H * Q * S,
            bytes_accessed=(3 * q.size + 4 * k.size) * q.dtype.itemsize + 8 * B * H * Q,
        ),
        interpret=options.interpret,
        name="fused_attention_backward",
    )(scalars, *inputs)


def _kernel(scalars: Any, *refs: Any, options: FusedOptions, queries: int, keys: int, biased: bool) -> None:
    q, k, v, query_ids, key_codes, statistics, delta, g, *rest = refs
    diagonals, rest = (rest[0], rest[1:]) if biased else (None, rest)
    dq, dk, dv = rest[:3]
    sum_q, sum_k, sum_v = rest[-3:]
    block_h, b, j, i = (pl.program_id(axis) for axis in range(4))
    seeds = scalars[0].astype(jnp.uint32), scalars[1].astype(jnp.uint32)
    last_query, last_key = queries // options.block_q - 1, keys // options.block_k - 1
    dtype = q.dtype

    def head(h: jax.Array) -> None:
        head = scalars[3] + block_h * options.block_h + h
        at = block_at(scalars[2] + b, head, i, j, options)
        diagonal = None if diagonals is None else diagonals[h, diagonal_index(i, j, queries, options)]
        scores = block_scores(q[0, h], k[0, h], query_ids[0], key_codes[0], diagonal, at, options)
        row = statistics[0, h]
        alive = row > MASK_VALUE / 2
        # probabilities over the share that is kept; of a query without a visible key, 1
        p = jnp.exp(scores - (jnp.maximum(row, MASK_VALUE) + jnp.log(1.0 - options.rate)))
        g32 = g[0, h].astype(jnp.float32)
        g_scores = jnp.where(alive, g32, 0.0).astype(dtype)
        g_values = jnp.where(alive, g32, g32 * (MASK_VALUE / (row * (1.0 - options.rate)))).astype(dtype)
        dp = dot(v[0, h], g_scores, 0, 0)
        kept = p
        if options.rate > 0:
            keep = keep_block(seeds, at, options)
            dp, kept = jnp.where(keep, dp, 0.0), jnp.where(keep, p, 0.0)
        ds = p * (dp - jnp.where(alive, delta[0, h] * (1.0 - options.rate), 0.0))
        low = ds.astype(dtype)
        sum_v[h] += dot(g_values, kept.astype(dtype), 1, 1)
        sum_k[h] += dot(q[0, h], low, 1, 1)
        sum_q[h, i] += dot(k[0, h], low, 1, 0)
        if biased:
            add_block(ds, rest[3].at[h, diagonal_index(i, j, queries, options)])

    @pl.when(i == 0)
    def _() -> None:
        sum_k[...] = jnp.zeros(sum_k.shape, jnp.float32)
        sum_v[...] = jnp.zeros(sum_v.shape, jnp.float32)

    @pl.when((i == 0) & (j == 0))
    def _() -> None:
        sum_q[...] = jnp.zeros(sum_q.shape, jnp.float32)

    if biased:

        @pl.when((b == 0) & (i == 0) & (j == 0))
        def _() -> None:
            rest[3][...] = jnp.zeros(rest[3].shape, jnp.float32)

    if options.skips:
        seen = may_see(i * options.block_q, j * options.block_k, options)
        pl.when(seen)(lambda: for_heads(head, options.block_h))
    else:
        for_heads(head, options.block_h)

    @pl.when(i == last_query)
    def _() -> None:
        dk[0] = (sum_k[...] * options.scale).astype(dk.dtype)
        dv[0] = sum_v[...].astype(dv.dtype)

    @pl.when(j == last_key)
    def _() -> None:
        dq[0] = (sum_q[:, i] * options.scale).astype(dq.dtype)
