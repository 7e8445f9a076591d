"""Beam search with a length penalty, by the rules of t5x/decoding.py `beam_search` or by those of transformers'
`generate(num_beams=...)` (generation/utils.py `_beam_search`).

Differences (t5x; transformers): (1) the penalty is ((5 + length) / 6)^alpha (arXiv 1609.08144 section 7); length^alpha,
where length counts new tokens with EOS. (2) All 2K candidates of a step may finish; only the K best. (3) Beams without
EOS at the last position count only in a row without finished beams; they compete with finished ones. (4) A row is done
once its best open beam cannot reach the worst finished score at the greatest length; at its current length
(`early_stopping` "never": at the greatest one if alpha is above 0; True: once K beams have finished). With alpha
0 only (2) and (3) matter. A negative penalty, which favours short answers, needs transformers' rules: the bound of t5x
does not hold for it; `early_stopping` needs transformers' rules, too. Unlike transformers, which pads with EOS where
the padding id is 0, padding is 0 here. Processors change the log probabilities of the next tokens, as in transformers.

Shape letters: B rows, K beams, L new tokens, V vocabulary.
"""

from typing import Literal, NamedTuple, TypeAlias, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from bertjax.models.decoding.processors import Constraints, Processors, constrain
from bertjax.models.decoding.sample import EOS, PAD, Answers, PrefilledState, prefill_prompt
from bertjax.models.registry import Module
from bertjax.models.t5.cache import Cache
from bertjax.models.vocab_parallel import top_k
from bertjax.parallel.sharding import with_logical_constraint

NEG_INF = -1e7  # added to scores, as t5x does
UNFINISHED_SCORE = {"t5x": NEG_INF, "transformers": -1e9}  # below every penalized score, as in the reference
Rules: TypeAlias = Literal["t5x", "transformers"]
EarlyStopping: TypeAlias = bool | Literal["never"]


class BeamOptions(TypedDict, total=False):
    """Keyword arguments of `beam_search`."""

    beam_size: int
    alpha: float  # default: 0.6
    causal: bool
    eos_id: int
    rules: Rules
    early_stopping: EarlyStopping  # for the rules of transformers
    processors: Processors | None


class _Rules(NamedTuple):
    alpha: float
    eos_id: int
    rules: Rules
    early_stopping: EarlyStopping
    constraints: Constraints | None


class _BeamState(NamedTuple):
    length: jax.Array  # int32 []
    tokens: jax.Array  # int32 [B, K]: the newest of the open beams
    scores: jax.Array  # float32 [B, K]: log probabilities of the open beams, best first
    ids: jax.Array  # int32 [B, K, L]
    finished_scores: jax.Array  # float32 [B, K]: length_normalized, best first
    finished_ids: jax.Array  # int32 [B, K, L]
    finished: jax.Array  # bool [B, K]: the slot holds a finished beam
    active: jax.Array  # bool [B]: open beams may still finish
    cache: Cache
    seen: jax.Array  # bool [B, K, slots]: the past of each open beam


def beam_search(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, **options: Unpack[BeamOptions]
) -> tuple[jax.Array, jax.Array]:
    """The best answer of each row -> ids int32 [B, L] and its score float32 [B].

    The score is log p / length_penalty(alpha, length, rules); by t5x's rules log p if no beam of the row has finished.
    """
    state = _search(model, input_ids, segment_ids, max_new_tokens, **options)
    any_finished = state.finished.any(1)
    ids = jnp.where(any_finished[:, None], state.finished_ids[:, 0], state.ids[:, 0])
    scores = jnp.where(any_finished, state.finished_scores[:, 0], state.scores[:, 0])
    return with_logical_constraint(ids, "batch", None), scores


def beam_answers(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, num_return_sequences: int,
    **options: Unpack[BeamOptions],
) -> Answers:  # fmt: skip
    """The N best answers of each row, best first, N at most `beam_size`; the first one is that of `beam_search`.

    Where fewer than N beams have finished, the best open beams follow them, with log p as their scores.
    """
    state = _search(model, input_ids, segment_ids, max_new_tokens, **options)
    number, count = jnp.arange(num_return_sequences)[None], state.finished.sum(1)[:, None]
    is_open, rest = number >= count, jnp.maximum(number - count, 0)
    best = slice(None), slice(num_return_sequences)
    ids = jnp.where(is_open[..., None], _gather_beams(state.ids, rest), state.finished_ids[best])
    scores = jnp.where(is_open, _gather_beams(state.scores, rest), state.finished_scores[best])
    return Answers(with_logical_constraint(ids, "batch", None, None), scores)


def _search(
    model: Module, input_ids: jax.Array, segment_ids: jax.Array, max_new_tokens: int, *,
    beam_size: int, alpha: float = 0.6, causal: bool = False, eos_id: int = EOS, rules: Rules = "t5x",
    early_stopping: EarlyStopping = False, processors: Processors | None = None,
) -> _BeamState:  # fmt: skip
    rows, constraints = len(input_ids), constrain(processors, model, input_ids, segment_ids, eos_id)
    options = _Rules(alpha, eos_id, rules, early_stopping, constraints)
    prefilled = prefill_prompt(model, input_ids, segment_ids, max_new_tokens, beams=beam_size, causal=causal)
    state = _init_state(prefilled, rows, beam_size, max_new_tokens, rules)
    if prefilled.logits is not None:
        logits = jnp.repeat(prefilled.logits[:, None], beam_size, axis=1)
        state = _extend(state, logits, state.cache, state.seen, options)

    def step(state: _BeamState) -> _BeamState:
        slot = prefilled.first_slot + state.length * beam_size
        logits, cache, seen = model.beam_step(state.tokens, state.cache, slot, state.seen)
        return _extend(state, logits, cache, seen, options)

    return lax.while_loop(lambda s: (s.length < max_new_tokens) & s.active.any(), step, state)


def length_penalty(alpha: float, length: jax.Array | int, rules: Rules = "t5x") -> jax.Array:
    """float32 []: arXiv 1609.08144 equation 14 without coverage, or transformers' length^alpha."""
    return jnp.power((5.0 + length) / 6.0 if rules == "t5x" else jnp.float32(length), alpha)


def _init_state(prefilled: PrefilledState, rows: int, beam_size: int, max_new_tokens: int, rules: Rules) -> _BeamState:
    """One open beam per row; its copies have scores below those of all its candidates."""
    shape = (rows, beam_size)
    ids = with_logical_constraint(jnp.full((*shape, max_new_tokens), PAD, jnp.int32), "batch", None, None)
    seen = jnp.repeat(prefilled.cache.visible[:, None], beam_size, axis=1)
    scores = jnp.tile(jnp.where(jnp.arange(beam_size) == 0, 0.0, NEG_INF), (rows, 1))
    nothing = jnp.full(shape, UNFINISHED_SCORE[rules])
    tokens = jnp.full(shape, prefilled.start_id, jnp.int32)
    finished, active = jnp.zeros(shape, bool), jnp.ones(rows, bool)
    return _BeamState(jnp.int32(0), tokens, scores, ids, nothing, ids, finished, active, prefilled.cache, seen)


def _extend(state: _BeamState, logits: jax.Array, cache: Cache, seen: jax.Array, options: _Rules) -> _BeamState:
    """Add one token. At most half of 2K candidates can end, so that K beams stay open."""
    beams, length, constraints = state.ids.shape[1], state.length + 1, options.constraints
    if constraints is not None:
        logits = constraints(jax.nn.log_softmax(logits, axis=-1), state.ids, state.length)
    scores, parents, tokens = _top_candidates(state.scores, logits, normalized=constraints is not None)
    ids = _gather_beams(state.ids, parents)
    ids = lax.dynamic_update_slice_in_dim(ids, tokens[..., None], state.length, 2)
    ends = tokens == options.eos_id
    finishes = _may_finish(ends, length == ids.shape[2], options.rules) & state.active[:, None]

    open_scores, chosen = top_k(scores + NEG_INF * ends, beams)
    parents = _gather_beams(parents, chosen)
    unfinished = UNFINISHED_SCORE[options.rules]
    length_normalized = scores / length_penalty(options.alpha, length, options.rules) + unfinished * ~finishes
    finished_scores, best = top_k(jnp.concatenate([state.finished_scores, length_normalized], 1), beams)
    finished_ids = _gather_beams(jnp.concatenate([state.finished_ids, ids], 1), best)
    finished = _gather_beams(jnp.concatenate([state.finished, finishes], 1), best)
    max_length = length if options.rules == "transformers" else ids.shape[2] + 1  # t5x counts the start token
    if options.early_stopping == "never":
        max_length = jnp.where(options.alpha > 0, ids.shape[2], length)
    bound = open_scores[:, :1] / length_penalty(options.alpha, max_length, options.rules)
    worst = jnp.where(finished, finished_scores[:, -1:], unfinished)
    return _BeamState(
        length,
        _gather_beams(tokens, chosen),
        open_scores,
        with_logical_constraint(_gather_beams(ids, chosen), "batch", None, None),
        finished_scores,
        with_logical_constraint(finished_ids, "batch", None, None),
        finished,
        state.active & (~finished.all(1) if options.early_stopping is True else (bound > worst).any(1)),
        cache,
        _gather_beams(seen, parents),
    )


def _may_finish(ends: jax.Array, last: jax.Array, rules: Rules) -> jax.Array:
    """Which of the 2K candidates, best first, may become finished beams: ends bool [B, 2K], last bool [] -> [B, 2K]."""
    if rules == "t5x":
        return ends
    width = ends.shape[1]
    return (ends | last) & (jnp.arange(width) < width // 2)


def _top_candidates(
    scores: jax.Array, logits: jax.Array, *, normalized: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """scores [B, K], logits [B, K, V] -> the 2K best continuations: log probability, beam and token, each [B, 2K].

    `normalized`: the logits are log probabilities, or what processors made of them.
    No beam can have more than 2K of them, so that each beam is searched separately, without communication.
    """
    rows, beams, vocabulary = logits.shape
    width = min(2 * beams, vocabulary)
    highest, tokens = top_k(logits, width, "vocab")
    if not normalized:
        highest = highest - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    log_p = highest + scores[..., None]
    log_p, index = top_k(log_p.reshape(rows, -1), 2 * beams)
    return log_p, index // width, _gather_beams(tokens.reshape(rows, -1), index).astype(jnp.int32)


def _gather_beams(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [B, N, ...], index [B, M] -> [B, M, ...], row by row."""
    return jax.vmap(lambda x, i: x[i])(x, index)
