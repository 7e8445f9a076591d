"""Configuration sections of the model families, and the table of families."""

from operator import not_
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from bertjax.config.limits import MAX_LAYERS, MAX_SIZE
from bertjax.config.schema.base import (
    ConfigFrom,
    KindOf,
    Layers,
    NonNegative,
    Positive,
    PositiveFloat,
    Probability,
    Section,
    Size,
    VocabSize,
)
from bertjax.config.schema.ladder_models import ElmoConfig, Word2VecConfig

Fraction = Annotated[float, Field(gt=0, le=1)]
TypeVocabSize = Annotated[int, Field(ge=0, le=MAX_SIZE)]


# Facts of a family's section: `implementation` names its Family record (models/families.py), `config_json` (if
# transformers has the family) its ConfigJson record (config/huggingface/fields.py), `tokenizer` the kind that it reads,
# `heads` those that it can have, `stacks` the prefixes of its `layers/N` parameters from the bottom up ("" for the only
# stack), `has_adapters` whether `trainable: adapters` and `lora` are possible, `has_features` (default: False) whether
# `features` are, `has_frozen_prefix` (the same) whether `gradual` can keep the outputs of frozen layers, `max_length`
# the longest sequence in tokens or None.
# `model_types` are those that transformers has for the family (default: its name). Encoders: `classifier_dense` is the
# activation of a dense layer that only the classifier reads (None: it reads the pooler).
# Those of BERT's layers: `causal`, whether a token sees only itself and those before it; `embedding_norm`, whether a
# norm follows the embeddings.
# A section has num_hidden_layers (of the deepest stack), num_attention_heads, intermediate_size and vocab_size.
# An option added later is excluded from saved configurations while it has no effect: old fingerprints stay valid.


class BertConfig(Section):
    """A BERT encoder. Options are named as in Hugging Face's BertConfig."""

    implementation: ClassVar[str] = "bertjax.models.bert.model:BERT"
    config_json: ClassVar[str] = "bertjax.config.huggingface.bert:BERT"
    tokenizer: ClassVar[str] = "wordpiece"
    heads: ClassVar[tuple[str, ...]] = ("mlm", "nsp", "qa", "classifier", "token_classifier", "pooler")
    stacks: ClassVar[tuple[str, ...]] = ("",)
    has_adapters: ClassVar[bool] = True
    has_features: ClassVar[bool] = True
    has_frozen_prefix: ClassVar[bool] = True
    classifier_dense: ClassVar[Literal["relu", "tanh", "gelu"] | None] = None
    causal: ClassVar[bool] = False
    embedding_norm: ClassVar[bool] = True

    family: Literal["bert"] = "bert"
    config_from: ConfigFrom = None
    vocab_size: VocabSize = Field(30522, description="Rows of the token embeddings.")
    hidden_size: Size = Field(768, description="Width of the residual stream.")
    num_hidden_layers: Layers = Field(12, description="Number of layers.")
    num_attention_heads: Size = Field(12, description="Attention heads per layer; must divide `hidden_size`.")
    intermediate_size: Size = Field(3072, description="Width of the feed-forward layers.")
    max_position_embeddings: Size = Field(512, description="Longest sequence, in tokens.")
    type_vocab_size: TypeVocabSize = Field(2, description="Number of segment embeddings; 0 for `distilbert`.")
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu", "quick_gelu"] = Field(
        "gelu",
        description="`gelu`: with erf; `gelu_new`: tanh approximation (as BERT); `quick_gelu`: x * sigmoid(1.702 x).",
    )
    hidden_dropout_prob: Probability = Field(0.1, description="Dropout after the embeddings and after each sublayer.")
    attention_probs_dropout_prob: Probability = Field(0.1, description="Dropout of the attention probabilities.")
    classifier_dropout: Probability | None = Field(
        None, exclude_if=lambda rate: rate is None, description="Classifier dropout; null: `hidden_dropout_prob`."
    )
    qa_dropout: Probability = Field(0.0, exclude_if=not_, description="Dropout before the span output.")
    layer_norm_eps: PositiveFloat = Field(1e-12, description="Epsilon of the layer norms.")
    initializer_range: PositiveFloat = Field(0.02, description="Standard deviation of the initial weights.")
    position_init: Literal["normal", "sinusoidal"] = Field("normal", description="Initial position embeddings.")

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings and of the output matrix."""
        return self.hidden_size

    @property
    def projects_embeddings(self) -> bool:
        """Whether a dense layer maps the embeddings to `hidden_size`."""
        return False

    @property
    def layer_order(self) -> tuple[int, ...]:
        """The number N of the parameters `layers/N` of each layer, from the bottom up."""
        return tuple(range(self.num_hidden_layers))

    @property
    def max_length(self) -> int | None:
        return self.max_position_embeddings

    @model_validator(mode="after")
    def _check(self) -> Self:
        heads, width = self.num_attention_heads, self.hidden_size
        if width % heads:
            raise ValueError(f"num_attention_heads ({heads}) must divide hidden_size ({width})")
        return self


class DistilBertConfig(BertConfig):
    """A DistilBERT encoder: BERT without segment embeddings, pooler and next-sentence head."""

    implementation: ClassVar[str] = "bertjax.models.bert.model:DISTILBERT"
    config_json: ClassVar[str] = "bertjax.config.huggingface.bert:DISTILBERT"
    heads: ClassVar[tuple[str, ...]] = ("mlm", "qa", "classifier", "token_classifier")
    classifier_dense: ClassVar[Literal["relu", "tanh", "gelu"] | None] = "relu"

    family: Literal["distilbert"] = "distilbert"  # type: ignore[assignment]
    type_vocab_size: TypeVocabSize = Field(0, description="Segment embeddings; a DistilBERT has none.")

    @model_validator(mode="after")
    def _check_segments(self) -> Self:
        if self.type_vocab_size != 0:
            raise ValueError("a distilbert model has no segment embeddings: set type_vocab_size to 0")
        return self


class RobertaConfig(BertConfig):
    """A RoBERTa (arXiv 1907.11692), XLM-RoBERTa or CamemBERT encoder. Defaults: roberta-base."""

    implementation: ClassVar[str] = "bertjax.models.bert.model:ROBERTA"
    config_json: ClassVar[str] = "bertjax.config.huggingface.bert:ROBERTA"
    model_types: ClassVar[tuple[str, ...]] = ("roberta", "xlm-roberta", "camembert")
    heads: ClassVar[tuple[str, ...]] = ("mlm", "qa", "classifier", "token_classifier", "pooler")
    classifier_dense: ClassVar[Literal["relu", "tanh", "gelu"] | None] = "tanh"

    family: Literal["roberta"] = "roberta"  # type: ignore[assignment]
    model_type: Literal["roberta", "xlm-roberta", "camembert"] = Field(
        "roberta",
        exclude_if=lambda name: name == "roberta",
        description="Classes of transformers that read an exported model; all compute the same.",
    )
    vocab_size: VocabSize = Field(50265, description="Rows of the token embeddings.")
    max_position_embeddings: Size = Field(
        514, description="Rows of the position embeddings: the longest sequence and `pad_token_id` + 1."
    )
    type_vocab_size: TypeVocabSize = Field(1, description="Number of segment embeddings.")
    layer_norm_eps: PositiveFloat = Field(1e-5, description="Epsilon of the layer norms.")
    pad_token_id: NonNegative = Field(1, description="Id of padding in the tokenizer; positions begin above it.")

    @property
    def max_length(self) -> int | None:
        return self.max_position_embeddings - self.pad_token_id - 1

    @model_validator(mode="after")
    def _check_positions(self) -> Self:
        if self.max_position_embeddings < self.pad_token_id + 2:
            raise ValueError(f"max_position_embeddings must be above pad_token_id + 1 ({self.pad_token_id + 1})")
        return self


class ElectraConfig(BertConfig):
    """An ELECTRA (arXiv 2003.10555) discriminator or generator. Defaults: electra-small-discriminator."""

    implementation: ClassVar[str] = "bertjax.models.bert.model:ELECTRA"
    config_json: ClassVar[str] = "bertjax.config.huggingface.bert:ELECTRA"
    heads: ClassVar[tuple[str, ...]] = ("mlm", "generator", "discriminator", "qa", "classifier", "token_classifier")
    classifier_dense: ClassVar[Literal["relu", "tanh", "gelu"] | None] = "gelu"

    family: Literal["electra"] = "electra"  # type: ignore[assignment]
    embedding_size: Size = Field(128, description="Width of the embeddings.")
    hidden_size: Size = Field(256, description="Width of the residual stream.")
    num_attention_heads: Size = Field(4, description="Attention heads per layer; must divide `hidden_size`.")
    intermediate_size: Size = Field(1024, description="Width of the feed-forward layers.")
    generator_hidden_size: Fraction = Field(
        0.25,
        exclude_if=lambda fraction: fraction == 0.25,
        description="Width of the generator of `replaced_tokens`, as a fraction of `hidden_size`; its feed-forward "
        "layers and attention heads scale with it.",
    )
    generator_layers: Fraction = Field(
        1.0,
        exclude_if=lambda fraction: fraction == 1.0,
        description="Layers of the generator, as a fraction of `num_hidden_layers`.",
    )

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @property
    def projects_embeddings(self) -> bool:
        return self.embedding_size != self.hidden_size

    @property
    def generator(self) -> "ElectraConfig":
        """The generator as a model of its own (get_generator_config of run_pretraining.py).

        Heads keep the size of the discriminator's, or the next larger one that divides the width.
        """
        width = max(1, round(self.hidden_size * self.generator_hidden_size))
        most = max(1, width * self.num_attention_heads // self.hidden_size)
        sizes = {
            "hidden_size": width,
            "num_attention_heads": next(heads for heads in range(most, 0, -1) if width % heads == 0),
            "intermediate_size": max(1, round(self.intermediate_size * self.generator_hidden_size)),
            "num_hidden_layers": max(1, round(self.num_hidden_layers * self.generator_layers)),
        }
        return self.model_copy(update=sizes | {"generator_hidden_size": 0.25, "generator_layers": 1.0})


class AlbertConfig(BertConfig):
    """An ALBERT (arXiv 1909.11942) encoder, whose layers share parameters. Defaults: albert-base-v2."""

    implementation: ClassVar[str] = "bertjax.models.bert.model:ALBERT"
    config_json: ClassVar[str] = "bertjax.config.huggingface.bert:ALBERT"
    heads: ClassVar[tuple[str, ...]] = ("mlm", "sop", "qa", "classifier", "token_classifier", "pooler")

    family: Literal["albert"] = "albert"  # type: ignore[assignment]
    vocab_size: VocabSize = Field(30000, description="Rows of the token embeddings.")
    embedding_size: Size = Field(128, description="Width of the embeddings.")
    num_hidden_groups: Layers = Field(
        1, description="Groups of layers; the layers of a group share their parameters. Groups are frozen as units."
    )
    inner_group_num: Layers = Field(1, description="Different layers, one after the other, in each layer of a group.")
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu", "quick_gelu"] = Field(
        "gelu_new", description="Activation of the feed-forward layers; see `bert`."
    )
    hidden_dropout_prob: Probability = Field(0.0, description="Dropout after the embeddings and after each sublayer.")
    attention_probs_dropout_prob: Probability = Field(0.0, description="Dropout of the attention probabilities.")
    classifier_dropout: Probability | None = Field(0.1, description="Classifier dropout; null: `hidden_dropout_prob`.")

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @property
    def projects_embeddings(self) -> bool:
        return True

    @property
    def layer_order(self) -> tuple[int, ...]:
        per_group = self.num_hidden_layers / self.num_hidden_groups
        return tuple(int(layer / per_group) for layer in range(self.num_hidden_layers))

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.num_hidden_groups > self.num_hidden_layers:
            raise ValueError(f"num_hidden_groups must be at most num_hidden_layers ({self.num_hidden_layers})")
        return self


class GptConfig(BertConfig):
    """A GPT (OpenAI, 2018): BERT's layers with causal attention. Options as of `bert`; defaults: openai-gpt."""

    implementation: ClassVar[str] = "bertjax.models.gpt:GPT"
    config_json: ClassVar[str] = ""
    heads: ClassVar[tuple[str, ...]] = ("lm", "qa", "classifier", "token_classifier")
    causal: ClassVar[bool] = True
    embedding_norm: ClassVar[bool] = False
    has_frozen_prefix: ClassVar[bool] = False

    family: Literal["gpt"] = "gpt"  # type: ignore[assignment]
    type_vocab_size: TypeVocabSize = Field(0, description="Segment embeddings; a GPT has none.")
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu", "quick_gelu"] = Field(
        "gelu_new", description="Activation of the feed-forward layers; see `bert`."
    )
    layer_norm_eps: PositiveFloat = Field(1e-5, description="Epsilon of the layer norms.")

    @model_validator(mode="after")
    def _check_segments(self) -> Self:
        if self.type_vocab_size != 0:
            raise ValueError("a gpt model has no segment embeddings: set type_vocab_size to 0")
        return self


class T5Config(Section):
    """T5 (arXiv 1910.10683), mT5, umT5, ByT5, or its decoder. Options: Hugging Face's T5Config; defaults: T5-small."""

    implementation: ClassVar[str] = "bertjax.models.t5.model:FAMILY"
    config_json: ClassVar[str] = "bertjax.config.huggingface.t5:T5"
    model_types: ClassVar[tuple[str, ...]] = ("t5", "mt5", "umt5")
    tokenizer: ClassVar[str] = "sentencepiece"
    heads: ClassVar[tuple[str, ...]] = ("lm",)
    stacks: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    has_adapters: ClassVar[bool] = True
    max_length: ClassVar[int | None] = None  # relative positions have no limit

    family: Literal["t5"] = "t5"
    architecture: Literal["encoder_decoder", "decoder_only"] = Field(
        "encoder_decoder", description="`decoder_only`: one stack reads inputs and targets as one sequence."
    )
    config_from: ConfigFrom = None
    model_type: Literal["t5", "mt5", "umt5"] = Field(
        "t5",
        exclude_if=lambda name: name == "t5",
        description="Classes of transformers that read an exported model. `mt5` computes what `t5` does and never "
        "scales outputs; in `umt5` each layer has a relative position bias of its own.",
    )
    vocab_size: VocabSize = Field(32128, description="Rows of the token embeddings.")
    d_model: Size = Field(512, description="Width of the residual stream.")
    d_kv: Size = Field(64, description="Width of an attention head.")
    d_ff: Size = Field(2048, description="Width of the feed-forward layers.")
    num_layers: int = Field(6, ge=0, le=MAX_LAYERS, description="Layers of the encoder.")
    num_decoder_layers: Layers | None = Field(None, description="Layers of the decoder. Default: `num_layers`.")
    num_heads: Size = Field(8, description="Attention heads per layer.")
    feed_forward_proj: Literal["relu", "gelu", "gelu_new", "silu", "gated-relu", "gated-gelu", "gated-silu"] = Field(
        "relu",
        description="Activation of the feed-forward layers. T5 1.0: `relu`; 1.1: `gated-gelu` (tanh approximation).",
    )
    tie_word_embeddings: bool = Field(True, description="Output matrix = token embeddings. T5 1.0: true; 1.1: false.")
    scale_decoder_outputs: bool | None = Field(
        None, description="Scale outputs by 1/sqrt(d_model). Default: if tied, except `mt5`."
    )
    relative_attention_num_buckets: int = Field(
        32, ge=4, le=MAX_SIZE, multiple_of=2, description="Buckets of relative positions."
    )
    relative_attention_max_distance: Positive = Field(128, description="Distance from which positions share a bucket.")
    dropout_rate: Probability = Field(0.1, description="Dropout rate.")
    layer_norm_epsilon: PositiveFloat = Field(1e-6, description="Epsilon of the RMS norms.")
    decoder_start_token_id: NonNegative = Field(0, exclude_if=not_, description="First token of the decoder.")

    @property
    def has_layer_bias(self) -> bool:
        """Whether each layer has a relative position bias of its own, instead of one that its stack shares."""
        return self.model_type == "umt5"

    @property
    def scales_outputs(self) -> bool:
        """`scale_decoder_outputs`, or its default."""
        if self.scale_decoder_outputs is None:
            return self.tie_word_embeddings and self.model_type != "mt5"
        return self.scale_decoder_outputs

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layers have a gate."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """Activation of the feed-forward layers, named as in `models.layers`."""
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.removeprefix("gated-")

    @property
    def decoder_layers(self) -> int:
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def encoder_layers(self) -> int:
        return self.num_layers if self.architecture == "encoder_decoder" else 0

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the deeper stack."""
        return max(self.encoder_layers, self.decoder_layers)

    @property
    def num_attention_heads(self) -> int:
        return self.num_heads

    @property
    def intermediate_size(self) -> int:
        return self.d_ff

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model_type == "mt5" and self.scale_decoder_outputs:
            raise ValueError(
                "an mt5 model never scales its outputs: set scale_decoder_outputs: false, or model_type: t5"
            )
        if self.decoder_start_token_id >= self.vocab_size:
            raise ValueError(f"decoder_start_token_id must be below vocab_size ({self.vocab_size})")
        if self.num_heads * self.d_kv > MAX_SIZE:
            raise ValueError(f"num_heads times d_kv must be at most {MAX_SIZE}")
        if not self.decoder_layers or (self.architecture == "encoder_decoder" and not self.num_layers):
            raise ValueError("num_layers must be above zero")
        exact = self.relative_attention_num_buckets // 2  # distances of the decoder that have a bucket each
        if self.relative_attention_max_distance <= exact:
            raise ValueError(f"relative_attention_max_distance must be above half the buckets ({exact})")
        return self


FAMILIES: dict[str, Any] = {
    "bert": BertConfig, "distilbert": DistilBertConfig, "roberta": RobertaConfig, "electra": ElectraConfig,
    "albert": AlbertConfig, "t5": T5Config, "word2vec": Word2VecConfig, "elmo": ElmoConfig, "gpt": GptConfig,
}  # fmt: skip
Model = Annotated[Any, KindOf("family", "bert", FAMILIES)]
ModelConfig: TypeAlias = BertConfig | T5Config | Word2VecConfig | ElmoConfig


def find_tokenizer_problem(model: Section, tokenizer: Section) -> str | None:
    """Why a model of this family cannot read what a tokenizer of this kind gives."""
    kind, needed, family = tokenizer.kind, model.tokenizer, model.family  # type: ignore[attr-defined]
    sentinels = getattr(tokenizer, "extra_ids", 0)
    if getattr(tokenizer, "stands_for", kind) == needed:
        unread = kind == "wordpiece" and sentinels
        return f"tokenizer.extra_ids: a {family} model reads no sentinels; leave it out" if unread else None
    if needed == "sentencepiece" and kind == "wordpiece":
        how = "sentencepiece or bytes; for wordpiece give tokenizer.extra_ids, the number of sentinels"
        return None if sentinels else f"a model of family '{family}' needs tokenizer.kind: {how}"
    names = " or ".join([needed, "bpe" if needed == "wordpiece" else "bytes"])
    return f"a model of family '{family}' needs tokenizer.kind: {names}"
