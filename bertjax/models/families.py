"""The record of a model family, which the `implementation` of its section in `config.schema.model.FAMILIES` names."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bertjax.config.schema import base
from bertjax.models.peft_options import PeftOptions


@dataclass(frozen=True)
class Family:
    """Functions and facts of one family; `model` is a section of it.

    Attributes:
        build: (model, heads, num_labels, compute options, nnx.Rngs, PeftOptions) -> the module. Added layers take their
            initial values from `rngs.peft()`.
        find_heads: {path: parameter} -> names of the heads that these parameters hold.
        row_flops: (model, {batch field: its first dimension}, heads, trained groups, PeftOptions) -> model FLOPs of a
            training step for one row.
        fused_attention: model -> (head size, dropout rate) that a fused attention kernel must support; None where
            attention adds a bias, which neither cuDNN nor splash computes.
        encoder_inputs: model -> names of the arrays that the module's `encode`, `hidden_states` and, in a model with
            attention, `attention_probabilities` read, in order: input_ids, token_type_ids, segment_ids, positions, each
            int32 [B, S]; () for a model without an encoder.
        layer_order: model -> the number N of the parameters `layers/N` of each layer from the bottom up, where layers
            share parameters; None where each has its own.
        interop: "package.module:NAME" of its `interop.hf_folder.FolderFormat`; None without one.
    """

    build: Callable[..., Any]
    find_heads: Callable[[Mapping[str, Any]], tuple[str, ...]]
    row_flops: Callable[[Any, Mapping[str, int], Collection[str], Collection[str], PeftOptions], int]
    fused_attention: Callable[[Any], tuple[int, float]] | None = None
    encoder_inputs: Callable[[Any], tuple[str, ...]] = lambda model: ()
    layer_order: Callable[[Any], tuple[int, ...]] | None = None
    interop: str | None = None


def record_of(model: base.Section | type[base.Section]) -> Family:
    """The record of a model section's family. Raises TypeError where its `implementation` names none."""
    return base.record_of(model, Family)
