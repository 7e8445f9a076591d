"""Model FLOPs of T5 by formula, as in models/bert/flops.py; causal attention counts visible keys."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bertjax.config.schema.model import T5Config


@dataclass(frozen=True)
class LayerCost:
    """FLOPs of a layer's forward pass for one row: products with weights, with the adapter, and of attention."""

    kernels: int
    adapter: int
    attention: int


def encoder_layer(model: T5Config, inputs: int, adapter_size: int = 0) -> LayerCost:
    """Kernels 2 S (4 D I + m D F) with I = heads x d_kv, m = 2, or 3 when gated; attention 4 I S^2."""
    D, inner = model.d_model, model.num_heads * model.d_kv
    kernels = 2 * inputs * (4 * D * inner + _mlp(model))
    return LayerCost(kernels, 4 * inputs * D * adapter_size, 4 * inner * inputs**2)


def decoder_layer(model: T5Config, inputs: int, targets: int, adapter_size: int = 0) -> LayerCost:
    """Over T targets, attention to T (T + 1) / 2 pairs, and cross attention with keys and values of S inputs.

    Decoder-only models have no cross attention; their fully visible prefix counts as causal.
    """
    D, inner = model.d_model, model.num_heads * model.d_kv
    kernels = 2 * targets * (4 * D * inner + _mlp(model))
    attention = 2 * inner * targets * (targets + 1)
    if model.architecture == "encoder_decoder":
        kernels += 4 * D * inner * (targets + inputs)
        attention += 4 * inner * targets * inputs
    return LayerCost(kernels, 4 * targets * D * adapter_size, attention)


def _mlp(model: T5Config) -> int:
    return (3 if model.gated else 2) * model.d_model * model.d_ff


def train_flops(
    model: T5Config, inputs: int, targets: int, *, groups: Collection[str] | None = None, adapter_size: int = 0
) -> int:
    """FLOPs of a training step for one row of S inputs (0 for decoder-only models) and T targets.

    `groups`: what trains (freezing.param_group; default: everything). The gradient of a trained kernel costs as much as
    its forward product; so do the gradients of activations, from the top to the lowest layer with a trained parameter
    in or below it.
    """
    encoder = [encoder_layer(model, inputs, adapter_size)] * model.encoder_layers
    decoder = [decoder_layer(model, inputs, targets, adapter_size)] * model.decoder_layers
    logits = 2 * targets * model.d_model * model.vocab_size
    total = logits + sum(c.kernels + c.adapter + c.attention for c in encoder + decoder)
    trains = lambda group: groups is None or group in groups  # noqa: E731
    below = trains("embeddings")
    for stack, costs in (("encoder", encoder), ("decoder", decoder)):
        below = below or trains(f"{stack}/shared")
        for number, cost in enumerate(costs):
            layer = f"{stack}/layers/{number}"
            below = below or any(trains(layer + part) for part in ("", "/norms", "/adapter"))
            total += below * (cost.kernels + cost.adapter + 2 * cost.attention)
            total += trains(layer) * cost.kernels + trains(f"{layer}/adapter") * cost.adapter
    return total + logits * (1 + trains("embeddings" if model.tie_word_embeddings else "heads"))


def row_flops(
    model: T5Config, widths: Mapping[str, int], heads: Collection[str], groups: Collection[str], adapter_size: int = 0
) -> int:
    """`train_flops` of a batch's row while `groups` train; see `models.families.Family`."""
    inputs, targets = widths.get("input_ids", 0), widths["target_ids"]
    return train_flops(model, inputs, targets, groups=groups, adapter_size=adapter_size)
