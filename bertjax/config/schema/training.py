"""Configuration sections of objectives, optimizers and trainable parameters, and their tables of kinds."""

import re
from operator import not_
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from bertjax.config.schema.base import (
    KindOf,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Probability,
    Section,
)
from bertjax.config.schema.ladder_objectives import (
    BidirectionalLmObjective,
    CausalLmObjective,
    CbowObjective,
    SkipGramObjective,
)
from bertjax.config.schema.pretraining import ReplacedTokensObjective

# Facts of an objective's section: `implementation` names its ObjectiveKind (objectives/registry.py), `heads` the model
# heads that it may train (of a family that has them), `preprocess` and `evaluations` the kinds that fit. `families` are
# the model families that it trains, where heads do not tell. A method `find_task_problem` checks preprocess sections.


class MlmNspObjective(Section):
    """Masked language modelling, and next-sentence prediction if `nsp_weight` is above zero."""

    implementation: ClassVar[str] = "bertjax.objectives.bert:MLM_NSP"
    heads: ClassVar[tuple[str, ...]] = ("mlm", "nsp", "pooler")
    preprocess: ClassVar[tuple[str, ...]] = ("bert_pairs",)
    evaluations: ClassVar[tuple[str, ...]] = ("mlm", "loss")

    kind: Literal["mlm_nsp"] = "mlm_nsp"
    mlm_weight: NonNegativeFloat = Field(1.0, description="Weight of the masked-token loss.")
    nsp_weight: NonNegativeFloat = Field(1.0, description="Weight of the next-sentence loss; 0 turns it off.")

    @property
    def required_heads(self) -> tuple[str, ...]:
        return ("nsp",) if self.nsp_weight > 0 else ()


class SpanQaObjective(Section):
    """Cross-entropy of the start and end of the answer in the context."""

    implementation: ClassVar[str] = "bertjax.objectives.bert:SPAN_QA"
    heads: ClassVar[tuple[str, ...]] = ("qa",)
    preprocess: ClassVar[tuple[str, ...]] = ("span_qa",)
    evaluations: ClassVar[tuple[str, ...]] = ("squad",)

    kind: Literal["span_qa"] = "span_qa"


def _names_as_text(weights: Any) -> Any:
    return {str(name): weight for name, weight in weights.items()} if isinstance(weights, dict) else weights


class ClassificationObjective(Section):
    """Cross-entropy of the class of a text or a pair of texts; mean squared error with one label (regression).

    Several labels for one text: the sigmoid cross-entropy of each label, averaged over labels and examples.
    """

    implementation: ClassVar[str] = "bertjax.objectives.bert:CLASSIFICATION"
    heads: ClassVar[tuple[str, ...]] = ("classifier", "pooler")
    preprocess: ClassVar[tuple[str, ...]] = ("classify",)
    evaluations: ClassVar[tuple[str, ...]] = ("classification",)

    kind: Literal["classification"] = "classification"
    num_labels: Positive = Field(2, description="Number of classes; 1 for regression.")
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = Field(
        None,
        exclude_if=lambda kind: kind is None,
        description="Labels of a text, in the words of transformers. Default: `regression` with one label, else "
        "`single_label_classification`. `multi_label_classification`: any number of labels for one text, or none.",
    )
    class_weights: Annotated[
        Literal["balanced"] | dict[str, PositiveFloat] | list[PositiveFloat] | None, BeforeValidator(_names_as_text)
    ] = Field(
        None,
        exclude_if=lambda weights: weights is None,
        description="Weights of the classes in the training loss: `{name: weight}` (others: 1), a list by id, or "
        "`balanced` by the training data: examples / (classes * examples of the class). With several labels for one "
        "text: of the positive examples (`pos_weight`), balanced negatives / positives.",
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_default(cls, given: Any) -> Any:
        """A `problem_type` that the number of labels implies is left out, so that it does not change a run."""
        if not isinstance(given, dict) or given.get("problem_type") is None:
            return given
        count = given.get("num_labels", 2)
        implied = "regression" if count == 1 else "single_label_classification"
        same = isinstance(count, int) and given["problem_type"] == implied
        return {key: value for key, value in given.items() if key != "problem_type"} if same else given

    @model_validator(mode="after")
    def _check(self) -> "ClassificationObjective":
        if self.problem_type == "regression":
            raise ValueError(
                f"problem_type regression needs num_labels: 1 (got {self.num_labels}): one number per text"
            )
        if self.problem_type is not None and self.num_labels == 1:
            raise ValueError(f"problem_type {self.problem_type} needs num_labels of 2 or more; 1 is regression")
        weights = self.class_weights
        if weights is not None and self.num_labels == 1:
            raise ValueError("class_weights: a regression has no classes; remove them")
        if isinstance(weights, list) and len(weights) != self.num_labels:
            raise ValueError(f"class_weights: lists {len(weights)} weights and num_labels is {self.num_labels}")
        return self

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.problem_type == "multi_label_classification"


class TokenClassificationObjective(Section):
    """Cross-entropy of the label of each word, at its first piece (run_ner.py of transformers)."""

    implementation: ClassVar[str] = "bertjax.objectives.token_classification:TOKEN_CLASSIFICATION"
    heads: ClassVar[tuple[str, ...]] = ("token_classifier",)
    preprocess: ClassVar[tuple[str, ...]] = ("token_labels",)
    evaluations: ClassVar[tuple[str, ...]] = ("token_classification",)

    kind: Literal["token_classification"] = "token_classification"
    num_labels: int = Field(9, ge=2, description="Number of labels, `O` included. Default: that of CoNLL-2003.")


class SentenceEmbeddingObjective(Section):
    """One vector for each text, trained on pairs (losses and defaults of sentence-transformers).

    The model has no head: its output is the pooled last layer.
    """

    implementation: ClassVar[str] = "bertjax.objectives.sentence_embedding:SENTENCE_EMBEDDING"
    heads: ClassVar[tuple[str, ...]] = ()
    families: ClassVar[tuple[str, ...]] = ("bert", "distilbert", "roberta", "electra", "albert")
    preprocess: ClassVar[tuple[str, ...]] = ("text_pairs",)
    evaluations: ClassVar[tuple[str, ...]] = ("sts", "retrieval", "loss")

    kind: Literal["sentence_embedding"] = "sentence_embedding"
    loss: Literal["multiple_negatives", "triplet", "cosine_similarity"] = Field(
        "multiple_negatives",
        description="`multiple_negatives`: cross-entropy of the positive among all positives and negatives of the "
        "batch, which are the negatives of the other anchors; `triplet`: the positive is nearer than `negative` by "
        "`margin`; `cosine_similarity`: mean squared error of the cosine and `score`.",
    )
    pooling: Literal["mean", "cls"] = Field(
        "mean", description="Vector of a text: mean of the last layer over its tokens, or its first token."
    )
    normalize: bool = Field(True, description="Scale vectors to length 1.")
    scale: PositiveFloat = Field(20.0, description="Factor of the cosines (1 / temperature) in `multiple_negatives`.")
    symmetric: bool = Field(
        False,
        description="`multiple_negatives` in both directions: also the anchor of each positive among all anchors.",
    )
    distance: Literal["euclidean", "cosine"] = Field("euclidean", description="Distance of `triplet`.")
    margin: PositiveFloat | None = Field(
        None,
        description="Margin of `triplet`. Default: 5 as in sentence-transformers, or 0.5 where distances are at most 2 "
        "(vectors of length 1, `distance: cosine`).",
    )

    @model_validator(mode="after")
    def _check(self) -> "SentenceEmbeddingObjective":
        owner = {"scale": "multiple_negatives", "symmetric": "multiple_negatives"}
        owner |= {"distance": "triplet", "margin": "triplet"}
        for option, loss in owner.items():
            if loss != self.loss and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option} is for loss: {loss}, not {self.loss}")
        return self

    @property
    def triplet_margin(self) -> float:
        """`margin`, or its default."""
        if self.margin is not None:
            return self.margin
        return 0.5 if self.normalize or self.distance == "cosine" else 5.0

    def find_task_problem(self, preprocess: Any, rows: int) -> str | None:
        """Why rows of this preprocess section cannot be trained on, `rows` of them at once."""
        if getattr(preprocess, "kind", None) != "text_pairs":
            return None  # reported with the kinds that fit
        if self.loss == "triplet" and preprocess.negative is None:
            return "loss: triplet needs preprocess.negative, the field of a text that does not belong to the first"
        if self.loss == "cosine_similarity" and preprocess.score is None:
            return "loss: cosine_similarity needs preprocess.score, the field of the similarity of the two texts"
        if self.loss == "multiple_negatives" and preprocess.negative is None and rows < 2:
            return "loss: multiple_negatives needs batch_size / grad_accum of 2 or more, or preprocess.negative"
        return None


class TextToTextObjective(Section):
    """Cross-entropy of all non-padding target tokens, sentinels and end token included (t5x/losses.py)."""

    implementation: ClassVar[str] = "bertjax.objectives.text_to_text:TEXT_TO_TEXT"
    heads: ClassVar[tuple[str, ...]] = ("lm",)
    families: ClassVar[tuple[str, ...]] = ("t5",)
    preprocess: ClassVar[tuple[str, ...]] = (
        "text_to_text", "span_corruption", "iid_denoising", "deshuffling", "prefix_lm", "causal_lm",
    )  # fmt: skip
    evaluations: ClassVar[tuple[str, ...]] = ("loss", "text_to_text")

    kind: Literal["text_to_text"] = "text_to_text"
    z_loss: NonNegativeFloat = Field(1e-4, description="Weight of the squared log normalizer of the softmax.")
    label_smoothing: Probability = Field(0.0, description="Probability moved from the target to all other tokens.")
    loss_normalizing_factor: (
        Literal["num_real_target_tokens", "num_total_target_tokens", "average_per_sequence", "sum"] | PositiveFloat
    ) = Field(
        "num_real_target_tokens",
        description="Divisor of the summed loss: the non-padding target tokens, all target tokens, 1 (`sum`) or a "
        "number (t5x: 233472 with T5 checkpoints). `average_per_sequence`: the mean over sequences of their mean.",
    )


OBJECTIVES: dict[str, type[Section]] = {
    "mlm_nsp": MlmNspObjective,
    "span_qa": SpanQaObjective,
    "classification": ClassificationObjective,
    "token_classification": TokenClassificationObjective,
    "sentence_embedding": SentenceEmbeddingObjective,
    "text_to_text": TextToTextObjective,
    "cbow": CbowObjective,
    "skip_gram": SkipGramObjective,
    "bidirectional_lm": BidirectionalLmObjective,
    "causal_lm": CausalLmObjective,
    "replaced_tokens": ReplacedTokensObjective,
}
Objective = Annotated[Any, KindOf("kind", "mlm_nsp", OBJECTIVES)]

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


LoraTarget = Literal[
    "query", "key", "value", "attention_output", "mlp_intermediate", "mlp_gate", "mlp_output"
]  # weights of a layer that can have a low-rank update


class Trainable(Section):
    """Parameters that train. `trainable: head` is short for `trainable: {kind: head}`."""

    kind: Literal["all", "head", "features", "gradual", "adapters", "lora"] = Field(
        "all",
        description="`head`: the output layer; `features`: the same on fixed features of an encoder, which has no "
        "dropout and reads each row once (arXiv 1810.04805, section 5.3); `gradual`: unfreeze layers from the top, one "
        "episode at a time (arXiv 1910.10683, section 3.5.1); `adapters`: small layers inside each layer (arXiv "
        "1902.00751; T5: arXiv 1910.10683); `lora`: low-rank updates of weights (arXiv 2106.09685). With the last two "
        "an encoder's heads train too.",
    )
    feature_layers: Literal["last", "sum_last_four", "weighted"] = Field(
        "last",
        exclude_if=lambda layers: layers == "last",
        description="Layers that are the `features`. `weighted`: the embeddings and all layers, with trained weights "
        "(arXiv 1802.05365, equation 1).",
    )
    cache_features: bool = Field(
        True,
        exclude_if=lambda cache: cache,
        description="Encode each training row once, before training, and keep its `features` in the host's memory.",
    )
    cache_gib: PositiveFloat | None = Field(
        None,
        exclude_if=lambda limit: limit is None,
        description="Largest cache of features in GiB, in each process; a stage without one has the same losses. "
        "Default: half of the free memory.",
    )
    episodes: Positive | None = Field(None, description="Episodes of `gradual`. Default: one per layer.")
    episode_lengths: list[PositiveFloat] | None = Field(
        None,
        exclude_if=lambda lengths: lengths is None,
        description="Relative lengths of the episodes of `gradual`: `[1, 1, 8]` trains everything for the last 80 % of "
        "the steps. Default: equal.",
    )
    unfreeze_ratio: float | None = Field(
        None,
        gt=0,
        lt=1,
        exclude_if=lambda ratio: ratio is None,
        description="Share of the steps of `gradual` after which everything trains; the episodes before share it "
        "equally. Default: by `episode_lengths`.",
    )
    embeddings: Literal["auto", "last", "always", "never"] = Field(
        "auto",
        description="When `gradual` trains the input embeddings. `auto`: last for BERT, always for T5 (tied outputs).",
    )
    adapter_size: Positive = Field(64, description="Inner width of adapters.")
    adapter_placement: Literal["houlsby", "feed_forward"] = Field(
        "houlsby",
        exclude_if=lambda place: place == "houlsby",
        description="Where an encoder has adapters. `houlsby`: after both sublayers; `feed_forward`: after that one.",
    )
    adapter_norms: Literal["paper", "houlsby"] = Field(
        "paper",
        description="Norms that train with adapters. `paper`: all; `houlsby`: those inside the adapters (T5).",
    )
    adapter_init: Literal["reference", "near_identity"] = Field(
        "reference",
        description="Initial adapters. `reference`: of T5 as its other layers, of an encoder near the identity; "
        "`near_identity`: as in arXiv 1902.00751.",
    )
    adapter_only_checkpoints: bool = Field(
        True, description="With `adapters`, `lora` and `features`: save only what trains; `init_from` has the rest."
    )
    lora_rank: Positive = Field(8, exclude_if=lambda rank: rank == 8, description="Rank of LoRA's updates.")
    lora_alpha: PositiveFloat = Field(
        16.0, exclude_if=lambda alpha: alpha == 16, description="LoRA's updates are scaled by `lora_alpha / lora_rank`."
    )
    lora_rslora: bool = Field(
        False, exclude_if=not_, description="Scale by `lora_alpha / sqrt(lora_rank)` (arXiv 2312.03732) instead."
    )
    lora_dropout: Probability = Field(0.0, exclude_if=not_, description="Dropout of the inputs of the updates.")
    lora_targets: list[LoraTarget] = Field(
        ["query", "value"],
        min_length=1,
        exclude_if=lambda targets: targets == ["query", "value"],
        description="Weights with an update, in every layer and, with a T5, in cross attention too. `mlp_gate`: of a "
        "gated T5.",
    )

    @field_validator("lora_targets")
    @classmethod
    def _check_targets(cls, targets: list[LoraTarget]) -> list[LoraTarget]:
        if len(set(targets)) < len(targets):
            raise ValueError("lora_targets: names a weight twice")
        return targets

    @property
    def lora_scale(self) -> float:
        """The factor of LoRA's updates."""
        return self.lora_alpha / (self.lora_rank**0.5 if self.lora_rslora else self.lora_rank)

    @model_validator(mode="after")
    def _check_lengths(self) -> "Trainable":
        if self.episode_lengths is not None and self.unfreeze_ratio is not None:
            raise ValueError("episode_lengths and unfreeze_ratio both say how long episodes are; give one of them")
        if self.kind == "gradual" and self.unfreeze_ratio is not None and self.episodes == 1:
            raise ValueError("unfreeze_ratio needs episodes of 2 or more (got 1): with one everything trains at once")
        if self.episode_lengths is None or self.episodes is None:
            return self
        if self.episodes != len(self.episode_lengths):
            raise ValueError(f"episode_lengths has {len(self.episode_lengths)} entries for {self.episodes} episodes")
        return self


def expand_trainable(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value
