"""The text-to-text objective of T5."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from bertjax.config.schema.distillation import Distillation
from bertjax.config.schema.training import TextToTextObjective
from bertjax.models.t5.model import T5, shift_right
from bertjax.objectives.base import Batch, LossTerm, Objective, Outputs, SoftTargets, weighted_sums
from bertjax.objectives.distillation import compare_logits
from bertjax.objectives.losses import normalize_per_sequence, target_losses
from bertjax.objectives.registry import ObjectiveKind


def text_to_text(config: TextToTextObjective, tasks: int) -> Objective:
    """Cross-entropy of every weighted target, sentinels and end included, as in t5x/models.py.

    The reported loss is the plain cross-entropy; only the total has z-loss, label smoothing and the weights of
    `average_per_sequence`. A batch without `input_ids` is for decoder-only models. The divisor by
    `loss_normalizing_factor` (get_loss_normalizing_factor_and_weights of t5x/losses.py) is that of the global batch.
    """
    factor = config.loss_normalizing_factor

    def weights(batch: Batch) -> jax.Array:
        given = batch["target_weights"]
        return normalize_per_sequence(given, batch["target_segment_ids"]) if factor == "average_per_sequence" else given

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        if not isinstance(factor, str):
            return {"target": jnp.float32(factor)}
        known = {"sum": 1.0, "num_total_target_tokens": float(batch["target_weights"].size)}
        return {"target": jnp.float32(known[factor] if factor in known else jnp.maximum(weights(batch).sum(), 1e-5))}

    def outputs(model: T5, batch: Batch, key: jax.Array | None) -> Outputs:
        keys = (None, None) if key is None else jax.random.split(key)
        targets, segments = batch["target_ids"], batch["target_segment_ids"]
        inputs = shift_right(targets, batch["target_positions"], model.config.decoder_start_token_id)
        if "input_ids" in batch:
            hidden = model.encode(batch["input_ids"], batch["segment_ids"], key=keys[0])
            decoded = model.decode(inputs, segments, hidden, batch["segment_ids"], key=keys[1])
        else:
            decoded = model.decode(inputs, segments, None, None, prefix_mask=batch["prefix_mask"], key=keys[1])
        return {"hidden": decoded, "lm": model.logits(decoded)}

    def terms(found: Outputs, batch: Batch) -> dict[str, LossTerm]:
        trained, plain, right = target_losses(found["lm"], batch["target_ids"], config.z_loss, config.label_smoothing)
        term = weighted_sums(plain, right, batch["target_weights"], batch, tasks)
        return {"target": replace(term, train_loss=(trained * weights(batch)).sum())}

    def soft_targets(distillation: Distillation) -> SoftTargets:
        def compare(mine: Outputs, theirs: Outputs, _: Batch) -> tuple[jax.Array, jax.Array]:
            return compare_logits(mine["lm"], theirs["lm"], distillation.temperature)

        given = lambda batch: batch["target_weights"].astype(jnp.float32)  # noqa: E731
        return SoftTargets(("lm",), outputs, terms, compare, given, tokens=given)

    losses = lambda model, batch, key: terms(outputs(model, batch, key), batch)  # noqa: E731
    return Objective(("lm",), 2, {"target": 1.0}, normalizers, losses, soft_targets=soft_targets)


TEXT_TO_TEXT = ObjectiveKind(text_to_text)
