"""Greedy search and sampling with a key-value cache (beam search: beam.py).

Inputs are left-aligned rows with segment 0 on padding, like `input_ids` of a batch. Results are int32 [B, L]: tokens
up to EOS and then padding (0), or L tokens without EOS. The result of a row depends on this row only. The model is a T5
or has its methods. Shape letters: B rows, S positions of the inputs, N answers per row, L new tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bertjax.models import vocab_parallel
from bertjax.models.decoding.processors import MASK_VALUE, Constraints, Processors, constrain
from bertjax.models.registry import Module
from bertjax.models.t5.cache import Cache
from bertjax.parallel.sharding import with_logical_constraint

PAD, EOS = 0, 1  # of T5; what follows EOS is PAD with any tokenizer, since it is not read


class Answers(NamedTuple):
    """Several generated answers for each row, with their scores."""

    ids: jax.Array  # int32 [B, N, L]
    scores: jax.Array  # float32 [B, N]


class PrefilledState(NamedTuple):
    """The state after reading the inputs."""

    cache: Cache  # with slots for all new tokens of all beams
    logits: jax.Array | None  # float32 [B, V] of the first new token of decoder-only models, which have read start_id
    first_slot: int  # the decoder input of new token n is at slot first_slot + n * beams of the cache
    start_id: int  # the first decoder input; for T5 the padding id


def prefill_prompt(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, *,
    beams: int = 1, causal: bool = False, copies: int = 1,
) -> PrefilledState:  # fmt: skip
    """int32 [B, S] x 2 -> the state from which greedy search, sampling and beam search start.

    With `copies` each row is repeated: the state has B * copies rows.

    A decoder-only model reads the start id and the inputs as one prompt with bidirectional attention (a prefix LM), or
    with causal attention if `causal`; new tokens go to the slots from S + 1 on.
    """
    start = model.config.decoder_start_token_id
    if model.config.architecture == "encoder_decoder":
        hidden = model.encode(input_ids, segment_ids)
        if copies > 1:
            hidden, segment_ids = (jnp.repeat(x, copies, axis=0) for x in (hidden, segment_ids))
        return PrefilledState(model.init_cache(hidden, segment_ids, max_new_tokens * beams), None, 0, start)
    if copies > 1:
        input_ids, segment_ids = (jnp.repeat(x, copies, axis=0) for x in (input_ids, segment_ids))
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
    scores: jax.Array | None  # float32 [B]: log probabilities of the tokens so far; None: not computed


def _decode_loop(
    model: Module, prefilled: PrefilledState, rows: int, max_new_tokens: int, eos_id: int,
    constraints: Constraints | None, choose: Callable[[jax.Array, jax.Array], jax.Array],
    warp: Callable[[jax.Array], jax.Array] = lambda logits: logits, *, scored: bool = False,
) -> _DecodeState:  # fmt: skip
    """Generate tokens by `choose(warp(logits [B, V]), number of tokens so far) -> [B]` until every row has ended.

    `scored`: sum the log probabilities of the tokens, by the constrained and warped logits.
    """

    def emit(state: _DecodeState, logits: jax.Array, cache: Cache) -> _DecodeState:
        if constraints is not None:
            logits = constraints(logits, state.ids, state.length)
        logits, scores = warp(logits), state.scores
        token = jnp.where(state.ended, PAD, choose(logits, state.length)).astype(jnp.int32)
        if scores is not None:
            scores += jnp.where(state.ended, 0.0, _log_p(logits, token))
        ids = lax.dynamic_update_slice_in_dim(state.ids, token[:, None], state.length, 1)
        return _DecodeState(
            state.length + 1, token, state.ended | (token == eos_id), with_logical_constraint(ids, "batch", None),
            cache, scores,
        )  # fmt: skip

    def step(state: _DecodeState) -> _DecodeState:
        return emit(state, *model.decode_step(state.token, state.cache, prefilled.first_slot + state.length))

    ids = with_logical_constraint(jnp.full((rows, max_new_tokens), PAD, jnp.int32), "batch", None)
    state = _DecodeState(
        jnp.int32(0), jnp.full((rows,), prefilled.start_id, jnp.int32), jnp.zeros((rows,), bool), ids, prefilled.cache,
        jnp.zeros((rows,), jnp.float32) if scored else None,
    )  # fmt: skip
    if prefilled.logits is not None:
        state = emit(state, prefilled.logits, prefilled.cache)
    return lax.while_loop(lambda s: (s.length < max_new_tokens) & ~s.ended.all(), step, state)


def _log_p(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log probabilities [B] of tokens [B] by logits [B, V]."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def greedy(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, *,
    causal: bool = False, eos_id: int = EOS, processors: Processors | None = None,
) -> jax.Array:  # fmt: skip
    """The most likely token at each step -> int32 [B, L]; of equally likely ones the lowest id."""
    inputs = (model, input_ids, segment_ids, max_new_tokens)
    return _greedy(*inputs, causal, eos_id, processors, scored=False).ids


def greedy_answers(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, *,
    causal: bool = False, eos_id: int = EOS, processors: Processors | None = None,
) -> Answers:  # fmt: skip
    """`greedy` as the only answer of each row; scores are log probabilities by the logits that `processors` leave."""
    found = _greedy(model, input_ids, segment_ids, max_new_tokens, causal, eos_id, processors, scored=True)
    return _as_answers(found, 1)


def _greedy(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, causal: bool, eos_id: int,
    processors: Processors | None, *, scored: bool,
) -> _DecodeState:  # fmt: skip
    prefilled = prefill_prompt(model, input_ids, segment_ids, max_new_tokens, causal=causal)
    constraints = constrain(processors, model, input_ids, segment_ids, eos_id)
    rows, choose = len(input_ids), lambda logits, _: argmax(logits)
    return _decode_loop(model, prefilled, rows, max_new_tokens, eos_id, constraints, choose, scored=scored)


def _as_answers(found: _DecodeState, copies: int) -> Answers:
    assert found.scores is not None
    rows, length = found.ids.shape
    ids = found.ids.reshape(rows // copies, copies, length)
    return Answers(with_logical_constraint(ids, "batch", None, None), found.scores.reshape(rows // copies, copies))


def argmax(logits: jax.Array) -> jax.Array:
    """argmax [..., V] -> [...] as two reductions; XLA's is a slow scalar loop on the CPU."""
    tokens = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    highest = logits.max(-1, keepdims=True)
    return jnp.where(logits == highest, tokens, logits.shape[-1] - 1).min(-1)


class SamplingOptions(TypedDict, total=False):
    """Keyword arguments of `sample`."""

    temperature: float  # default: 1
    top_k: int | None
    top_p: float | None
    causal: bool
    eos_id: int
    processors: Processors | None


def sample(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, key: jax.Array, rows: jax.Array,
    **options: Unpack[SamplingOptions],
) -> jax.Array:  # fmt: skip
    """Sample from softmax(logits / temperature), filtered by top_k and then top_p -> int32 [B, L].

    `rows` int32 [B] are the numbers of the rows in the data set: token i of row r has the key
    fold_in(fold_in(key, r), i), so that a row's text does not depend on its batch.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return _sample(model, input_ids, segment_ids, max_new_tokens, keys, 1, scored=False, **options).ids


def sample_answers(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, key: jax.Array, rows: jax.Array,
    num_return_sequences: int, **options: Unpack[SamplingOptions],
) -> Answers:  # fmt: skip
    """N independent samples for each row, in the order in which they are drawn; the first one is that of `sample`.

    Scores are log probabilities by the logits from which the tokens were drawn, behind processors, temperature, top_k
    and top_p, as transformers' `compute_transition_scores(normalize_logits=True)` has them. Answer n > 0 has the key
    fold_in(key, 2**32 - n) in place of `key`.
    """
    copies = num_return_sequences
    of_answers = [key, *(jax.random.fold_in(key, np.uint32(2**32 - n)) for n in range(1, copies))]
    keys = jnp.stack([jax.vmap(jax.random.fold_in, (None, 0))(one, rows) for one in of_answers], axis=1).reshape(-1)
    found = _sample(model, input_ids, segment_ids, max_new_tokens, keys, copies, scored=True, **options)
    return _as_answers(found, copies)


def _sample(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, keys: jax.Array, copies: int, *,
    scored: bool, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
    causal: bool = False, eos_id: int = EOS, processors: Processors | None = None,
) -> _DecodeState:  # fmt: skip
    """keys [B * copies]."""

    def choose(logits: jax.Array, length: jax.Array) -> jax.Array:
        draw = lambda key, x: jax.random.categorical(jax.random.fold_in(key, length), x)  # noqa: E731
        return jax.vmap(draw)(keys, logits)

    def warp(logits: jax.Array) -> jax.Array:
        return filter_logits(logits / temperature, top_k, top_p)

    prefilled = prefill_prompt(model, input_ids, segment_ids, max_new_tokens, causal=causal, copies=copies)
    constraints = constrain(processors, model, input_ids, segment_ids, eos_id, copies)
    rows = len(input_ids) * copies
    return _decode_loop(model, prefilled, rows, max_new_tokens, eos_id, constraints, choose, warp, scored=scored)


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
