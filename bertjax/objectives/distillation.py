"""Knowledge distillation: an objective with the losses of a teacher's outputs added (arXiv 1503.02531, 1910.01108).

The losses are those of transformers' research_projects/distillation (distiller.py, run_squad_w_distillation.py).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from bertjax.config.schema.distillation import Distillation
from bertjax.errors import UserError
from bertjax.models.pooling import unit_length
from bertjax.models.registry import Module
from bertjax.objectives.base import Batch, LossTerm, Objective, SoftTargets, weighted_sums

PREFIX = "teacher/"  # of the batch fields that hold the teacher's outputs


def distill(objective: Objective, config: Distillation, tasks: int) -> Objective:
    """The objective with the terms `kd` (soft targets) and, unless its weight is 0, `cosine` (hidden states).

    A batch without the teacher's fields, as of an evaluation, gives the objective's own terms. The accuracy of `kd` is
    the share of predictions equal to the teacher's, that of `cosine` the mean cosine. Raises UserError for an objective
    that cannot be distilled.
    """
    soft = soft_targets(objective, config)
    added = {"kd": config.kd_weight} | ({"cosine": config.cosine_weight} if config.cosine_weight else {})

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        sums = {"kd": soft.weights(batch).sum(), "cosine": soft.tokens(batch).sum()}
        return objective.normalizers(batch) | {name: jnp.maximum(sums[name], 1e-5) for name in added}

    def teach(model: Module, batch: Batch) -> dict[str, jax.Array]:
        found = soft.outputs(model, batch, None) if soft.teacher_outputs is None else soft.teacher_outputs(model, batch)
        return {f"{PREFIX}{name}": x for name, x in found.items() if name != "hidden" or "cosine" in added}

    def losses(model: Module, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        outputs = soft.outputs(model, batch, key)
        terms = soft.losses(outputs, batch)
        theirs = {name.removeprefix(PREFIX): x for name, x in batch.items() if name.startswith(PREFIX)}
        if not theirs:
            return terms
        loss, same = soft.compare(outputs, theirs, batch)
        weights = soft.weights(batch)
        terms["kd"] = weighted_sums(jnp.where(weights > 0, loss, 0), same, weights, batch, tasks)
        if "cosine" in added:
            near = cosine(outputs["hidden"], theirs["hidden"])
            terms["cosine"] = weighted_sums(1 - near, near, soft.tokens(batch), batch, tasks)
        return terms

    return replace(
        objective, weights={**objective.weights, **added}, normalizers=normalizers, losses=losses, teach=teach,
        row_widths=soft.row_widths,
    )  # fmt: skip


def soft_targets(objective: Objective, config: Distillation) -> SoftTargets:
    """How an objective learns a teacher's outputs. Raises UserError for one that cannot be distilled."""
    if objective.soft_targets is None:
        raise UserError(
            "distillation: this objective cannot learn from a teacher: its Objective has no soft_targets; remove "
            "distillation, or add them to the plugin"
        )
    return objective.soft_targets(config)


def soft_cross_entropy(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """KL(softmax(teacher / T) || softmax(logits / T)) * T^2, logits [..., V] -> float32 [...].

    As torch.nn.KLDivLoss(reduction="batchmean") of one example.
    """
    mine = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    theirs = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    return (jnp.exp(theirs) * (theirs - mine)).sum(-1) * temperature**2


def same_choice(logits: jax.Array, teacher: jax.Array) -> jax.Array:
    """Whether the highest logits [..., V] are at one place -> bool [...]; the maximum is cheaper than an argmax."""
    logits, teacher = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (logits, teacher))
    top = teacher >= teacher.max(-1, keepdims=True)
    return jnp.where(top, logits, -jnp.inf).max(-1) >= logits.max(-1)


def compare_logits(logits: jax.Array, teacher: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """-> (`soft_cross_entropy`, `same_choice`) of logits [..., V]."""
    return soft_cross_entropy(logits, teacher, temperature), same_choice(logits, teacher)


def cosine(hidden: jax.Array, teacher: jax.Array) -> jax.Array:
    """The cosine of vectors [..., D] -> float32 [...]."""
    return (unit_length(hidden.astype(jnp.float32)) * unit_length(teacher.astype(jnp.float32))).sum(-1)
