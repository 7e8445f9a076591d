"""Objectives of language models that predict the next token (GPT), or the next and the one before (ELMo)."""

import jax
import jax.numpy as jnp

from bertjax.config.schema.ladder_objectives import BidirectionalLmObjective, CausalLmObjective
from bertjax.models.elmo.model import Elmo
from bertjax.models.gpt import Gpt
from bertjax.objectives.base import Batch, LossTerm, Objective, weighted_sums
from bertjax.objectives.losses import target_losses
from bertjax.objectives.registry import ObjectiveKind


def _has_neighbor(segment_ids: jax.Array, offset: int) -> jax.Array:
    """Whether the token `offset` places on is one of the same example: float32 [B, S]."""
    other = jnp.roll(segment_ids, -offset, axis=1)
    edge = -1 if offset > 0 else 0
    other = other.at[:, edge].set(0)
    return ((segment_ids > 0) & (segment_ids == other)).astype(jnp.float32)


def _neighbor_term(logits: jax.Array, batch: Batch, offset: int, tasks: int) -> LossTerm:
    """Cross-entropy of the token `offset` places on, inside each example; logits [B, S, V]."""
    targets = jnp.roll(batch["input_ids"], -offset, axis=1)
    trained, _, right = target_losses(logits, targets)
    return weighted_sums(trained, right, _has_neighbor(batch["segment_ids"], offset), batch, tasks)


def _fields(batch: Batch) -> tuple[tuple[jax.Array, ...], bool]:
    fields = tuple(batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions"))
    return fields, batch["cls_positions"].shape[1] > 1


def causal_lm(_: CausalLmObjective, tasks: int) -> Objective:
    """Mean cross-entropy of each token of an example after its first, [CLS], from those before it."""

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        return {"lm": jnp.maximum(_has_neighbor(batch["segment_ids"], 1).sum(), 1)}

    def losses(model: Gpt, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        fields, packed = _fields(batch)
        hidden = model.token_states(*fields, packed=packed, key=key)
        return {"lm": _neighbor_term(model.lm_logits(hidden), batch, 1, tasks)}

    return Objective(("lm",), 2, {"lm": 1.0}, normalizers, losses)


def bidirectional_lm(_: BidirectionalLmObjective, tasks: int) -> Objective:
    """The mean cross-entropies of the next token and of the one before (arXiv 1802.05365 section 3.1), added.

    The special tokens are predicted too, as the sentence marks of the reference (allenai/bilm-tf).
    """

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        count = jnp.maximum(_has_neighbor(batch["segment_ids"], 1).sum(), 1)  # as many have one before them
        return {"forward": count, "backward": count}

    def losses(model: Elmo, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        fields, _ = _fields(batch)
        hidden = jnp.split(model.token_states(*fields, key=key), 2, axis=-1)
        names = zip(("forward", "backward"), hidden, (1, -1), strict=True)
        return {name: _neighbor_term(model.lm_logits(h), batch, offset, tasks) for name, h, offset in names}

    return Objective(("lm",), 2, {"forward": 1.0, "backward": 1.0}, normalizers, losses)


CAUSAL_LM = ObjectiveKind(causal_lm)
BIDIRECTIONAL_LM = ObjectiveKind(bidirectional_lm)
