"""Hidden states of a batch for objectives of encoders: from the encoder, or kept from an earlier pass (features)."""

import jax
import jax.numpy as jnp

from bertjax.models.bert.heads import gather_positions
from bertjax.models.bert.model import Bert
from bertjax.objectives.base import ALL_POSITIONS, FEATURES, FROZEN_STATES, Batch


def encode(model: Bert, batch: Batch, key: jax.Array | None) -> jax.Array:
    """The hidden states that the heads read, [B, S, D], or at kept positions (`features`)."""
    if FEATURES in batch:
        return model.mix_layers(batch[FEATURES])
    if FROZEN_STATES in batch:
        states = batch[FROZEN_STATES]
        return model.encode_above(states, batch["segment_ids"], packed=_is_packed(batch), key=key)
    return model.encode(*_inputs(batch), packed=_is_packed(batch), key=key)


def positions(batch: Batch, name: str) -> jax.Array:
    """The positions `name` [B, G] of a batch as positions in what `encode` returns, where only these are kept."""
    places = batch[name]
    return jnp.broadcast_to(jnp.arange(places.shape[1]), places.shape) if FEATURES in batch else places


def features(model: Bert, batch: Batch, kept: str) -> jax.Array:
    """Hidden states of a frozen encoder to keep for later steps, [B, S, N * D], or [B, G, N * D] of the field `kept`.

    N is 1, or the number of hidden states that `mix_layers` weights.
    """
    found = model.features(*_inputs(batch), packed=_is_packed(batch))
    return found if kept == ALL_POSITIONS else gather_positions(found, batch[kept])


def frozen_states(model: Bert, batch: Batch) -> jax.Array:
    """Outputs of the frozen layers below those that train, to keep for later steps, [B, S, D]."""
    return model.frozen_states(*_inputs(batch), packed=_is_packed(batch))


def _inputs(batch: Batch) -> list[jax.Array]:
    return [batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions")]


def _is_packed(batch: Batch) -> bool:
    return batch["cls_positions"].shape[1] > 1
