"""Blocks of scores on TPUs: transposed, keys x queries.

A query's statistics are then a row [1, Q], which broadcasts without a transpose, and queries, keys and values are
[K, Q] and [K, S], whose lanes are full with any head size.
"""

import jax
import jax.numpy as jnp

from bertjax.models.fused_attention.block import Block, dot, finish_scores, positions
from bertjax.models.fused_attention.distance_bias import place_block
from bertjax.models.fused_attention.options import LANES, FusedOptions


def block_at(row: jax.Array, head: jax.Array, i: jax.Array, j: jax.Array, options: FusedOptions) -> Block:
    """The block of query block i and key block j."""
    bq, bk = options.block_q, options.block_k
    return Block(row, head, positions(i * bq, (1, bq)), positions(j * bk, (bk, 1)))


def block_scores(
    q: jax.Array, k: jax.Array, query_ids: jax.Array, key_codes: jax.Array, diagonal: jax.Array | None, at: Block,
    options: FusedOptions,
) -> jax.Array:  # fmt: skip
    """q [K, Q], k [K, S], ids int32 [1, Q], codes int32 [1, S], diagonal of the bias [8, S + Q] -> float32 [S, Q]."""
    scores = dot(k, q, 0, 0)
    bias = None if diagonal is None else place_block(diagonal, (options.block_k, options.block_q))
    # TPUs transpose whole registers
    codes = jnp.broadcast_to(key_codes, (LANES, options.block_k)).T[:, :1]
    return finish_scores(scores, query_ids, codes, bias, at, options)
