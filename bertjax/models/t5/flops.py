"""Model FLOPs of T5 by formula, as in models/bert/flops.py; causal attention counts visible keys."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bertjax.config.schema.model import T5Config
from bertjax.models.peft_options import PeftOptions


@dataclass(frozen=True)
class LayerCost:
    """FLOPs of a layer's forward pass for one row: products with weights, with those added, and of attention."""

    kernels: int
    added: int
    attention: int


def encoder_layer(model: T5Config, inputs: int, peft: PeftOptions = PeftOptions()) -> LayerCost:  # noqa: B008
    """Kernels 2 S (4 D I + m D F) with I = heads x d_kv, m = 2, or 3 when gated; attention 4 I S^2.

    Added: an adapter 4 S D d, low-rank updates 2 S r (rows + columns) each.
    """
    D, inner = model.d_model, model.num_heads * model.d_kv
    kernels = 2 * inputs * (4 * D * inner + _mlp(model))
    added = 4 * D * peft.adapter_size + 2 * peft.lora_rank * (
        _ranks(model, peft, _ATTENTION) + _ranks(model, peft, _MLP)
    )
    return LayerCost(kernels, inputs * added, 4 * inner * inputs**2)


def decoder_layer(
    model: T5Config,
    inputs: int,
    targets: int,
    peft: PeftOptions = PeftOptions(),  # noqa: B008
) -> LayerCost:
    """Over T targets, attention to T (T + 1) / 2 pairs, and cross attention with keys and values of S inputs.

    Decoder-only models have no cross attention; their fully visible prefix counts as causal.
    """
    D, inner = model.d_model, model.num_heads * model.d_kv
    kernels = 2 * targets * (4 * D * inner + _mlp(model))
    attention = 2 * inner * targets * (targets + 1)
    added = encoder_layer(model, targets, peft).added
    if model.architecture == "encoder_decoder":
        kernels += 4 * D * inner * (targets + inputs)
        attention += 4 * inner * targets * inputs
        own, across = _ranks(model, peft, ("query", "attention_output")), _ranks(model, peft, ("key", "value"))
        added += 2 * peft.lora_rank * (targets * own + inputs * across)
    return LayerCost(kernels, added, attention)


_ATTENTION = ("query", "key", "value", "attention_output")
_MLP = ("mlp_intermediate", "mlp_gate", "mlp_output")


def _ranks(model: T5Config, peft: PeftOptions, targets: tuple[str, ...]) -> int:
    """Rows and columns of those of these weights that have a low-rank update."""
    columns = model.num_heads * model.d_kv if targets[0] in _ATTENTION else model.d_ff
    return len(peft.rank_of(*targets)) * (model.d_model + columns)


def _mlp(model: T5Config) -> int:
    return (3 if model.gated else 2) * model.d_model * model.d_ff


def train_flops(
    model: T5Config,
    inputs: int,
    targets: int,
    *,
    groups: Collection[str] | None = None,
    peft: PeftOptions = PeftOptions(),  # noqa: B008
) -> int:
    """FLOPs of a training step for one row of S inputs (0 for decoder-only models) and T targets.

    `groups`: what trains (freezing.param_group; default: everything). The gradient of a trained kernel costs as much as
    its forward product; so do the gradients of activations, from the top to the lowest layer with a trained parameter
    in or below it.
    """
    encoder = [encoder_layer(model, inputs, peft)] * model.encoder_layers
    decoder = [decoder_layer(model, inputs, targets, peft)] * model.decoder_layers
    logits = 2 * targets * model.d_model * model.vocab_size
    total = logits + sum(c.kernels + c.added + c.attention for c in encoder + decoder)
    trains = lambda group: groups is None or group in groups  # noqa: E731
    below = trains("embeddings")
    for stack, costs in (("encoder", encoder), ("decoder", decoder)):
        below = below or trains(f"{stack}/shared")
        for number, cost in enumerate(costs):
            layer = f"{stack}/layers/{number}"
            below = below or any(trains(layer + part) for part in ("", "/norms", "/adapter", "/lora"))
            total += below * (cost.kernels + cost.added + 2 * cost.attention)
            total += trains(layer) * cost.kernels + (trains(f"{layer}/adapter") or trains(f"{layer}/lora")) * cost.added
    return total + logits * (1 + trains("embeddings" if model.tie_word_embeddings else "heads"))


def row_flops(
    model: T5Config, widths: Mapping[str, int], heads: Collection[str], groups: Collection[str], peft: PeftOptions
) -> int:
    """`train_flops` of a batch's row while `groups` train; see `models.families.Family`."""
    inputs, targets = widths.get("input_ids", 0), widths["target_ids"]
    return train_flops(model, inputs, targets, groups=groups, peft=peft)
