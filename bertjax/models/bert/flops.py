"""Model FLOPs by formula, and their share of the chip's peak (`parallel/hardware.py`).

"Model" FLOPs are the multiplications the mathematics asks for, twice (a multiply and an add): nothing for recomputed
activations, nothing for padding, and the vocabulary projection for the masked positions only. Embedding look-ups,
norms, dropout, the optimizer and the small heads (pooler, NSP, spans, classes; under 0.1 %) are not counted.
"""

from collections.abc import Collection, Mapping

from bertjax.config.schema.model import BertConfig


def encoder_flops(model: BertConfig, tokens: int, squared_lengths: int | None = None, layers: int | None = None) -> int:
    """FLOPs of one forward pass of `layers` encoder layers (default: all) over a row of `tokens` real tokens.

    2 L (4 D^2 + 2 D F) S for the projections and 4 L D sum(s^2) for attention, which looks both ways: no halving.
    `squared_lengths` is that sum over the packed examples of the row; a row that is one example has S^2, the default.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    depth = model.num_hidden_layers if layers is None else layers
    pairs = tokens * tokens if squared_lengths is None else squared_lengths
    return 2 * depth * (4 * hidden * hidden + 2 * hidden * inner) * tokens + 4 * depth * hidden * pairs


def head_flops(model: BertConfig, predictions: int) -> int:
    """FLOPs of one forward pass of the MLM head over `predictions` masked positions: the transform and the decoder."""
    return predictions * (2 * model.hidden_size**2 + 2 * model.hidden_size * model.vocab_size)


def train_flops(
    model: BertConfig,
    sequence_length: int,
    predictions: int = 0,
    *,
    trainable_layers: int | None = None,
    squared_lengths: int | None = None,
) -> int:
    """FLOPs of one training step for one row: forward, and twice that again backward for all that trains.

    `predictions`: masked positions of the row (0 for a task without MLM). `trainable_layers`: how many layers, counted
    from the top, train (default: all of them). The frozen layers below have no backward pass: their factor is 1, not 3.
    `squared_lengths`: see `encoder_flops`.
    """
    trained = model.num_hidden_layers if trainable_layers is None else trainable_layers
    if not 0 <= trained <= model.num_hidden_layers:
        raise ValueError(f"trainable_layers is {trained} and the model has {model.num_hidden_layers} layers")
    forward = encoder_flops(model, sequence_length, squared_lengths) + head_flops(model, predictions)
    backward = encoder_flops(model, sequence_length, squared_lengths, layers=trained) + head_flops(model, predictions)
    return forward + 2 * backward


def row_flops(
    model: BertConfig, widths: Mapping[str, int], heads: Collection[str], groups: Collection[str], adapter_size: int = 0
) -> int:
    """`train_flops` of a batch's row while `groups` train; see `models.families.Family`."""
    predictions = widths.get("masked_positions", 0) if "mlm" in heads else 0
    layers = sum(group.startswith("layers/") for group in groups)
    return train_flops(model, widths["input_ids"], predictions, trainable_layers=layers)
