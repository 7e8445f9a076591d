"""Greedy search and sampling with a key-value cache (beam search: beam.py).

Inputs are left-aligned rows with segment 0 on padding, like `input_ids` of a batch. Results are int32 [B, L]: tokens
up to EOS and then padding (0), or L tokens without EOS. The result of a row depends on this row only. The model is a T5
or has its methods. Shape letters: B rows, S positions of the inputs, L new tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bertjax.models import vocab_parallel
from bertjax.models.registry import Module
from bertjax.models.t5.cache import Cache
from bertjax.parallel.sharding import with_logical_constraint

PAD, EOS = 0, 1  # of T5; what follows EOS is PAD with any tokenizer, since it is not read
MASK_VALUE = -1e30


class PrefilledState(NamedTuple):
    """The state after reading the inputs."""

    cache: Cache  # with slots for all new tokens of all beams
    logits: jax.Array | None  # float32 [B, V] of the first new token of decoder-only models, which have read start_id
    first_slot: int  # the decoder input of new token n is at slot first_slot + n * beams of the cache
    start_id: int  # the first decoder input; for T5 the padding id


def prefill_prompt(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, *,
    beams: int = 1, causal: bool = False,
) -> PrefilledState:  # fmt: skip
    """int32 [B, S] x 2 -> the state from which greedy search, sampling and beam search start.

    A decoder-only model reads the start id and the inputs as one prompt with bidirectional attention (a prefix LM), or
    with causal attention if `causal`; new tokens go to the slots from S + 1 on.
    """
    start = model.config.decoder_start_token_id
    if model.config.architecture == "encoder_decoder":
        hidden = model.encode(input_ids, segment_ids)
        return PrefilledState(model.init_cache(hidden, segment_ids, max_new_tokens * beams), None, 0, start)
    width = input_ids.shape[1] + 1
    ids = jnp.pad(input_ids, ((0, 0), (1, 0)), constant_values=start)
    segments = jnp.pad(segment_ids, ((0, 0), (1, 0)), constant_values=1)
    cache = model.init_cache(None, segments, width + (max_new_tokens - 1) * beams)
    logits, cache = model.prefill(ids, segments, None if causal else segments, cache)
    return PrefilledState(cache, logits, width - beams, start)


class _DecodeState(NamedTuple):
    length: jax.Array  # int32 []: new tokens so far
    token: jax.Array  # int32 [B]: the newest ones
    ended: jax.Array  # bool [B]
    ids: jax.Array  # int32 [B, L]
    cache: Cache


def _decode_loop(
    model: Module, prefilled: PrefilledState, rows: int, max_new_tokens: int, eos_id: int,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:  # fmt: skip
    """Generate tokens by `choose(logits [B, V], number of tokens so far) -> [B]` until every row has ended."""

    def emit(state: _DecodeState, logits: jax.Array, cache: Cache) -> _DecodeState:
        token = jnp.where(state.ended, PAD, choose(logits, state.length)).astype(jnp.int32)
        ids = lax.dynamic_update_slice_in_dim(state.ids, token[:, None], state.length, 1)
        return _DecodeState(
            state.length + 1, token, state.ended | (token == eos_id), with_logical_constraint(ids, "batch", None), cache
        )

    def step(state: _DecodeState) -> _DecodeState:
        return emit(state, *model.decode_step(state.token, state.cache, prefilled.first_slot + state.length))

    ids = with_logical_constraint(jnp.full((rows, max_new_tokens), PAD, jnp.int32), "batch", None)
    state = _DecodeState(
        jnp.int32(0), jnp.full((rows,), prefilled.start_id, jnp.int32), jnp.zeros((rows,), bool), ids, prefilled.cache
    )
    if prefilled.logits is not None:
        state = emit(state, prefilled.logits, prefilled.cache)
    return lax.while_loop(lambda s: (s.length < max_new_tokens) & ~s.ended.all(), step, state).ids


def greedy(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, *,
    causal: bool = False, eos_id: int = EOS,
) -> jax.Array:  # fmt: skip
    """The most likely token at each step -> int32 [B, L]; of equally likely ones the lowest id."""
    prefilled = prefill_prompt(model, input_ids, segment_ids, max_new_tokens, causal=causal)
    return _decode_loop(model, prefilled, len(input_ids), max_new_tokens, eos_id, lambda logits, _: argmax(logits))


def argmax(logits: jax.Array) -> jax.Array:
    """argmax [..., V] -> [...] as two reductions; XLA's is a slow scalar loop on the CPU."""
    tokens = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    highest = logits.max(-1, keepdims=True)
    return jnp.where(logits == highest, tokens, logits.shape[-1] - 1).min(-1)


def sample(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, key: jax.Array, rows: jax.Array,
    *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
    causal: bool = False, eos_id: int = EOS,
) -> jax.Array:  # fmt: skip
    """Sample from softmax(logits / temperature), filtered by top_k and then top_p -> int32 [B, L].

    `rows` int32 [B] are the numbers of the rows in the data set: token i of row r has the key
    fold_in(fold_in(key, r), i), so that a row's text does not depend on its batch.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)

    def choose(logits: jax.Array, length: jax.Array) -> jax.Array:
        draw = lambda key, x: jax.random.categorical(jax.random.fold_in(key, length), x)  # noqa: E731
        return jax.vmap(draw)(keys, filter_logits(logits / temperature, top_k, top_p))

    prefilled = prefill_prompt(model, input_ids, segment_ids, max_new_tokens, causal=causal)
    return _decode_loop(model, prefilled, len(input_ids), max_new_tokens, eos_id, choose)


def filter_logits(logits: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """Mask logits [B, V] except the top_k highest, and then the fewest with a total probability of top_p.

    Order and ties (equal logits are kept or masked together) as in transformers' logits warpers; top_p: arXiv
    1904.09751 section 3.1. The most likely token is always kept.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = vocab_parallel.top_k(logits, top_k, "vocab")[0][..., -1:]
        logits = jnp.where(logits < lowest, MASK_VALUE, logits)
    if top_p is not None and top_p < 1:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), -1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of all more likely tokens
        lowest = jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < lowest, MASK_VALUE, logits)
    return logits
