"""Configuration sections of the model families, and the table of families."""

from operator import not_
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from bertjax.config.schema.base import AnyPath, KindOf, NonNegative, Positive, PositiveFloat, Probability, Section

ConfigFrom = Annotated[
    AnyPath | None, Field(description="Hugging Face folder, model on the Hub, run or checkpoint with the sizes.")
]


# Facts of a family's section: `implementation` names its Family record (models/families.py), `config_json` (if
# transformers has the family) its ConfigJson record (config/huggingface/fields.py), `tokenizer` the kind that it reads,
# `heads` those that it can have, `stacks` the prefixes of its `layers/N` parameters from the bottom up ("" for the only
# stack), `has_adapters` whether `trainable: adapters` is possible, `max_length` the longest sequence in tokens or None.
# A section has num_hidden_layers (of the deepest stack), num_attention_heads, intermediate_size and vocab_size.
# An option added later is excluded from saved configurations while it has no effect: old fingerprints stay valid.


class BertConfig(Section):
    """A BERT encoder. Options are named as in Hugging Face's BertConfig."""

    implementation: ClassVar[str] = "bertjax.models.bert.model:BERT"
    config_json: ClassVar[str] = "bertjax.config.huggingface.bert:BERT"
    tokenizer: ClassVar[str] = "wordpiece"
    heads: ClassVar[tuple[str, ...]] = ("mlm", "nsp", "qa", "classifier", "pooler")
    stacks: ClassVar[tuple[str, ...]] = ("",)
    has_adapters: ClassVar[bool] = False

    family: Literal["bert"] = "bert"
    config_from: ConfigFrom = None
    vocab_size: Positive = Field(30522, description="Rows of the token embeddings.")
    hidden_size: Positive = Field(768, description="Width of the residual stream.")
    num_hidden_layers: Positive = Field(12, description="Number of layers.")
    num_attention_heads: Positive = Field(12, description="Attention heads per layer; must divide `hidden_size`.")
    intermediate_size: Positive = Field(3072, description="Width of the feed-forward layers.")
    max_position_embeddings: Positive = Field(512, description="Longest sequence, in tokens.")
    type_vocab_size: NonNegative = Field(2, description="Number of segment embeddings; 0 for `distilbert`.")
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
    heads: ClassVar[tuple[str, ...]] = ("mlm", "qa", "classifier")

    family: Literal["distilbert"] = "distilbert"  # type: ignore[assignment]
    type_vocab_size: NonNegative = Field(0, description="Segment embeddings; a DistilBERT has none.")

    @model_validator(mode="after")
    def _check_segments(self) -> Self:
        if self.type_vocab_size != 0:
            raise ValueError("a distilbert model has no segment embeddings: set type_vocab_size to 0")
        return self


class T5Config(Section):
    """T5 (arXiv 1910.10683) or its decoder. Options are named as in Hugging Face's T5Config; defaults: T5-small."""

    implementation: ClassVar[str] = "bertjax.models.t5.model:FAMILY"
    config_json: ClassVar[str] = "bertjax.config.huggingface.t5:T5"
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
    vocab_size: Positive = Field(32128, description="Rows of the token embeddings.")
    d_model: Positive = Field(512, description="Width of the residual stream.")
    d_kv: Positive = Field(64, description="Width of an attention head.")
    d_ff: Positive = Field(2048, description="Width of the feed-forward layers.")
    num_layers: NonNegative = Field(6, description="Layers of the encoder.")
    num_decoder_layers: Positive | None = Field(None, description="Layers of the decoder. Default: `num_layers`.")
    num_heads: Positive = Field(8, description="Attention heads per layer.")
    feed_forward_proj: Literal["relu", "gelu", "gelu_new", "silu", "gated-relu", "gated-gelu", "gated-silu"] = Field(
        "relu",
        description="Activation of the feed-forward layers. T5 1.0: `relu`; 1.1: `gated-gelu` (tanh approximation).",
    )
    tie_word_embeddings: bool = Field(True, description="Output matrix = token embeddings. T5 1.0: true; 1.1: false.")
    scale_decoder_outputs: bool | None = Field(None, description="Scale outputs by 1/sqrt(d_model). Default: if tied.")
    relative_attention_num_buckets: int = Field(32, ge=4, multiple_of=2, description="Buckets of relative positions.")
    relative_attention_max_distance: Positive = Field(128, description="Distance from which positions share a bucket.")
    dropout_rate: Probability = Field(0.1, description="Dropout rate.")
    layer_norm_epsilon: PositiveFloat = Field(1e-6, description="Epsilon of the RMS norms.")
    decoder_start_token_id: NonNegative = Field(0, exclude_if=not_, description="First token of the decoder.")

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
        if self.decoder_start_token_id >= self.vocab_size:
            raise ValueError(f"decoder_start_token_id must be below vocab_size ({self.vocab_size})")
        if not self.decoder_layers or (self.architecture == "encoder_decoder" and not self.num_layers):
            raise ValueError("num_layers must be above zero")
        exact = self.relative_attention_num_buckets // 2  # distances of the decoder that have a bucket each
        if self.relative_attention_max_distance <= exact:
            raise ValueError(f"relative_attention_max_distance must be above half the buckets ({exact})")
        return self


FAMILIES: dict[str, Any] = {"bert": BertConfig, "distilbert": DistilBertConfig, "t5": T5Config}
Model = Annotated[Any, KindOf("family", "bert", FAMILIES)]
ModelConfig: TypeAlias = BertConfig | T5Config
