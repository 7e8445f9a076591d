"""What the forward and the backward kernel compute of one block of scores.

Blocks are transposed, keys x queries: a query's statistics are then a row [1, Q], which broadcasts without a transpose,
and queries, keys and values are [K, Q] and [K, S], whose lanes are full with any head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bertjax.models.fused_attention.distance_bias import place_block
from bertjax.models.fused_attention.options import LANES, MASK_VALUE, FusedOptions
from bertjax.models.layers.dropout import drop_threshold, mix_column


class Block(NamedTuple):
    """Place of a block: its row and head among all devices, its first query and key."""

    row: jax.Array
    head: jax.Array
    query: jax.Array
    key: jax.Array


def dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Contract one axis of each: float32."""
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def masked_scores(
    q: jax.Array, k: jax.Array, query_ids: jax.Array, key_codes: jax.Array, diagonal: jax.Array | None, at: Block,
    options: FusedOptions,
) -> jax.Array:  # fmt: skip
    """q [K, Q], k [K, S], ids int32 [1, Q], codes int32 [1, S], diagonal of the bias [8, S + Q] -> float32 [S, Q]."""
    scores = dot(k, q, 0, 0)
    if options.scale != 1.0:
        scores = scores * options.scale
    if diagonal is not None:
        scores = scores + place_block(diagonal, scores.shape)
    scores = jnp.where(_visible(query_ids, key_codes, at, options), scores, MASK_VALUE)
    if options.keys % options.block_k:  # nor does a query that sees no key average padding
        scores = jnp.where(_iota(at.key, (options.block_k, 1), 0) < options.keys, scores, 2 * MASK_VALUE)
    return scores


def _visible(query_ids: jax.Array, key_codes: jax.Array, at: Block, options: FusedOptions) -> jax.Array:
    """bool [S, Q]: whether a query sees a key."""
    codes = _column(key_codes)
    seen = (codes >> 1 if options.prefix else codes) == query_ids
    if not options.causal and options.window is None:
        return seen
    apart = _iota(at.key, seen.shape, 0) - _iota(at.query, seen.shape, 1)
    if options.causal:
        before = apart <= 0
        seen = seen & ((before | ((codes & 1) > 0)) if options.prefix else before)
    if options.window is not None:
        seen = seen & (jnp.abs(apart) <= options.window)
    return seen


def keep_block(seeds: tuple[jax.Array, jax.Array], at: Block, options: FusedOptions) -> jax.Array:
    """bool [S, Q]: what dropout keeps, by the bits that `hash_bits` has for [rows, heads, queries, keys]."""
    rows, heads, queries = (np.uint32(count) for count in options.counts)
    first = ((seeds[0] * rows + at.row.astype(jnp.uint32)) * heads + at.head.astype(jnp.uint32)) * queries
    row = first + _iota(at.query, (1, options.block_q), 1).astype(jnp.uint32)
    column = _iota(at.key, (options.block_k, 1), 0).astype(jnp.uint32)
    return mix_column(row, column, seeds[1]) >= np.uint32(drop_threshold(options.rate))


def may_see(at: Block, options: FusedOptions) -> jax.Array | bool:
    """Whether a block has pairs that order and window let see each other."""
    may: jax.Array | bool = True
    if options.causal and not options.prefix:
        may = at.key < at.query + options.block_q
    if options.window is not None:
        near = at.key <= at.query + options.block_q - 1 + options.window
        may = near & (at.key + options.block_k - 1 >= at.query - options.window) & may
    return may


def _iota(start: jax.Array, shape: tuple[int, int], axis: int) -> jax.Array:
    return start + lax.broadcasted_iota(jnp.int32, shape, axis)


def _column(row: jax.Array) -> jax.Array:
    """[1, N] -> [N, 1]; TPUs transpose whole registers."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]
