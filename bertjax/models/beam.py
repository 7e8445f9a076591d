"""Beam search with a length penalty, by the rules of t5x/decoding.py `beam_search`.

How transformers' `generate(num_beams=...)` differs: (1) its penalty is length^alpha, here ((5 + length) / 6)^alpha
(arXiv 1609.08144 section 7); (2) of the 2K candidates of a step only the K best may finish, here all; (3) at the last
position its open beams compete with the finished ones, here they count only in a row where nothing has finished; (4) it
stops once the best open beam, penalised at its present length, is behind the worst finished one, here (and there with
early_stopping="never") once it could not catch up at the greatest length; (5) it pads beams with EOS where the padding
is 0. With alpha 0 only (2) and (3) can tell the answers apart, and where no beam ends nothing does.

Shape letters: B rows, K beams, L new tokens, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bertjax.models.decode import EOS, PAD, START, Begun, begin
from bertjax.models.family import Module
from bertjax.models.t5_cache import Cache
from bertjax.parallel.mesh import constrain

IMPOSSIBLE = -1e7  # added to scores, as the reference does


class _Beams(NamedTuple):
    length: jax.Array  # int32 []
    tokens: jax.Array  # int32 [B, K]: the newest of the open beams
    scores: jax.Array  # float32 [B, K]: log probabilities of the open beams, best first
    ids: jax.Array  # int32 [B, K, L]
    finished_scores: jax.Array  # float32 [B, K]: penalised, best first
    finished_ids: jax.Array  # int32 [B, K, L]
    finished: jax.Array  # bool [B, K]: the slot holds a finished beam
    cache: Cache
    seen: jax.Array  # bool [B, K, slots]: the past of each open beam


def beam(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, *,
    beam_size: int, alpha: float = 0.6, causal: bool = False, eos_id: int = EOS,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The best answer found for each row -> ids int32 [B, L] and its score float32 [B].

    The score is log p / ((5 + length) / 6)^alpha, EOS counted; log p itself where no beam of the row has finished.
    """
    rows = len(input_ids)
    begun = begin(model, input_ids, segment_ids, max_new_tokens, beams=beam_size, causal=causal)
    state = _first(begun, rows, beam_size, max_new_tokens)
    if begun.logits is not None:
        logits = jnp.repeat(begun.logits[:, None], beam_size, axis=1)
        state = _advance(state, logits, state.cache, state.seen, alpha, eos_id)

    def step(state: _Beams) -> _Beams:
        logits, cache, seen = model.beam_step(
            state.tokens, state.cache, begun.first + state.length * beam_size, state.seen
        )
        return _advance(state, logits, cache, seen, alpha, eos_id)

    state = lax.while_loop(lambda s: (s.length < max_new_tokens) & _may_improve(s, alpha), step, state)
    any_finished = state.finished.any(1)
    ids = jnp.where(any_finished[:, None], state.finished_ids[:, 0], state.ids[:, 0])
    return constrain(ids, "batch", None), jnp.where(any_finished, state.finished_scores[:, 0], state.scores[:, 0])


def penalty(alpha: float, length: jax.Array | int) -> jax.Array:
    """arXiv 1609.08144 equation 14 without coverage."""
    return jnp.power((5.0 + length) / 6.0, alpha)


def _first(begun: Begun, rows: int, beam_size: int, max_new_tokens: int) -> _Beams:
    """One open beam; the others of a row are copies of it that no candidate of the first one can lose against."""
    shape = (rows, beam_size)
    ids = constrain(jnp.full((*shape, max_new_tokens), PAD, jnp.int32), "batch", None, None)
    seen = jnp.repeat(begun.cache.visible[:, None], beam_size, axis=1)
    scores = jnp.tile(jnp.where(jnp.arange(beam_size) == 0, 0.0, IMPOSSIBLE), (rows, 1))
    nothing = jnp.full(shape, IMPOSSIBLE)
    tokens, finished = jnp.full(shape, START, jnp.int32), jnp.zeros(shape, bool)
    return _Beams(jnp.int32(0), tokens, scores, ids, nothing, ids, finished, begun.cache, seen)


def _advance(state: _Beams, logits: jax.Array, cache: Cache, seen: jax.Array, alpha: float, eos_id: int) -> _Beams:
    """One token more. Of twice as many candidates as beams at most half can end, so that K beams always stay open."""
    beams = state.ids.shape[1]
    scores, parents, tokens = _candidates(state.scores, logits)
    ids = _pick(state.ids, parents)
    ids = lax.dynamic_update_slice_in_dim(ids, tokens[..., None], state.length, 2)
    ends = tokens == eos_id

    open_scores, chosen = lax.top_k(scores + IMPOSSIBLE * ends, beams)
    parents = _pick(parents, chosen)
    penalised = scores / penalty(alpha, state.length + 1) + IMPOSSIBLE * ~ends
    finished_scores, best = lax.top_k(jnp.concatenate([state.finished_scores, penalised], 1), beams)
    finished_ids = _pick(jnp.concatenate([state.finished_ids, ids], 1), best)
    return _Beams(
        state.length + 1,
        _pick(tokens, chosen),
        open_scores,
        constrain(_pick(ids, chosen), "batch", None, None),
        finished_scores,
        constrain(finished_ids, "batch", None, None),
        _pick(jnp.concatenate([state.finished, ends], 1), best),
        cache,
        _pick(seen, parents),
    )


def _candidates(scores: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """scores [B, K], logits [B, K, V] -> the 2K best continuations: log probability, beam and token, each [B, 2K].

    No beam can have more than 2K of them, so that sorting the beams apart loses nothing and stays on their devices.
    """
    rows, beams, vocabulary = logits.shape
    width = min(2 * beams, vocabulary)
    highest, tokens = lax.top_k(logits, width)
    log_p = highest - jax.nn.logsumexp(logits, axis=-1, keepdims=True) + scores[..., None]
    log_p, index = lax.top_k(log_p.reshape(rows, -1), 2 * beams)
    return log_p, index // width, _pick(tokens.reshape(rows, -1), index).astype(jnp.int32)


def _may_improve(state: _Beams, alpha: float) -> jax.Array:
    """Whether an open beam of any row can still displace a finished one: penalties only grow up to the last length."""
    bound = state.scores[:, :1] / penalty(alpha, state.ids.shape[-1] + 1)
    worst = jnp.where(state.finished, state.finished_scores.min(1, keepdims=True), IMPOSSIBLE)
    return ~(worst > bound).all()


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [B, N, ...], index [B, M] -> [B, M, ...], row by row."""
    return jax.vmap(lambda x, i: x[i])(x, index)
