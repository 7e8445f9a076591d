"""The kernels for GPUs, by Pallas Triton: arrays stay [B, S, H, K], and an invocation loops over the other sequence.

Gradients have one kernel over blocks of keys, one over blocks of queries and one over the diagonals of the bias, each
of which recomputes the probabilities; so none needs atomic additions, and results are the same in every run.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bertjax.models.fused_attention.block import Block, dot, finish_scores, keep_block, positions
from bertjax.models.fused_attention.options import MASK_VALUE, FusedOptions


def run_forward(
    scalars: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, query_ids: jax.Array, key_codes: jax.Array,
    values: jax.Array | None, options: FusedOptions,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """As forward.py, with q [B, Q, H, K], k, v [B, S, H, K] and the bias by distance, float32 [H, Q + S - 1]."""
    B, Q, H, K = q.shape
    statistics = jax.ShapeDtypeStruct((B, H, 1, Q), jnp.float32)
    specs = _Specs(q, k, values, options)
    return _call(
        _forward_kernel, "fused_attention_forward", (B, H, Q // options.block_q), options, values is not None,
        inputs=[scalars, q, k, v, query_ids, key_codes, *([] if values is None else [values])],
        in_specs=[specs.scalars, specs.q_block, specs.k_all, specs.k_all, specs.q_ids, specs.k_ids, *specs.values],
        out_specs=[specs.q_block, specs.row_block],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), statistics],
    )  # fmt: skip


def run_backward(
    scalars: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, query_ids: jax.Array, key_codes: jax.Array,
    values: jax.Array | None, out: jax.Array, statistics: jax.Array, g: jax.Array, options: FusedOptions,
) -> tuple[jax.Array, ...]:  # fmt: skip
    """As backward.py, with the arrays of `run_forward` -> gradients of q, k, v and, with a bias, of its values."""
    (B, Q, H, _), S = q.shape, k.shape[1]
    delta = jnp.einsum("bqhk,bqhk->bhq", out.astype(jnp.float32), g.astype(jnp.float32))[:, :, None]
    specs = _Specs(q, k, values, options)
    biased = values is not None
    inputs = [scalars, q, k, v, query_ids, key_codes, statistics, delta, g, *([] if values is None else [values])]
    of = lambda *chosen: [specs.scalars, *chosen, *specs.values]  # noqa: E731
    alike = lambda *arrays: [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]  # noqa: E731
    (dq,) = _call(
        _query_kernel, "fused_attention_backward_query", (B, H, Q // options.block_q), options, biased,
        inputs=inputs, out_specs=[specs.q_block], out_shape=alike(q),
        in_specs=of(
            specs.q_block, specs.k_all, specs.k_all, specs.q_ids, specs.k_ids, specs.row_block, specs.row_block,
            specs.q_block,
        ),
    )  # fmt: skip
    dk, dv = _call(
        _key_kernel, "fused_attention_backward_key", (B, H, S // options.block_k), options, biased,
        inputs=inputs, out_specs=[specs.k_block, specs.k_block], out_shape=alike(k, v),
        in_specs=of(
            specs.q_all, specs.k_block, specs.k_block, specs.q_ids, specs.k_ids, specs.row_all, specs.row_all,
            specs.q_all,
        ),
    )  # fmt: skip
    if not biased:
        return dq, dk, dv
    count = (Q - options.block_q + S - options.block_k) // options.step + 1
    shape = (H, count, options.block_q, options.block_k)
    (sums,) = _call(
        partial(_bias_kernel, rows=B, queries=Q, keys=S), "fused_attention_backward_bias", (H, count), options, True,
        inputs=inputs, out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32)],
        out_specs=[pl.BlockSpec((None, None, *shape[2:]), lambda h, d: (h, d, 0, 0))],
        in_specs=specs.of_bias(B),
    )  # fmt: skip
    return dq, dk, dv, _sum_diagonals(sums, Q, S, options)


class _Specs:
    """Block specifications for a grid (row, head, block)."""

    def __init__(self, q: jax.Array, k: jax.Array, values: jax.Array | None, options: FusedOptions):
        (_, Q, _, K), S = q.shape, k.shape[1]
        self.scalars = pl.BlockSpec((4,), lambda *_: (0,))
        self.q_block = pl.BlockSpec((None, options.block_q, None, K), lambda b, h, i: (b, i, h, 0))
        self.k_block = pl.BlockSpec((None, options.block_k, None, K), lambda b, h, i: (b, i, h, 0))
        self.q_all = pl.BlockSpec((None, Q, None, K), lambda b, h, i: (b, 0, h, 0))
        self.k_all = pl.BlockSpec((None, S, None, K), lambda b, h, i: (b, 0, h, 0))
        self.q_ids = pl.BlockSpec((None, None, Q), lambda b, h, i: (b, 0, 0))
        self.k_ids = pl.BlockSpec((None, None, S), lambda b, h, i: (b, 0, 0))
        self.row_block = pl.BlockSpec((None, None, None, options.block_q), lambda b, h, i: (b, h, 0, i))
        self.row_all = pl.BlockSpec((None, None, None, Q), lambda b, h, i: (b, h, 0, 0))
        self.width = 0 if values is None else values.shape[1]
        self.values = [] if values is None else [pl.BlockSpec((None, self.width), lambda b, h, i: (h, 0))]
        self.sizes = Q, S, K

    def of_bias(self, rows: int) -> list[pl.BlockSpec]:
        """For a grid (head, diagonal), which reads all rows."""
        Q, S, K = self.sizes
        queries = pl.BlockSpec((rows, Q, None, K), lambda h, d: (0, 0, h, 0))
        keys = pl.BlockSpec((rows, S, None, K), lambda h, d: (0, 0, h, 0))
        ids = [pl.BlockSpec((rows, None, n), lambda h, d: (0, 0, 0)) for n in (Q, S)]
        row = pl.BlockSpec((rows, None, None, Q), lambda h, d: (0, h, 0, 0))
        values = pl.BlockSpec((None, self.width), lambda h, d: (h, 0))
        return [self.scalars, queries, keys, keys, *ids, row, row, queries, values]


def _call(
    kernel: Any, name: str, grid: tuple[int, ...], options: FusedOptions, biased: bool, *, inputs: list[jax.Array],
    in_specs: list[pl.BlockSpec], out_specs: list[pl.BlockSpec], out_shape: list[jax.ShapeDtypeStruct],
) -> Any:  # fmt: skip
    run = pl.pallas_call(
        partial(kernel, options=options, biased=biased),
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=options.interpret,
        name=name,
    )
    return run(*inputs)


def _forward_kernel(scalars: Any, q: Any, k: Any, v: Any, query_ids: Any, key_codes: Any, *rest: Any,
                    options: FusedOptions, biased: bool) -> None:  # fmt: skip
    values, (out, statistics) = (rest[0], rest[1:]) if biased else (None, rest)
    b, h, i = (pl.program_id(axis) for axis in range(3))
    bq, bk = options.block_q, options.block_k
    queries = q[...]
    ids = _slice(query_ids, i, bq)[:, None]

    def step(j: jax.Array, carry: tuple) -> tuple:
        m, total, acc = carry
        at = Block(scalars[2] + b, scalars[3] + h, positions(i * bq, (bq, 1)), positions(j * bk, (1, bk)))
        scores = dot(queries, _slice(k, j, bk), 1, 1)
        bias = _bias(values, at, query_ids.shape[-1])
        scores = finish_scores(scores, ids, _slice(key_codes, j, bk)[None], bias, at, options)
        grown = jnp.maximum(m, jnp.max(scores, axis=1))
        p = jnp.exp(scores - grown[:, None])
        shrunk = jnp.exp(m - grown)
        total = total * shrunk + jnp.sum(p, axis=1)
        if options.rate > 0:
            p = jnp.where(keep_block(_seeds(scalars), at, options), p, 0.0)
        acc = acc * shrunk[:, None] + dot(p.astype(v.dtype), _slice(v, j, bk), 1, 0)
        return grown, total, acc

    zeros = jnp.zeros(bq, jnp.float32)
    first, last = _range(i, bq, bk, k.shape[0] // bk, options, of_queries=True)
    m, total, acc = lax.fori_loop(first, last, step, (zeros - jnp.inf, zeros, jnp.zeros(queries.shape, jnp.float32)))
    out[...] = (acc / (total * (1.0 - options.rate))[:, None]).astype(out.dtype)
    statistics[...] = jnp.where(m > MASK_VALUE / 2, m + jnp.log(total), MASK_VALUE * total)


def _query_kernel(scalars: Any, q: Any, k: Any, v: Any, query_ids: Any, key_codes: Any, statistics: Any, delta: Any,
                  g: Any, *rest: Any, options: FusedOptions, biased: bool) -> None:  # fmt: skip
    values, (dq,) = (rest[0], rest[1:]) if biased else (None, rest)
    b, h, i = (pl.program_id(axis) for axis in range(3))
    bq, bk = options.block_q, options.block_k
    queries, ids = q[...], _slice(query_ids, i, bq)[:, None]
    rows = _Rows(statistics[...], delta[...], g[...], options)

    def step(j: jax.Array, total: jax.Array) -> jax.Array:
        at = Block(scalars[2] + b, scalars[3] + h, positions(i * bq, (bq, 1)), positions(j * bk, (1, bk)))
        keys = _slice(k, j, bk)
        scores = dot(queries, keys, 1, 1)
        bias = _bias(values, at, query_ids.shape[-1])
        scores = finish_scores(scores, ids, _slice(key_codes, j, bk)[None], bias, at, options)
        ds = rows.gradient(scores, dot(rows.g, _slice(v, j, bk), 1, 1), _seeds(scalars), at)[0]
        return total + dot(ds.astype(q.dtype), keys, 1, 0)

    first, last = _range(i, bq, bk, k.shape[0] // bk, options, of_queries=True)
    total = lax.fori_loop(first, last, step, jnp.zeros(queries.shape, jnp.float32))
    dq[...] = (total * options.scale).astype(dq.dtype)


def _key_kernel(scalars: Any, q: Any, k: Any, v: Any, query_ids: Any, key_codes: Any, statistics: Any, delta: Any,
                g: Any, *rest: Any, options: FusedOptions, biased: bool) -> None:  # fmt: skip
    values, (dk, dv) = (rest[0], rest[1:]) if biased else (None, rest)
    b, h, j = (pl.program_id(axis) for axis in range(3))
    bq, bk = options.block_q, options.block_k
    keys, own, codes = k[...], v[...], _slice(key_codes, j, bk)[:, None]

    def step(i: jax.Array, carry: tuple) -> tuple:
        sum_k, sum_v = carry
        at = Block(scalars[2] + b, scalars[3] + h, positions(i * bq, (1, bq)), positions(j * bk, (bk, 1)))
        queries = _slice(q, i, bq)
        scores = dot(keys, queries, 1, 1)  # transposed
        bias = _bias(values, at, query_ids.shape[-1])
        scores = finish_scores(scores, _slice(query_ids, i, bq)[None], codes, bias, at, options)
        rows = _Rows(
            _slice(statistics, i, bq), _slice(delta, i, bq), _slice(g, i, bq), options, transposed=True
        )  # fmt: skip
        ds, kept = rows.gradient(scores, dot(own, rows.g, 1, 1), _seeds(scalars), at)
        sum_v = sum_v + dot(kept.astype(v.dtype), rows.g_values, 1, 0)
        return sum_k + dot(ds.astype(q.dtype), queries, 1, 0), sum_v

    zeros = jnp.zeros(keys.shape, jnp.float32)
    first, last = _range(j, bk, bq, q.shape[0] // bq, options, of_queries=False)
    sum_k, sum_v = lax.fori_loop(first, last, step, (zeros, zeros))
    dk[...] = (sum_k * options.scale).astype(dk.dtype)
    dv[...] = sum_v.astype(dv.dtype)


def _bias_kernel(scalars: Any, q: Any, k: Any, v: Any, query_ids: Any, key_codes: Any, statistics: Any, delta: Any,
                 g: Any, values: Any, sums: Any, *, options: FusedOptions, biased: bool, rows: int, queries: int,
                 keys: int) -> None:  # fmt: skip
    """The gradient of scores, summed over rows and over all blocks of a diagonal."""
    h, diagonal = pl.program_id(0), pl.program_id(1)
    bq, bk = options.block_q, options.block_k
    between = diagonal * options.step - (queries - bq)  # first key minus first query

    def block(b: jax.Array, i: jax.Array, total: jax.Array) -> jax.Array:
        j = lax.div(i * bq + between, bk)
        at = Block(scalars[2] + b, scalars[3] + h, positions(i * bq, (bq, 1)), positions(j * bk, (1, bk)))
        scores = dot(_slice(q, i, bq, b), _slice(k, j, bk, b), 1, 1)
        ids, codes = _slice(query_ids, i, bq, b)[:, None], _slice(key_codes, j, bk, b)[None]
        scores = finish_scores(scores, ids, codes, _bias(values, at, queries), at, options)
        own = _Rows(_slice(statistics, i, bq, b), _slice(delta, i, bq, b), _slice(g, i, bq, b), options)
        return total + own.gradient(scores, dot(own.g, _slice(v, j, bk, b), 1, 1), _seeds(scalars), at)[0]

    first = lax.div(jnp.maximum(-between, 0) + bq - 1, bq)
    last = jnp.minimum(lax.div(keys - bk - between, bq), queries // bq - 1) + 1
    of_row = lambda b, total: lax.fori_loop(first, last, partial(block, b), total)  # noqa: E731
    sums[...] = lax.fori_loop(0, rows, of_row, jnp.zeros((bq, bk), jnp.float32))


class _Rows:
    """What the gradient of scores needs of some queries: statistics, delta float32 [Q], g [Q, K]."""

    def __init__(
        self, statistics: jax.Array, delta: jax.Array, g: jax.Array, options: FusedOptions, transposed: bool = False
    ):
        along = (lambda x: x[None]) if transposed else (lambda x: x[:, None])
        alive = statistics > MASK_VALUE / 2
        # probabilities are over the share that is kept; of a query without a visible key, 1
        self.log_sum = along(jnp.maximum(statistics, MASK_VALUE)) + math.log(1.0 - options.rate)
        self.delta = along(jnp.where(alive, delta * (1.0 - options.rate), 0.0))
        g32 = g.astype(jnp.float32)
        self.g = jnp.where(alive[:, None], g32, 0.0).astype(g.dtype)
        dead = (MASK_VALUE / (1.0 - options.rate)) / statistics
        self.g_values = jnp.where(alive[:, None], g32, g32 * dead[:, None]).astype(g.dtype)
        self.options = options

    def gradient(self, scores: jax.Array, dp: jax.Array, seeds: tuple[jax.Array, jax.Array], at: Block) -> tuple:
        """-> (gradient of the scores, probabilities that dropout keeps), float32."""
        p = kept = jnp.exp(scores - self.log_sum)
        if self.options.rate > 0:
            keep = keep_block(seeds, at, self.options)
            dp, kept = jnp.where(keep, dp, 0.0), jnp.where(keep, p, 0.0)
        return p * (dp - self.delta), kept


def _range(own: jax.Array, size: int, other: int, count: int, options: FusedOptions, *, of_queries: bool) -> tuple:
    """The blocks of the other sequence that order and window let a block see: (first, last + 1)."""
    start = own * size
    first: Any = 0
    last: Any = count
    if options.causal and not options.prefix:
        if of_queries:
            last = jnp.minimum(last, lax.div(start + size - 1, other) + 1)
        else:
            first = lax.div(start, other)
    if options.window is not None:
        first = jnp.maximum(first, lax.div(jnp.maximum(start - options.window, 0), other))
        last = jnp.minimum(last, lax.div(start + size - 1 + options.window, other) + 1)
    return first, last


def _slice(ref: Any, number: jax.Array, size: int, row: jax.Array | None = None) -> jax.Array:
    """Block `number` along the sequence, the first axis but `row`."""
    place = (pl.ds(number * size, size), *(slice(None),) * (len(ref.shape) - (1 if row is None else 2)))
    return plgpu.load(ref.at[place if row is None else (row, *place)])


def _bias(values: Any, at: Block, queries: int) -> jax.Array | None:
    return None if values is None else plgpu.load(values.at[at.key - at.query + (queries - 1)])


def _seeds(scalars: Any) -> tuple[jax.Array, jax.Array]:
    return scalars[0].astype(jnp.uint32), scalars[1].astype(jnp.uint32)


def _sum_diagonals(sums: jax.Array, queries: int, keys: int, options: FusedOptions) -> jax.Array:
    """Sums of a block on each diagonal, [H, diagonals, block_q, block_k] -> by distance, [H, Q + S - 1]."""
    H, count, bq, bk = sums.shape
    padded = jnp.pad(sums[:, :, ::-1], ((0, 0), (0, 0), (0, 0), (0, bq)))
    width = bq + bk - 1
    rows = padded.reshape(H, count, -1)[:, :, : bq * width].reshape(H, count, bq, width).sum(2)
    ends = [(number * options.step, queries + keys - 1 - width - number * options.step) for number in range(count)]
    return jnp.stack([jnp.pad(rows[:, number], ((0, 0), end)) for number, end in enumerate(ends)]).sum(0)
