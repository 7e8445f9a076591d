"""Linear heads of word2vec, ELMo and GPT, the summary of an example that their classifier reads, and their methods.

B rows, S positions, D hidden, G examples in a row.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.errors import UserError
from bertjax.models.bert.heads import LayerMix, Output, gather_positions
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.dropout import dropout
from bertjax.models.layers.modules import Initializer

TASK_HEADS = ("qa", "classifier", "token_classifier")


class TaskHeads(nnx.Module):
    """Dropout and a linear layer for each task, on hidden states of `width`.

    `mixed`: the number of hidden states that the heads read a mixture of, each normalized; 0: they read one.
    """

    def __init__(
        self, width: int, names: tuple[str, ...], known: tuple[str, ...], num_labels: int, rate: float,
        init: Initializer, compute: ComputeOptions, rngs: nnx.Rngs, mixed: int = 0,
    ):  # fmt: skip
        """`known`: the heads of the family. Raises UserError for another one in `names`."""
        if other := set(names) - set(known):
            raise UserError(f"this model has no head '{min(other)}'; it can have {', '.join(known)}")
        for name in TASK_HEADS:
            if name in names:
                outputs = 2 if name == "qa" else num_labels
                setattr(self, name, Output((width, outputs), ("embed", None), init, compute, rngs))
        if mixed:
            self.layer_mix = LayerMix(mixed, compute, normalize=True)
        self.width, self.rate, self.compute = width, rate, compute

    def mix_layers(self, features: jax.Array) -> jax.Array:
        """`join_layers` of hidden states, at any number of positions -> what the heads read, [B, S, D]."""
        if not hasattr(self, "layer_mix"):
            return features
        return self.layer_mix(features.reshape(*features.shape[:-1], -1, self.width))

    def class_logits(self, hidden: jax.Array, cls_positions: jax.Array, key: jax.Array | None) -> jax.Array:
        """hidden [B, S, D] at int [B, G] -> float32 [B, G, C]."""
        pooled = gather_positions(hidden, cls_positions)
        return self.classifier(dropout(pooled, self.rate, key, self.compute))

    def token_logits(self, hidden: jax.Array, key: jax.Array | None) -> jax.Array:
        """hidden [B, S, D] -> float32 [B, S, C]."""
        return self.token_classifier(dropout(hidden, self.rate, key, self.compute))

    def qa_logits(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """hidden [B, S, D] -> start and end logits, float32 [B, S]."""
        logits = self.qa(hidden)
        return logits[..., 0], logits[..., 1]


def join_layers(states: Sequence[jax.Array], feature_layers: str) -> jax.Array:
    """Hidden states [B, S, D] -> the last, the sum of the last four or, `weighted`, all N of them, [B, S, N * D]."""
    if feature_layers == "weighted":
        return jnp.concatenate(states, axis=-1)
    if feature_layers == "sum_last_four":
        return sum((x.astype(jnp.float32) for x in states[-4:]), jnp.float32(0)).astype(states[-1].dtype)
    return states[-1]


def put_mean_first(hidden: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
    """hidden [B, S, D] with the mean over the tokens of each example at its first position, [CLS]."""
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids > 0)[:, :, None]
    share = same.astype(jnp.float32) / jnp.maximum(same.sum(-1, keepdims=True), 1)
    mean = jnp.einsum("bqs,bsd->bqd", share.astype(hidden.dtype), hidden, preferred_element_type=jnp.float32)
    return _put_first(hidden, mean.astype(hidden.dtype), segment_ids, positions)


def put_last_first(hidden: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
    """hidden [B, S, D] with the state of the last token of each example at its first position, [CLS]."""
    lengths = (segment_ids[:, :, None] == segment_ids[:, None, :]).sum(-1)
    last = jnp.minimum(jnp.arange(hidden.shape[1]) + lengths - 1, hidden.shape[1] - 1)
    return _put_first(hidden, gather_positions(hidden, last), segment_ids, positions)


def _put_first(hidden: jax.Array, summary: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
    first = (segment_ids > 0) & (positions == 0)
    return jnp.where(first[..., None], summary, hidden)


# ---- methods of the models with these heads -------------------------------------------------------------------------
# Each family assigns them in its class. It has `token_states` (the top layer of each token), `all_states` (a list of
# all layers), `put_summary` (one of the functions above), `heads` (TaskHeads) and `feature_layers`.


def encode(
    model: Any, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *,
    packed: bool = False, key: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """int [B, S] x 4 -> [B, S, D]: `token_states`, with the summary of each example at its first position."""
    fields = (input_ids, token_type_ids, segment_ids, positions)
    if model.feature_layers:
        return model.mix_layers(model.features(*fields, packed=packed))
    return model.put_summary(model.token_states(*fields, packed=packed, key=key), segment_ids, positions)


def hidden_states(
    model: Any, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *,
    packed: bool = False,
) -> list[jax.Array]:  # fmt: skip
    """int [B, S] x 4 -> the embeddings [B, S, D] and the output of each layer, first positions as in `encode`."""
    states = model.all_states(input_ids, token_type_ids, segment_ids, positions, packed=packed)
    return [model.put_summary(x, segment_ids, positions) for x in states]


def features(
    model: Any, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *,
    packed: bool = False,
) -> jax.Array:  # fmt: skip
    """int [B, S] x 4 -> what `mix_layers` reads, [B, S, D], or [B, S, N * D] of the N hidden states to mix."""
    states = model.hidden_states(input_ids, token_type_ids, segment_ids, positions, packed=packed)
    return join_layers(states, model.feature_layers)


def mix_layers(model: Any, features: jax.Array) -> jax.Array:
    """`features` of any number of positions -> what heads read, [B, S, D]."""
    return model.heads.mix_layers(features)


def class_logits(model: Any, hidden: jax.Array, cls_positions: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """-> float32 [B, G, C]."""
    return model.heads.class_logits(hidden, cls_positions, key)


def token_logits(model: Any, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """-> float32 [B, S, C]."""
    return model.heads.token_logits(hidden, key)


def qa_logits(model: Any, hidden: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """-> start and end logits, float32 [B, S]."""
    return model.heads.qa_logits(hidden)
