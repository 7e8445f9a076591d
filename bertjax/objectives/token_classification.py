"""The objective of token classification."""

import jax
import jax.numpy as jnp

from bertjax.config.schema.training import TokenClassificationObjective
from bertjax.models.bert.model import Bert
from bertjax.objectives.base import (
    ALL_POSITIONS,
    Batch,
    LossTerm,
    Objective,
    cross_entropy,
    is_correct,
    weighted_sums,
)
from bertjax.objectives.encoder import encode
from bertjax.objectives.registry import ObjectiveKind


def token_classification(config: TokenClassificationObjective, tasks: int) -> Objective:
    """Mean cross-entropy of the labelled tokens, as BertForTokenClassification of transformers (ignore_index -100).

    The divisor is the number of labelled tokens of the global batch, whatever the micro-batches and the mesh.
    """

    def weights(batch: Batch) -> jax.Array:
        """float32 [B, S]; rows after the end of the data are padding, whose labels are 0."""
        return ((batch["token_labels"] >= 0) & (batch["segment_ids"] > 0)).astype(jnp.float32)

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        return {"tag": jnp.maximum(weights(batch).sum(), 1e-5)}

    def losses(model: Bert, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        keys = (None, None) if key is None else jax.random.split(key)
        logits = model.token_logits(encode(model, batch, keys[0]), keys[1])
        labels = jnp.maximum(batch["token_labels"], 0)
        loss = cross_entropy(logits, labels)
        return {"tag": weighted_sums(loss, is_correct(logits, labels), weights(batch), batch, tasks)}

    return Objective(
        ("token_classifier",), config.num_labels, {"tag": 1.0}, normalizers, losses, kept_positions=ALL_POSITIONS
    )


TOKEN_CLASSIFICATION = ObjectiveKind(token_classification)
