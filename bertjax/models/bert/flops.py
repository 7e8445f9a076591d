"""Model FLOPs of BERT by formula: two per multiplication of the definition, without recomputed activations.

The vocabulary projection counts for masked positions. Embedding look-ups, norms, dropout, the optimizer and small heads
(pooler, NSP, spans, classes; under 0.1 %) are not counted. Of replaced-token detection the generator counts, and the
dense layer of the discriminator's head.
"""

from collections.abc import Collection, Mapping

from bertjax.config.schema.model import BertConfig, ElectraConfig
from bertjax.models.peft_options import PeftOptions


def encoder_flops(model: BertConfig, tokens: int, squared_lengths: int | None = None, layers: int | None = None) -> int:
    """FLOPs of a forward pass of `layers` layers (default: all), shared or not, over a row of S `tokens`.

    2 L (4 D^2 + 2 D F) S for the projections and 4 L D sum(s^2) for bidirectional attention. `squared_lengths` is that
    sum over the packed examples of the row (default: one example, S^2). Causal attention: S (S + 1) / 2 pairs.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    depth = model.num_hidden_layers if layers is None else layers
    depth *= getattr(model, "inner_group_num", 1)
    visible = tokens * (tokens + 1) // 2 if model.causal else tokens * tokens
    pairs = visible if squared_lengths is None else squared_lengths
    return 2 * depth * (4 * hidden * hidden + 2 * hidden * inner) * tokens + 4 * depth * hidden * pairs


def head_flops(model: BertConfig, predictions: int) -> int:
    """FLOPs of a forward pass of the MLM head, transform and decoder, over `predictions` masked positions."""
    return predictions * 2 * model.embedding_width * (model.hidden_size + model.vocab_size)


def projection_flops(model: BertConfig, tokens: int) -> int:
    """FLOPs of a forward pass of the projection of factorized embeddings over a row of S `tokens`: 2 E D S."""
    return 2 * model.embedding_width * model.hidden_size * tokens if model.projects_embeddings else 0


def train_flops(
    model: BertConfig,
    sequence_length: int,
    predictions: int = 0,
    *,
    trainable_layers: int | None = None,
    squared_lengths: int | None = None,
) -> int:
    """FLOPs of a training step for one row: the forward pass, and twice as many backward for what trains.

    `predictions`: masked positions of the row (0 without MLM). `trainable_layers`: layers that train, from the top
    (default: all); frozen layers below have no backward pass. `squared_lengths`: see `encoder_flops`.
    """
    trained = model.num_hidden_layers if trainable_layers is None else trainable_layers
    if not 0 <= trained <= model.num_hidden_layers:
        raise ValueError(f"trainable_layers is {trained} and the model has {model.num_hidden_layers} layers")
    forward = encoder_flops(model, sequence_length, squared_lengths) + head_flops(model, predictions)
    backward = encoder_flops(model, sequence_length, squared_lengths, layers=trained) + head_flops(model, predictions)
    return forward + 2 * backward


def added_flops(model: BertConfig, peft: PeftOptions, tokens: int) -> int:
    """FLOPs of a forward pass of a layer's adapters, 4 D d S each, or low-rank updates, 2 r (rows + columns) S each."""
    D, F = model.hidden_size, model.intermediate_size
    adapters = 0 if not peft.adapter_size else 2 if peft.adapter_placement == "houlsby" else 1
    sizes = {"query": 2 * D, "key": 2 * D, "value": 2 * D, "attention_output": 2 * D}
    sizes |= {"mlp_intermediate": D + F, "mlp_output": D + F}
    ranks = peft.lora_rank * sum(sizes[target] for target in peft.rank_of(*sizes))
    return tokens * (4 * D * peft.adapter_size * adapters + 2 * ranks)


def peft_flops(model: BertConfig, peft: PeftOptions, tokens: int, predictions: int = 0) -> int:
    """FLOPs of a training step for one row when added layers and heads train.

    Backward, frozen weights cost one product, for the gradient of their inputs, and trained ones two.
    """
    depth = model.num_hidden_layers * getattr(model, "inner_group_num", 1)
    added = depth * added_flops(model, peft, tokens)
    kernels, whole = encoder_flops(model, tokens, squared_lengths=0), encoder_flops(model, tokens)
    decoder = 2 * predictions * model.embedding_width * model.vocab_size  # the word embeddings, which are frozen
    forward = whole + added + head_flops(model, predictions) + projection_flops(model, tokens)
    return forward + kernels + 2 * (whole - kernels) + 2 * added + 2 * head_flops(model, predictions) - decoder


def replaced_token_flops(model: BertConfig, heads: Collection[str], tokens: int, predictions: int) -> int:
    """FLOPs of a training step for one row of S `tokens` in the heads `generator` and `discriminator`, if there."""
    forward = 0
    if "generator" in heads and isinstance(model, ElectraConfig):
        own = model.generator
        forward += encoder_flops(own, tokens) + projection_flops(own, tokens) + head_flops(own, predictions)
    if "discriminator" in heads:
        forward += 2 * model.hidden_size * (model.hidden_size + 1) * tokens
    return 3 * forward


def row_flops(
    model: BertConfig, widths: Mapping[str, int], heads: Collection[str], groups: Collection[str], peft: PeftOptions
) -> int:
    """`train_flops` of a batch's row while `groups` train; see `models.families.Family`."""
    tokens, masked = widths["input_ids"], widths.get("masked_positions", 0)
    predictions = masked if "mlm" in heads else 0
    pretraining = replaced_token_flops(model, heads, tokens, masked)
    if peft.feature_layers:
        read = 0 if "features" in widths else tokens  # a cache has the outputs of the encoder
        encoder = encoder_flops(model, read) + projection_flops(model, read)
        return encoder + 3 * head_flops(model, predictions)
    if peft != PeftOptions():
        return peft_flops(model, peft, tokens, predictions) + pretraining
    trained, order = {int(group.split("/")[1]) for group in groups if group.startswith("layers/")}, model.layer_order
    layers = len(order) - order.index(min(trained)) if trained else 0
    flops = train_flops(model, tokens, predictions, trainable_layers=layers) + pretraining
    if "frozen_states" in widths:  # a cache has the outputs of the layers below
        return flops - encoder_flops(model, tokens, layers=len(order) - layers)
    return flops + (3 if "embeddings" in groups else 1) * projection_flops(model, tokens)
