"""The objective of sentence embeddings: losses of sentence-transformers on the vectors of pairs and triplets.

B rows of a batch (or of its shard), N rows of the global batch, T texts in a row, D numbers in a vector.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bertjax.config.schema.training import SentenceEmbeddingObjective
from bertjax.models.bert.model import Bert
from bertjax.models.pooling import Pooling, pool, unit_length
from bertjax.objectives.base import (
    Batch,
    LossTerm,
    Objective,
    Outputs,
    SoftTargets,
    cross_entropy,
    is_correct,
    weighted_sums,
)
from bertjax.objectives.distillation import cosine
from bertjax.objectives.registry import ObjectiveKind
from bertjax.parallel.sharding import all_gather_rows, shard_index

NEAR = 0.1  # a cosine this near to its score counts as right


def text_vectors(
    model: Bert, batch: Batch, pooling: Pooling, normalize: bool, key: jax.Array | None = None
) -> jax.Array:
    """The vectors of all texts of a batch of `text_pairs` rows -> float32 [B, T, D]."""
    return encode_texts(model, batch, pooling, normalize, key)["vectors"]


def encode_texts(
    model: Bert, batch: Batch, pooling: Pooling, normalize: bool, key: jax.Array | None = None
) -> dict[str, jax.Array]:
    """-> {"hidden": the last layer [B, S, D] of rows of all their texts, "vectors": float32 [B, T, D]}."""
    rows, texts = batch["text_starts"].shape
    fields = {name: batch[name].reshape(rows * texts, -1) for name in ("input_ids", "token_type_ids", "positions")}
    segments = jnp.minimum(batch["segment_ids"].reshape(rows * texts, -1), 1)
    hidden = model.encode(fields["input_ids"], fields["token_type_ids"], segments, fields["positions"], key=key)
    vectors = pool(hidden, segments, pooling, normalize).reshape(rows, texts, -1)
    return {"hidden": hidden.reshape(rows, -1, hidden.shape[-1]), "vectors": vectors}


def sentence_embedding(config: SentenceEmbeddingObjective, tasks: int) -> Objective:
    """The mean loss of the rows; the log's accuracy is that of `multiple_negatives`, `triplet` or `cosine_similarity`.

    Rows after the end of the data have weight 0 and are no negatives of others.
    """

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        return {"pair": jnp.maximum(batch["pair_weights"].sum(), 1e-5)}

    def outputs(model: Bert, batch: Batch, key: jax.Array | None) -> Outputs:
        return encode_texts(model, batch, config.pooling, config.normalize, key)

    def terms(found: Outputs, batch: Batch) -> dict[str, LossTerm]:
        vectors = found["vectors"]
        if config.loss == "triplet":
            loss, right = triplet(vectors, config.distance, config.triplet_margin)
        elif config.loss == "cosine_similarity":
            loss, right = cosine_similarity(vectors, batch["scores"][:, 0])
        else:
            loss, right = multiple_negatives(vectors, batch["pair_weights"], config.scale, config.symmetric)
        weights = batch["pair_weights"]
        loss = jnp.where(weights > 0, loss[:, None], 0)
        return {"pair": weighted_sums(loss, right[:, None], weights, batch, tasks)}

    def vectors(model: Bert, batch: Batch) -> jax.Array:
        return text_vectors(model, batch, config.pooling, config.normalize)

    losses = lambda model, batch, key: terms(outputs(model, batch, key), batch)  # noqa: E731
    return Objective(
        (), 2, {"pair": 1.0}, normalizers, losses, sequences=_texts_per_row, vectors=vectors,
        soft_targets=lambda _: SoftTargets((), outputs, terms, _compare_vectors, _text_weights),
    )  # fmt: skip


def _compare_vectors(mine: Outputs, theirs: Outputs, _: Batch) -> tuple[jax.Array, jax.Array]:
    """The mean squared error of each text's vector (MSELoss of sentence-transformers), and whether cosines are near."""
    error = ((mine["vectors"] - theirs["vectors"]) ** 2).mean(-1)
    return error, 1 - cosine(mine["vectors"], theirs["vectors"]) <= NEAR


def _text_weights(batch: Batch) -> jax.Array:
    """float32 [B, T]: 0 for rows after the end of the data."""
    return jnp.broadcast_to(batch["pair_weights"], batch["text_starts"].shape).astype(jnp.float32)


def _texts_per_row(fields: Mapping[str, Any]) -> int:
    return int(fields["text_starts"][0][0])


def multiple_negatives(
    vectors: jax.Array, weights: jax.Array, scale: float, symmetric: bool
) -> tuple[jax.Array, jax.Array]:
    """vectors [B, T, D], weights [B, 1] -> (losses [B], whether no candidate is nearer than the positive [B]).

    MultipleNegativesRankingLoss: -log softmax(scale * cos(anchor, .))[positive] over the positives and negatives of the
    global batch. As there, equal texts in other rows are negatives. `symmetric`: the mean with the same of each
    positive over all anchors (MultipleNegativesSymmetricRankingLoss).
    """
    own = unit_length(vectors)
    every, real = all_gather_rows(own), all_gather_rows(weights)[:, 0] > 0  # [N, T, D], [N]
    _, shard = shard_index("batch")
    targets = shard * own.shape[0] + jnp.arange(own.shape[0])

    def logits(queries_BD: jax.Array, candidates_ND: jax.Array) -> jax.Array:
        found = jnp.einsum("bd,nd->bn", queries_BD, candidates_ND, precision=jax.lax.Precision.HIGHEST)
        there = jnp.tile(real, candidates_ND.shape[0] // real.shape[0])
        return jnp.where(there[None, :], scale * found, -1e30)

    candidates = jnp.moveaxis(every[:, 1:], 1, 0).reshape(-1, every.shape[-1])  # all positives, then all negatives
    forward = logits(own[:, 0], candidates)
    loss, right = cross_entropy(forward, targets), is_correct(forward, targets)
    if symmetric:
        loss = (loss + cross_entropy(logits(own[:, 1], every[:, 0]), targets)) / 2
    return loss, right


def triplet(vectors: jax.Array, distance: str, margin: float) -> tuple[jax.Array, jax.Array]:
    """vectors [B, 3, D] -> (losses [B], whether the positive is nearer than the negative [B]).

    TripletLoss: max(d(anchor, positive) - d(anchor, negative) + margin, 0).
    """
    anchor, positive, negative = (vectors[:, number] for number in range(3))
    measure = _cosine_distance if distance == "cosine" else _euclidean_distance
    near, far = measure(anchor, positive), measure(anchor, negative)
    return jax.nn.relu(near - far + margin), near < far


def _cosine_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    return 1 - (unit_length(a) * unit_length(b)).sum(-1)


def _euclidean_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(((a - b) ** 2).sum(-1), 1e-24))  # the gradient at 0 is 0


def cosine_similarity(vectors: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """vectors [B, T, D], scores [B] -> (losses [B], whether the cosine is within NEAR of the score [B]).

    CosineSimilarityLoss: (cos(text_a, text_b) - score)^2.
    """
    error = (unit_length(vectors[:, 0]) * unit_length(vectors[:, 1])).sum(-1) - scores
    return error**2, jnp.abs(error) <= NEAR


SENTENCE_EMBEDDING = ObjectiveKind(sentence_embedding)
