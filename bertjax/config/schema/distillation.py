"""Sections of knowledge distillation: the teacher of a stage, its losses, and the layers that a model starts from."""

from typing import Any, Literal

from pydantic import Field

from bertjax.config.schema.base import AnyPath, NonNegativeFloat, PositiveFloat, Section


class Distillation(Section):
    """A teacher whose outputs a stage learns besides its labels (arXiv 1503.02531, 1910.01108)."""

    teacher: AnyPath = Field(
        description="A run, a checkpoint, a Hugging Face folder or a model on the Hub, of any size, with the tokenizer "
        "of this run and the head that the objective reads."
    )
    temperature: PositiveFloat = Field(2.0, description="Divisor of both models' logits in the soft-target loss.")
    kd_weight: PositiveFloat = Field(
        5.0,
        description="Weight of the soft-target loss: KL(teacher || student) times `temperature`^2; squared error of a "
        "regression and of text vectors. The weights of the objective are those of the labels.",
    )
    cosine_weight: NonNegativeFloat = Field(
        1.0,
        description="Weight of 1 - cosine of the last hidden states, over all tokens; 0 turns it off, as models of "
        "different widths need.",
    )
    tokens: Literal["all", "masked"] = Field(
        "all", description="Tokens whose soft targets are compared with MLM: all, or those to predict (less memory)."
    )

    def find_problem(self, objective: Any, trainable: Any) -> str | None:
        """Why a stage with this objective and these trained parameters cannot have these options."""
        if not getattr(objective, "has_soft_targets", True):
            return f"the objective '{objective.kind}' cannot learn from a teacher; remove distillation"
        if trainable.kind == "features":
            return "trainable: features: keeps hidden states of the model alone; use trainable: head"
        if self.teacher in ("scratch", "previous", "best"):
            return f"teacher: names a run, a checkpoint or a model, not {self.teacher}: give its path"
        if objective.kind != "mlm_nsp" and self.tokens != "all":
            return f"tokens: is for objective mlm_nsp, not {objective.kind}; leave it out"
        if objective.kind == "mlm_nsp" and objective.mlm_weight == 0:
            return "the teacher's MLM head needs that of the model: set objective.mlm_weight above 0"
        return None


# Fields that change what equal weights of a layer compute, and do not show in shapes.
_LAYER_FIELDS = ("num_attention_heads", "hidden_act", "layer_norm_eps")


def find_stage_problem(stage: Any, model: Any, source: str) -> str | None:
    """Why a stage cannot start from selected layers (`init_layers`); source: what it starts from, or "scratch"."""
    if (layers := stage.init_layers) is None:
        return None
    if source == "scratch":
        return "init_layers: needs init_from, whose layers it selects"
    if getattr(model, "stacks", ()) != ("",) or model.layer_order != tuple(range(model.num_hidden_layers)):
        return f"init_layers: is for encoders with weights of their own in each layer, not for a {model.family} model"
    if len(layers) != model.num_hidden_layers:
        return f"init_layers: names {len(layers)} layers and the model has {model.num_hidden_layers}"
    if stage.trainable.kind in ("adapters", "lora") and stage.trainable.adapter_only_checkpoints:
        return "init_layers: selects weights that checkpoints must hold: set trainable.adapter_only_checkpoints=false"
    return None


def find_source_problem(layers: list[int], source: Any, model: Any) -> str | None:
    """Why layers of a model `source` cannot start those of `model` (both sections)."""
    if source.family != model.family and (source.family, model.family) != ("bert", "distilbert"):
        return f"init_layers: takes layers from a {model.family} model, not from a {source.family} one"
    if max(layers) >= source.num_hidden_layers:
        return f"init_layers: layer {max(layers)} is not one of its layers 0 to {source.num_hidden_layers - 1}"
    for field in _LAYER_FIELDS:
        if (theirs := getattr(source, field)) != getattr(model, field):
            return f"init_layers: its {field} is {theirs}: set model.{field}={theirs}"
    return None
