"""The objective of token classification."""

import jax
import jax.numpy as jnp

from bertjax.config.schema.distillation import Distillation
from bertjax.config.schema.training import TokenClassificationObjective
from bertjax.models.bert.model import Bert
from bertjax.objectives.base import (
    ALL_POSITIONS,
    Batch,
    LossTerm,
    Objective,
    Outputs,
    SoftTargets,
    cross_entropy,
    is_correct,
    weighted_sums,
)
from bertjax.objectives.distillation import compare_logits
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

    def outputs(model: Bert, batch: Batch, key: jax.Array | None) -> Outputs:
        keys = (None, None) if key is None else jax.random.split(key)
        hidden = encode(model, batch, keys[0])
        return {"hidden": hidden, "token_classifier": model.token_logits(hidden, keys[1])}

    def terms(found: Outputs, batch: Batch) -> dict[str, LossTerm]:
        logits, labels = found["token_classifier"], jnp.maximum(batch["token_labels"], 0)
        loss = cross_entropy(logits, labels)
        return {"tag": weighted_sums(loss, is_correct(logits, labels), weights(batch), batch, tasks)}

    def soft_targets(distillation: Distillation) -> SoftTargets:
        def compare(mine: Outputs, theirs: Outputs, _: Batch) -> tuple[jax.Array, jax.Array]:
            return compare_logits(mine["token_classifier"], theirs["token_classifier"], distillation.temperature)

        return SoftTargets(("token_classifier",), outputs, terms, compare, weights)

    losses = lambda model, batch, key: terms(outputs(model, batch, key), batch)  # noqa: E731
    return Objective(
        ("token_classifier",),
        config.num_labels,
        {"tag": 1.0},
        normalizers,
        losses,
        soft_targets=soft_targets,
        kept_positions=ALL_POSITIONS,
    )


TOKEN_CLASSIFICATION = ObjectiveKind(token_classification)
