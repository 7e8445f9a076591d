"""The part of the schema that says how a stage trains: objective, optimizer and what is trainable."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from bertjax.config.schema.base import KindOf, NonNegative, Positive, Probability, Section

# After W steps of warm-up: linear is lr*(1 - s/N), inverse_sqrt lr/sqrt(s), constant lr. linear and constant warm up by
# lr*s/W; inverse_sqrt starts at its value at W (t5x).
Schedule: TypeAlias = Literal["linear", "constant", "inverse_sqrt"]


class MlmNspObjective(Section):
    """Masked language modelling, with next sentence prediction when `nsp_weight` is above zero."""

    kind: Literal["mlm_nsp"] = "mlm_nsp"
    mlm_weight: Annotated[float, Field(ge=0)] = 1.0
    nsp_weight: Annotated[float, Field(ge=0)] = 1.0


class SpanQaObjective(Section):
    kind: Literal["span_qa"] = "span_qa"


class TextToTextObjective(Section):
    """Cross-entropy of all real target tokens, sentinels and end included (t5x/losses.py, t5x/models.py)."""

    kind: Literal["text_to_text"] = "text_to_text"
    z_loss: Annotated[float, Field(ge=0)] = 1e-4  # times the squared log normaliser
    label_smoothing: Probability = 0.0
    # What the summed loss is divided by. `sum` divides by nothing; a number by itself (t5x: 233472 for T5 checkpoints).
    loss_normalizing_factor: (
        Literal["num_real_target_tokens", "num_total_target_tokens", "average_per_sequence", "sum"]
        | Annotated[float, Field(gt=0)]
    ) = "num_real_target_tokens"


class ClassificationObjective(Section):
    kind: Literal["classification"] = "classification"
    num_labels: Annotated[int, Field(ge=1)] = 2  # 1: regression


OBJECTIVES: dict[str, type[Section]] = {
    "mlm_nsp": MlmNspObjective,
    "span_qa": SpanQaObjective,
    "classification": ClassificationObjective,
    "text_to_text": TextToTextObjective,
}
Objective = Annotated[Any, KindOf("kind", "mlm_nsp", OBJECTIVES)]


class AdamW(Section):
    """`bert_adamw` is optimization.py of google-research/bert (no bias correction); `adamw` is optax's."""

    kind: Literal["bert_adamw", "adamw"] = "bert_adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Schedule = "linear"
    warmup_steps: NonNegative | None = None
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1  # used when warmup_steps is not given
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    b1: Probability = 0.9
    b2: Probability = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-6
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0


class Adafactor(Section):
    """Adafactor (arXiv 1804.04235) as T5 uses it (t5x/adafactor.py): no momentum, updates scaled by the parameter."""

    kind: Literal["adafactor"] = "adafactor"
    learning_rate: Annotated[float, Field(gt=0)] = 1.0  # with inverse_sqrt; 0.001 with constant, for fine-tuning
    schedule: Schedule = "inverse_sqrt"
    warmup_steps: NonNegative | None = None  # default: 10,000 with inverse_sqrt, otherwise by warmup_ratio
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0  # used when warmup_steps is not given
    decay_rate: Annotated[float, Field(gt=0, lt=1)] = 0.8  # second moments decay by 1 - (t + 1)^-decay_rate
    clipping_threshold: Annotated[float, Field(gt=0)] = 1.0  # of each update's root mean square
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: Positive = 128
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _warm_up(cls, given: Any) -> Any:
        """T5's 10,000 belong to its pre-training schedule: a constant rate would climb all through a fine-tuning."""
        if not isinstance(given, dict) or "warmup_steps" in given or given.get("warmup_ratio"):
            return given
        return given | {"warmup_steps": 10_000} if given.get("schedule", "inverse_sqrt") == "inverse_sqrt" else given


OPTIMIZERS: dict[str, type[Section]] = {
    "bert_adamw": AdamW,
    "adamw": AdamW,
    "adafactor": Adafactor,
}
Optimizer = Annotated[Any, KindOf("kind", "bert_adamw", OPTIMIZERS)]


class Trainable(Section):
    """What trains. `gradual` opens the stacks from the top, one episode at a time (arXiv 1910.10683 section 3.5.1).

    `head` is the output layer alone (feature-based). `adapters` are small layers behind each feed-forward layer.
    """

    kind: Literal["all", "head", "gradual", "adapters"] = "all"
    episodes: Positive | None = None  # of gradual; default: one for each layer
    # When gradual unfreezing reaches the input embeddings; auto: last for BERT, always for T5, which shares them.
    embeddings: Literal["auto", "last", "always", "never"] = "auto"
    adapter_size: Positive = 64  # d: the inner width of adapters
    adapter_norms: Literal["paper", "houlsby"] = "paper"  # which norms train: all of them, or only the adapters' own
    adapter_init: Literal["reference", "near_identity"] = "reference"  # near_identity: as in arXiv 1902.00751
    adapter_only_checkpoints: bool = True  # save what trains alone; it merges onto the weights of `init_from`


def expand_trainable(value: Any) -> Any:
    """`trainable: head` is short for `trainable: {kind: head}`."""
    return {"kind": value} if isinstance(value, str) else value
