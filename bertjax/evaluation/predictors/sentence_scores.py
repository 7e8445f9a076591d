"""How likely a sentence is to a pre-trained model of any kind, to tell the better one of a minimal pair."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config.schema.model import T5Config
from bertjax.evaluation.inference.length_batches import Forward
from bertjax.evaluation.inference.token_rows import TokenRow, frame
from bertjax.evaluation.predictors.base import Predictor
from bertjax.evaluation.predictors.masked_scores import MaskScorer, sum_over_tokens
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.models import families

# sentences as ids without special tokens -> a score of each; only scores of one model compare
Score = Callable[[Sequence[Sequence[int]]], list[float]]


def sentence_score(restored: RestoredCheckpoint) -> tuple[str, Score] | None:
    """-> (what the score of a sentence is, the function) by the objective of the checkpoint; None where it has none."""
    kind = restored.ctx.config.stages[restored.stage].objective.kind
    return (_SCORES[kind][0], _SCORES[kind][1](restored)) if kind in _SCORES else None


def _masked(restored: RestoredCheckpoint) -> Score:
    return MaskScorer(restored).pseudo_log_likelihoods


def _hidden_spans(restored: RestoredCheckpoint) -> Score:
    """Each token in turn is a hidden span: ln p(token) after its sentinel, given the text with the sentinel in it."""
    predictor = Predictor(restored)
    tokenizer, model = predictor.tokenizer, restored.program.model
    assert isinstance(model, T5Config), "the objective text_to_text trains no other family"
    forward = token_of_span(tokenizer.sentinel_id(0), model.decoder_start_token_id)
    batches = predictor.length_batches(forward)
    return lambda texts: sum_over_tokens(tokenizer, texts, lambda rows: batches(predictor.params, rows))


def token_of_span(sentinel: int, start: int) -> Forward:
    """(model, batch) -> float32 [B]: ln p of the token `gold` at the place `masks`, where the sentinel is."""

    def forward(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        ids, segments = batch["input_ids"], batch["segment_ids"]
        hidden = model.encode(jnp.where(jnp.arange(ids.shape[1]) == batch["masks"], sentinel, ids), segments)
        given = jnp.broadcast_to(jnp.array([start, sentinel], ids.dtype), (len(ids), 2))
        logits = model.logits(model.decode(given, jnp.ones_like(given), hidden, segments))[:, 1]
        scores = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return jnp.take_along_axis(scores, batch["gold"], axis=-1)[:, 0]

    return forward


def _in_direction(offsets: tuple[int, ...]) -> Callable[[RestoredCheckpoint], Score]:
    """The score of a language model of the token `offset` places on, summed over the directions that it has."""

    def make(restored: RestoredCheckpoint) -> Score:
        predictor = Predictor(restored)
        inputs = families.record_of(restored.program.model).encoder_inputs(restored.program.model)
        batches = predictor.length_batches(chain_of_tokens(inputs, offsets))
        rows = lambda texts: [TokenRow(frame(predictor.tokenizer, ids)) for ids in texts]  # noqa: E731
        return lambda texts: [float(x) for x in batches(predictor.params, rows(texts))]

    return make


def chain_of_tokens(inputs: Sequence[str], offsets: Sequence[int]) -> Forward:
    """(model, batch) -> float32 [B]: ln p of the row, special tokens included, of each direction in turn, added.

    A direction has its part of the states, and predicts the token `offset` places on: 1, or -1 for backward.
    """

    def forward(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        hidden = jnp.split(model.token_states(*(batch[name] for name in inputs)), len(offsets), axis=-1)
        terms = (_neighbor_sum(model.lm_logits(h), batch, o) for h, o in zip(hidden, offsets, strict=True))
        return sum(terms, jnp.float32(0))

    return forward


def _neighbor_sum(logits: jax.Array, batch: Mapping[str, jax.Array], offset: int) -> jax.Array:
    """Sum over the tokens [B, S] of ln p of the token `offset` places on, inside the text; logits [B, S, V] -> [B]."""
    targets, real = (jnp.roll(batch[name], -offset, axis=1) for name in ("input_ids", "segment_ids"))
    real = real.at[:, -1 if offset > 0 else 0].set(0) * batch["segment_ids"]
    scores = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    found = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return jnp.where(real > 0, found, 0).sum(-1)


def _word_vectors(mean_context: bool) -> Callable[[RestoredCheckpoint], Score]:
    """Mean ln sigmoid(x . output vector of a token), x being the input vectors within the window around it.

    `mean_context`: x is their mean (CBOW), else each of them in turn (skip-gram). Order counts only by the window.
    """

    def make(restored: RestoredCheckpoint) -> Score:
        window = restored.ctx.config.stages[restored.stage].objective.window
        tables = [restored.params[f"{name}/embedding"] for name in ("embeddings/word", "heads/context")]
        inner, outer = (np.asarray(jax.device_get(table), np.float32) for table in tables)
        return lambda texts: [mean_log_sigmoid(inner, outer, np.asarray(ids), window, mean_context) for ids in texts]

    return make


def mean_log_sigmoid(inner: np.ndarray, outer: np.ndarray, ids: np.ndarray, window: int, mean_context: bool) -> float:
    """The score of one sentence, ids [N]; input vectors [V, D] and output vectors [V, D]. 0 without a neighbour."""
    distance = np.abs(np.arange(len(ids))[:, None] - np.arange(len(ids)))
    near = (distance > 0) & (distance <= window)
    if not near.any():
        return 0.0
    weights = near / np.maximum(near.sum(1, keepdims=True), 1)
    if mean_context:
        logits = ((weights @ inner[ids]) * outer[ids]).sum(-1)[near.any(1)]
    else:
        logits = (outer[ids] @ inner[ids].T)[near]
    return float(-np.logaddexp(0, -logits).mean())


_SCORES: dict[str, tuple[str, Callable[[RestoredCheckpoint], Score]]] = {
    "mlm_nsp": ("pseudo-log-likelihood: each token masked in turn", _masked),
    "text_to_text": ("pseudo-log-likelihood: each token in turn a hidden span", _hidden_spans),
    "causal_lm": ("log probability", _in_direction((1,))),
    "bidirectional_lm": ("log probabilities forward and backward, added", _in_direction((1, -1))),
    "cbow": ("mean log-sigmoid of the words given their context", _word_vectors(mean_context=True)),
    "skip_gram": ("mean log-sigmoid of the words given each neighbour", _word_vectors(mean_context=False)),
}
