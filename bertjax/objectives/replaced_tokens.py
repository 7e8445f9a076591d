"""Replaced-token detection (arXiv 2003.10555; run_pretraining.py of google-research/electra).

B rows, S positions, N masked positions, V vocabulary.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from bertjax.config.schema.pretraining import ReplacedTokensObjective
from bertjax.models.bert.model import Bert
from bertjax.models.layers.dropout import hash_bits
from bertjax.objectives.base import (
    Batch,
    LossTerm,
    Objective,
    binary_cross_entropy,
    cross_entropy,
    is_correct,
    weighted_sums,
)
from bertjax.objectives.registry import ObjectiveKind

EVALUATION_SEED = 0  # of the tokens that are sampled without a key
SCORE_BINS, LARGEST_SCORE = 1000, 10.0  # of the curve in evaluations: logits between -10 and 10


def replaced_tokens(config: ReplacedTokensObjective, tasks: int) -> Objective:
    """generator_weight * MLM loss of the generator + discriminator_weight * loss of the discriminator.

    MLM: sum(w * ce) / (sum(w) + 1e-6) over masked positions. The discriminator reads the text with each masked token
    replaced by a sample of the generator; its loss is the mean binary cross-entropy over non-padding tokens of "this is
    not the original token". A sample that equals the original is original. No gradient flows through the samples. The
    reference divides per replica; here the divisors are those of the global batch.
    """
    weights = {"mlm": config.generator_weight, "rtd": config.discriminator_weight}

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        return {"mlm": batch["masked_weights"].sum() + 1e-6, "rtd": jnp.maximum(_real_tokens(batch).sum(), 1e-6)}

    def losses(model: Bert, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        keys = (None, None, jax.random.key(EVALUATION_SEED)) if key is None else tuple(jax.random.split(key, 3))
        masked, packed = batch["input_ids"], batch["cls_positions"].shape[1] > 1
        types, segments, positions = batch["token_type_ids"], batch["segment_ids"], batch["positions"]
        logits = model.generator_logits(
            masked, types, segments, positions, batch["masked_positions"], packed=packed, key=keys[0]
        )
        loss, right = cross_entropy(logits, batch["masked_ids"]), is_correct(logits, batch["masked_ids"])
        mlm = weighted_sums(loss, right, batch["masked_weights"], batch, tasks)

        original = put_tokens(masked, batch, batch["masked_ids"])
        ids = put_tokens(masked, batch, sample_tokens(logits, keys[2], config.temperature))
        hidden = model.encode(ids, types, segments, positions, packed=packed, key=keys[1])
        scores, replaced = model.heads.discriminator(hidden), ids != original
        rtd = _detection(scores, replaced, batch, tasks)
        if key is None:
            rtd = replace(rtd, by_score=_weights_by_score(scores, replaced, _real_tokens(batch)))
        return {"mlm": mlm, "rtd": rtd}

    return Objective(("generator", "discriminator"), 2, weights, normalizers, losses, decisions=("rtd",))


def _real_tokens(batch: Batch) -> jax.Array:
    """float32 [B, S]: 1 on tokens, 0 on padding and on rows after the end of the data."""
    return (batch["segment_ids"] > 0).astype(jnp.float32)


def _detection(logits: jax.Array, replaced: jax.Array, batch: Batch, tasks: int) -> LossTerm:
    """Logits [B, S] and whether each token was replaced, bool [B, S] -> the sums of the discriminator's loss."""
    weights, found = _real_tokens(batch), logits > 0
    term = weighted_sums(binary_cross_entropy(logits, replaced), found == replaced, weights, batch, tasks)
    counted = [(x * weights).sum() for x in (found & replaced, found, replaced)]
    return replace(term, positives=jnp.stack(counted))


def _weights_by_score(scores: jax.Array, positive: jax.Array, weights: jax.Array) -> jax.Array:
    """[B, S] each -> float32 [2, SCORE_BINS]: the weights of negatives and positives by their score."""
    place = (scores.astype(jnp.float32) + LARGEST_SCORE) * (SCORE_BINS / (2 * LARGEST_SCORE))
    index = jnp.clip(place.astype(jnp.int32), 0, SCORE_BINS - 1)
    return jnp.zeros((2, SCORE_BINS), jnp.float32).at[positive.astype(jnp.int32), index].add(weights)


def sample_tokens(logits: jax.Array, key: jax.Array, temperature: float = 1.0) -> jax.Array:
    """One token of softmax(logits [B, N, V] / temperature) for each position, int32 [B, N], without gradient.

    The largest of logits and Gumbel noise (sample_from_softmax of pretrain_helpers.py). The noise depends on the key
    and the place in the global batch alone, not on the mesh.
    """
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature
    bits = hash_bits(key, logits.shape, ("batch", None, "vocab")).astype(jnp.float32)
    # the noise is largest near 0, where floats are densest, so that ties of unlikely tokens are rare
    uniform = jnp.minimum((bits + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return jnp.argmax(logits - jnp.log(-jnp.log1p(-uniform)), axis=-1).astype(jnp.int32)


def put_tokens(ids: jax.Array, batch: Batch, tokens: jax.Array) -> jax.Array:
    """ids [B, S] with `tokens` [B, N] at the masked positions; the padding of these changes nothing.

    By comparison, not as a scatter, which the partitioner splits badly.
    """
    there = jnp.arange(ids.shape[1]) == batch["masked_positions"][..., None]
    there = there & (batch["masked_weights"] > 0)[..., None]
    return jnp.where(there.any(1), jnp.where(there, tokens[..., None], 0).max(1), ids)


REPLACED_TOKENS = ObjectiveKind(replaced_tokens)
