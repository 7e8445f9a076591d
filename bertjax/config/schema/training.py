"""Configuration sections of objectives and trainable parameters, and the table of objectives."""

from operator import not_
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bertjax.config.limits import MAX_SIZE
from bertjax.config.schema.base import (
    KindOf,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Probability,
    Section,
    Size,
)
from bertjax.config.schema.ladder_objectives import (
    BidirectionalLmObjective,
    CausalLmObjective,
    CbowObjective,
    SkipGramObjective,
)
from bertjax.config.schema.optimizers import Adafactor as Adafactor  # loops and plugins import them from here too
from bertjax.config.schema.optimizers import AdamW as AdamW
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
    num_labels: Size = Field(2, description="Number of classes; 1 for regression.")
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
    num_labels: int = Field(
        9, ge=2, le=MAX_SIZE, description="Number of labels, `O` included. Default: that of CoNLL-2003."
    )


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
        description="Largest cache of features or frozen layers in GiB, in each process; a stage without one has the "
        "same losses. Default: half of the free memory.",
    )
    cache_frozen: bool = Field(
        False,
        exclude_if=not_,
        description="With `gradual` of an encoder: frozen embeddings and layers have no dropout, and in each episode "
        "the output of the lowest layers is computed once for each training row and kept in the host's memory.",
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
    adapter_size: Size = Field(64, description="Inner width of adapters.")
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
    lora_rank: Size = Field(8, exclude_if=lambda rank: rank == 8, description="Rank of LoRA's updates.")
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
        if self.kind == "gradual" and self.cache_frozen and self.embeddings == "always":
            raise ValueError("cache_frozen needs frozen embeddings: embeddings=last or never (got always)")
        if self.episode_lengths is None or self.episodes is None:
            return self
        if self.episodes != len(self.episode_lengths):
            raise ValueError(f"episode_lengths has {len(self.episode_lengths)} entries for {self.episodes} episodes")
        return self


def expand_trainable(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class Rewind(Section):
    """When to go back to an earlier checkpoint and to leave out the batches that led to spikes."""

    spikes: Positive = Field(10, description="Skipped steps within the window after which to go back.")
    back: NonNegative = Field(100, description="Steps from the checkpoint to the first spike, if one is so old.")
    skip: NonNegative = Field(200, description="Batches after that of the last spike which are left out too.")
    most: Positive = Field(3, description="Rewinds of a stage; then the run ends with exit code 3.")


class SkipSpikes(Section):
    """When a step is skipped because its loss or gradient norm is far above those of the last steps."""

    window: int = Field(128, ge=8, description="Steps that mean and deviation are taken of; skips begin at half of it.")
    sigma: PositiveFloat = Field(6.0, description="Standard deviations above the mean from which on a step is a spike.")
    after: NonNegative | None = Field(
        None, description="First steps, which are never skipped. Default: those of the warm-up."
    )
    rewind: Rewind | None = Field(
        None,
        exclude_if=lambda rule: rule is None,
        description="Go back after many spikes and leave out data: `{}` for the defaults. Default: never.",
    )
