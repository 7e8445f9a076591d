"""Constraints on the next token, as transformers' logits processors (generation/logits_process.py) set them.

Their order is that of `_get_logits_processor`: repetition penalty, n-grams, bad words, minimum length. They change
logits in greedy search and sampling, before temperature, top_k and top_p, and log probabilities in beam search. What
transformers sets to -inf is MASK_VALUE here. All shapes are static.

Shape letters: B rows, K beams, P tokens before the first new one, L new tokens, T = P + L, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bertjax.models.registry import Module

MASK_VALUE = -1e30
NO_TOKEN = -1


class Processors(NamedTuple):
    """Options of transformers' GenerationConfig; the defaults have no effect."""

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_new_tokens: int = 0


class Constraints(NamedTuple):
    """`Processors` for the rows of one batch."""

    processors: Processors
    prompt: jax.Array  # int32 [B, P]: what transformers' `input_ids` start with, at the right; NO_TOKEN before
    eos_id: int

    def __call__(self, scores: jax.Array, ids: jax.Array, length: jax.Array) -> jax.Array:
        """scores float32 [B, (K,) V], ids int32 [B, (K,) L] with `length` (int32 []) new tokens -> scores, changed."""
        prompt = self.prompt if ids.ndim == 2 else jnp.repeat(self.prompt[:, None], ids.shape[1], axis=1)
        past, end = jnp.concatenate([prompt, ids], axis=-1), prompt.shape[-1] + length
        penalty, ngram_size, bad_words, min_new_tokens = self.processors
        if penalty != 1.0:
            scores = penalize_repetition(scores, past, end, penalty)
        if ngram_size:
            scores = jnp.where(repeated_ngrams(past, end, ngram_size, scores.shape[-1]), MASK_VALUE, scores)
        for words in bad_words:
            if words != (self.eos_id,):  # transformers allows EOS
                scores = jnp.where(completes(words, past, end, scores.shape[-1]), MASK_VALUE, scores)
        if min_new_tokens:
            is_eos = jnp.arange(scores.shape[-1]) == self.eos_id
            scores = jnp.where(is_eos & (length < min_new_tokens), MASK_VALUE, scores)
        return scores


def constrain(
    processors: Processors | None, model: Module, input_ids: jax.Array, segment_ids: jax.Array, eos_id: int,
    copies: int = 1,
) -> Constraints | None:  # fmt: skip
    """The constraints for inputs int32 [B, S] x 2, each repeated `copies` times; None where nothing is constrained.

    The past of an encoder-decoder is the start token and what was generated; that of a decoder-only model includes the
    input, without padding.
    """
    if processors is None or processors == Processors():
        return None
    start = model.config.decoder_start_token_id
    prompt = jnp.full((len(input_ids), 1), start, jnp.int32)
    if model.config.architecture != "encoder_decoder":
        real = segment_ids > 0
        shift = real.shape[1] - real.sum(1)
        text = jax.vmap(jnp.roll)(jnp.where(real, input_ids, NO_TOKEN), shift)
        prompt = jnp.concatenate([jnp.full_like(prompt, NO_TOKEN), text], axis=1)
        prompt = jnp.where(jnp.arange(prompt.shape[1]) == shift[:, None], start, prompt)
    return Constraints(processors, jnp.repeat(prompt, copies, axis=0), eos_id)


def penalize_repetition(scores: jax.Array, past: jax.Array, end: jax.Array, penalty: float) -> jax.Array:
    """Divide the positive scores [..., V] of all tokens in past[..., :end] by the penalty and multiply the others."""
    seen = _marked(past, (past >= 0) & (jnp.arange(past.shape[-1]) < end), scores.shape[-1])
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def repeated_ngrams(past: jax.Array, end: jax.Array, size: int, vocabulary: int) -> jax.Array:
    """bool [..., V]: the tokens that would complete an n-gram of past[..., :end], int32 [..., T], a second time."""
    windows = past.shape[-1] - size + 1
    if windows < 1:
        return jnp.zeros((*past.shape[:-1], vocabulary), bool)
    last = past[..., size - 1 :]  # of each window
    matches = (last >= 0) & (jnp.arange(windows) + size - 1 < end)
    for i in range(size - 1):
        token = past[..., i : i + windows]
        matches &= (token == _token_at(past, end - size + 1 + i)) & (token >= 0)
    return _marked(last, matches, vocabulary)


def completes(words: tuple[int, ...], past: jax.Array, end: jax.Array, vocabulary: int) -> jax.Array:
    """bool [..., V]: the last of `words`, where past[..., :end] ends with the others."""
    fits = jnp.ones((*past.shape[:-1], 1), bool)
    for i, word in enumerate(words[:-1]):
        at = end - len(words) + 1 + i
        fits &= (_token_at(past, at) == word) & (at >= 0)
    return fits & (jnp.arange(vocabulary) == words[-1])


def _token_at(past: jax.Array, position: jax.Array) -> jax.Array:
    """int32 [..., 1]; the first or last one for a position outside."""
    return lax.dynamic_slice_in_dim(past, position, 1, axis=past.ndim - 1)


def _marked(tokens: jax.Array, marked: jax.Array, vocabulary: int) -> jax.Array:
    """tokens int32 [..., N], marked bool [..., N] -> bool [..., V]: which tokens are marked at least once."""

    def mark(row: jax.Array) -> jax.Array:
        return jnp.zeros(vocabulary, bool).at[row].set(True, mode="drop")

    mark_all: Callable[[jax.Array], jax.Array] = mark
    for _ in range(tokens.ndim - 1):
        mark_all = jax.vmap(mark_all)
    return mark_all(jnp.where(marked, tokens, vocabulary))
