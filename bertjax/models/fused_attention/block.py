"""What all kernels compute of one block of scores.

Blocks may be transposed: the positions of queries and keys say along which axis they go, as [Q, 1] or [1, Q].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bertjax.models.fused_attention.options import MASK_VALUE, FusedOptions
from bertjax.models.layers.dropout import drop_threshold, mix_column


class Block(NamedTuple):
    """Place of a block: its row and head among all devices, positions of its queries and of its keys, int32."""

    row: jax.Array
    head: jax.Array
    query: jax.Array
    key: jax.Array


def dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Contract one axis of each: float32."""
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def positions(start: jax.Array | int, shape: tuple[int, int]) -> jax.Array:
    """start, start + 1, ... along the longer axis: int32."""
    return start + lax.broadcasted_iota(jnp.int32, shape, int(shape[1] > 1))


def finish_scores(
    scores: jax.Array, query_ids: jax.Array, key_codes: jax.Array, bias: jax.Array | None, at: Block,
    options: FusedOptions,
) -> jax.Array:  # fmt: skip
    """Scale products of queries and keys, add the bias and mask, all float32. Ids and codes go along as positions."""
    if options.scale != 1.0:
        scores = scores * options.scale
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(_visible(query_ids, key_codes, at, options), scores, MASK_VALUE)
    if options.keys % options.block_k:  # nor does a query that sees no key average padding
        scores = jnp.where(at.key < options.keys, scores, 2 * MASK_VALUE)
    return scores


def _visible(query_ids: jax.Array, key_codes: jax.Array, at: Block, options: FusedOptions) -> jax.Array:
    """bool: whether a query sees a key."""
    seen = (key_codes >> 1 if options.prefix else key_codes) == query_ids
    if not options.causal and options.window is None:
        return seen
    apart = at.key - at.query
    if options.causal:
        before = apart <= 0
        seen = seen & ((before | ((key_codes & 1) > 0)) if options.prefix else before)
    if options.window is not None:
        seen = seen & (jnp.abs(apart) <= options.window)
    return seen


def keep_block(seeds: tuple[jax.Array, jax.Array], at: Block, options: FusedOptions) -> jax.Array:
    """bool: what dropout keeps, by the bits that `hash_bits` has for [rows, heads, queries, keys]."""
    rows, heads, queries = (np.uint32(count) for count in options.counts)
    first = ((seeds[0] * rows + at.row.astype(jnp.uint32)) * heads + at.head.astype(jnp.uint32)) * queries
    row = first + at.query.astype(jnp.uint32)
    return mix_column(row, at.key.astype(jnp.uint32), seeds[1]) >= np.uint32(drop_threshold(options.rate))


def may_see(query: jax.Array, key: jax.Array, options: FusedOptions) -> jax.Array | bool:
    """Whether the block whose first query and key these are has pairs that order and window let see each other."""
    may: jax.Array | bool = True
    if options.causal and not options.prefix:
        may = key < query + options.block_q
    if options.window is not None:
        near = key <= query + options.block_q - 1 + options.window
        may = near & (key + options.block_k - 1 >= query - options.window) & may
    return may
