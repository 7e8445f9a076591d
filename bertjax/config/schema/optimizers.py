"""Configuration sections of optimizers, with their learning rates and schedules, and their table of kinds."""

import re
from operator import not_
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bertjax.config.schema.base import (
    KindOf,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Probability,
    Section,
)

_SCHEDULE = (
    "Learning rate at step s of N with W warm-up steps. `linear`: lr * (1 - s/N), as google-research/bert; `constant`: "
    "lr; `cosine`, `polynomial`: from lr at W to lr * `min_lr_ratio` at N (Hugging Face's `linear` is `polynomial` "
    "with power 1); `wsd`: lr, then down in the last `decay_steps`. All warm up as lr * s/W. `inverse_sqrt`: "
    "lr / sqrt(max(s, W)). `slanted_triangular` (arXiv 1801.06146): from lr / `ratio` up to lr at W and down again."
)
# Names of transformers.SchedulerType that mean one of these schedules (`linear` and `inverse_sqrt` differ there).
HUGGING_FACE_SCHEDULES = {
    "constant_with_warmup": "constant", "cosine_with_min_lr": "cosine", "warmup_stable_decay": "wsd",
}  # fmt: skip


def _own_schedule(name: Any) -> Any:
    return HUGGING_FACE_SCHEDULES.get(name, name) if isinstance(name, str) else name


Schedule = Annotated[
    Literal["linear", "constant", "inverse_sqrt", "cosine", "polynomial", "wsd", "slanted_triangular"],
    BeforeValidator(_own_schedule),
    Field(description=_SCHEDULE),
]
MinLrRatio = Annotated[
    Probability,
    Field(
        exclude_if=not_, description="Last rate of `cosine`, `polynomial` and `wsd` as a fraction of the learning rate."
    ),
]
Power = Annotated[
    PositiveFloat, Field(exclude_if=lambda power: power == 1.0, description="Exponent of `polynomial`; 1: a line.")
]
DecaySteps = Annotated[
    Positive | None,
    Field(exclude_if=lambda n: n is None, description="Steps of the decay of `wsd`. Default: by `decay_ratio`."),
]
DecayRatio = Annotated[
    float,
    Field(gt=0, le=1, exclude_if=lambda ratio: ratio == 0.1, description="`decay_steps` as a fraction of the steps."),
]
DecayShape = Annotated[
    Literal["linear", "1-sqrt", "cosine"],
    Field(exclude_if=lambda shape: shape == "linear", description="Decay of `wsd`; `1-sqrt` as in arXiv 2405.18392."),
]


SlantRatio = Annotated[
    float,
    Field(
        gt=1,
        allow_inf_nan=False,
        exclude_if=lambda ratio: ratio == 32,
        description="Highest divided by lowest rate of `slanted_triangular`.",
    ),
]
Restart = Annotated[
    bool,
    Field(
        exclude_if=not_,
        description="Begin the schedule again in each episode of `trainable: gradual`, warm-up included, over its "
        "steps.",
    ),
]


def _rate_factor(text: str) -> str:
    if re.fullmatch(r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?x", text) is None or float(text[:-1]) <= 0:
        raise ValueError("must be a factor above 0 such as 0.1x")
    return text


LearningRates = Annotated[
    dict[str, PositiveFloat | Annotated[str, AfterValidator(_rate_factor)]],
    Field(
        exclude_if=not_,
        description="Other learning rates, by pattern of parameter paths: `{heads: 1e-3, embeddings: 0.1x}`. A number "
        "is the rate after warm-up, `0.1x` a factor of `learning_rate`. `layers/1` is all of layer 1, `*` any text; "
        "the pattern with the most other characters wins.",
    ),
]
LayerDecay = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        exclude_if=lambda decay: decay == 1.0,
        description="Factor of the learning rate per layer below the heads: decay in the top layer, decay^L in the "
        "lowest of L, decay^(L+1) in the embeddings. Not where `learning_rates` has a pattern.",
    ),
]
_SCHEDULE_OPTIONS = {
    "min_lr_ratio": ("cosine", "polynomial", "wsd"), "power": ("polynomial",), "decay_steps": ("wsd",),
    "decay_ratio": ("wsd",), "decay_shape": ("wsd",), "ratio": ("slanted_triangular",),
}  # fmt: skip


def check_rates(optimizer: Any) -> Any:
    """Refuse options that the schedule does not read."""
    for option, schedules in _SCHEDULE_OPTIONS.items():
        changed = getattr(optimizer, option) != type(optimizer).model_fields[option].default
        if changed and optimizer.schedule not in schedules:
            raise ValueError(f"{option} is for schedule: {' or '.join(schedules)}, not {optimizer.schedule}")
    if optimizer.decay_steps is not None and optimizer.decay_ratio != 0.1:
        raise ValueError("give either decay_steps or decay_ratio")
    return optimizer


WeightDecay = Annotated[NonNegativeFloat, Field(description="Decoupled weight decay; biases and norms have none.")]
ClipNorm = Annotated[PositiveFloat | None, Field(description="Largest global norm of the gradients; null: no limit.")]
WarmupRatio = Annotated[Probability, Field(description="Warm-up steps as a fraction of the stage's steps.")]


class AdamW(Section):
    """AdamW."""

    kind: Literal["bert_adamw", "adamw"] = Field(
        "bert_adamw", description="`bert_adamw`: google-research/bert's, without bias correction; `adamw`: optax's."
    )
    learning_rate: PositiveFloat = Field(1e-4, description="Learning rate after warm-up.")
    schedule: Schedule = "linear"
    warmup_steps: NonNegative | None = Field(None, description="Warm-up steps. Default: by `warmup_ratio`.")
    warmup_ratio: WarmupRatio = 0.1
    min_lr_ratio: MinLrRatio = 0.0
    power: Power = 1.0
    decay_steps: DecaySteps = None
    decay_ratio: DecayRatio = 0.1
    decay_shape: DecayShape = "linear"
    ratio: SlantRatio = 32.0
    restart: Restart = False
    learning_rates: LearningRates = {}
    layer_decay: LayerDecay = 1.0
    weight_decay: WeightDecay = 0.01
    b1: Probability = Field(0.9, description="Decay rate of the first moments.")
    b2: Probability = Field(0.999, description="Decay rate of the second moments.")
    eps: PositiveFloat = Field(1e-6, description="Added to the root of the second moments.")
    multiply_by_parameter_scale: bool = Field(
        False,
        exclude_if=not_,
        description="Scale updates by the parameter's root mean square, at least 1e-3, as Adafactor does (AdamWScale "
        "of nanoT5, arXiv 2309.02373: rate 2e-2, no weight decay).",
    )
    clip_norm: ClipNorm = 1.0

    _check_rates = model_validator(mode="after")(check_rates)


class Muon(Section):
    """Muon: orthogonalized momentum for the matrices of the layers, AdamW for all other parameters."""

    kind: Literal["muon"] = "muon"
    learning_rate: PositiveFloat = Field(1e-3, description="Learning rate after warm-up.")
    adam_learning_rate: PositiveFloat | None = Field(
        None,
        exclude_if=lambda rate: rate is None,
        description="Rate after warm-up of the parameters that AdamW trains: embeddings, heads, norms, biases, "
        "position biases, adapters and LoRA. Default: `learning_rate`. A pattern of `learning_rates` overrides it.",
    )
    schedule: Schedule = "linear"
    warmup_steps: NonNegative | None = Field(None, description="Warm-up steps. Default: by `warmup_ratio`.")
    warmup_ratio: WarmupRatio = 0.1
    min_lr_ratio: MinLrRatio = 0.0
    power: Power = 1.0
    decay_steps: DecaySteps = None
    decay_ratio: DecayRatio = 0.1
    decay_shape: DecayShape = "linear"
    ratio: SlantRatio = 32.0
    restart: Restart = False
    learning_rates: LearningRates = {}
    layer_decay: LayerDecay = 1.0
    weight_decay: WeightDecay = 0.01
    momentum: float = Field(0.95, ge=0, lt=1, description="Decay rate of the momentum of matrices.")
    nesterov: bool = Field(True, description="Nesterov momentum.")
    ns_steps: Positive = Field(5, description="Newton-Schulz iterations of the orthogonalization.")
    update_rms: PositiveFloat | None = Field(
        0.2,
        description="Root mean square of a matrix's update, times the rate: 0.2 is about AdamW's, so that AdamW's "
        "rates fit (arXiv 2502.16982). null: updates are scaled by sqrt(max(1, outputs / inputs)) (rates near 0.02).",
    )
    b1: Probability = Field(0.9, description="AdamW: decay rate of the first moments.")
    b2: Probability = Field(0.999, description="AdamW: decay rate of the second moments.")
    eps: PositiveFloat = Field(1e-6, description="AdamW: added to the root of the second moments.")
    clip_norm: ClipNorm = 1.0

    _check_rates = model_validator(mode="after")(check_rates)


class Adafactor(Section):
    """Adafactor (arXiv 1804.04235) as T5 uses it (t5x/adafactor.py): no momentum, updates scaled by the parameter."""

    kind: Literal["adafactor"] = "adafactor"
    learning_rate: PositiveFloat = Field(1.0, description="Factor of the schedule; for fine-tuning 0.001 (`constant`).")
    schedule: Schedule = "inverse_sqrt"
    warmup_steps: NonNegative | None = Field(None, description="Default: 10,000 (`inverse_sqrt`) or by `warmup_ratio`.")
    warmup_ratio: WarmupRatio = 0.0
    min_lr_ratio: MinLrRatio = 0.0
    power: Power = 1.0
    decay_steps: DecaySteps = None
    decay_ratio: DecayRatio = 0.1
    decay_shape: DecayShape = "linear"
    ratio: SlantRatio = 32.0
    restart: Restart = False
    learning_rates: LearningRates = {}
    layer_decay: LayerDecay = 1.0
    decay_rate: float = Field(0.8, gt=0, lt=1, description="Second moments decay by 1 - (step + 1)^-decay_rate.")
    clipping_threshold: PositiveFloat = Field(1.0, description="Largest root mean square of an update.")
    multiply_by_parameter_scale: bool = Field(True, description="Scale updates by the parameter's root mean square.")
    min_dim_size_to_factor: Positive = Field(128, description="Smallest dimension whose second moments are factored.")
    weight_decay: WeightDecay = 0.0
    clip_norm: ClipNorm = None

    _check_rates = model_validator(mode="after")(check_rates)

    @model_validator(mode="before")
    @classmethod
    def _warm_up(cls, given: Any) -> Any:
        """10,000 warm-up steps are the default of inverse_sqrt only: a constant rate would rise until the end."""
        if not isinstance(given, dict) or "warmup_steps" in given or given.get("warmup_ratio"):
            return given
        if given.get("schedule") == "slanted_triangular" and "warmup_ratio" not in given:
            return given | {"warmup_ratio": 0.1}  # `cut_frac` of the paper
        return given | {"warmup_steps": 10_000} if given.get("schedule", "inverse_sqrt") == "inverse_sqrt" else given


OPTIMIZERS: dict[str, type[Section]] = {"bert_adamw": AdamW, "adamw": AdamW, "adafactor": Adafactor, "muon": Muon}
Optimizer = Annotated[Any, KindOf("kind", "bert_adamw", OPTIMIZERS)]
