"""The part of the schema that says what a model is."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from bertjax.config.schema.base import KindOf, LocalPath, NonNegative, Positive, Probability, Section


def _is_none(value: Any) -> bool:
    """Fields of later versions are left out of what is kept where they say nothing: old runs stay the same runs."""
    return value is None


def _is_zero(value: Any) -> bool:
    return value == 0


class BertConfig(Section):
    """An encoder. Fields as in Hugging Face BertConfig; `distilbert` has no segment embeddings and no pooler."""

    family: Literal["bert", "distilbert"] = "bert"
    config_from: LocalPath | None = (
        None  # a Hugging Face folder or bertjax checkpoint whose sizes fill the fields below
    )
    vocab_size: Positive = 30522
    hidden_size: Positive = 768
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    max_position_embeddings: Positive = 512
    type_vocab_size: NonNegative = 2
    # gelu: erf form; gelu_new: the reference's tanh form; quick_gelu: x * sigmoid(1.702 x)
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu", "quick_gelu"] = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    # Before the output of a classification, and of a span's start and end (DistilBERT's; BERT has none there).
    classifier_dropout: Probability | None = Field(default=None, exclude_if=_is_none)  # default: hidden_dropout_prob
    qa_dropout: Probability = Field(default=0.0, exclude_if=_is_zero)
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    position_init: Literal["normal", "sinusoidal"] = "normal"  # where learnt positions start

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size})"
            )
        if self.family == "distilbert" and self.type_vocab_size != 0:
            raise ValueError("a distilbert model has no segment embeddings: set type_vocab_size to 0")
        return self


class T5Config(Section):
    """T5 (arXiv 1910.10683) and its decoder alone. Fields as in Hugging Face T5Config; the defaults are T5-small's."""

    family: Literal["t5"] = "t5"
    architecture: Literal["encoder_decoder", "decoder_only"] = "encoder_decoder"
    config_from: LocalPath | None = (
        None  # a Hugging Face folder or bertjax checkpoint whose sizes fill the fields below
    )
    vocab_size: Positive = 32128
    d_model: Positive = 512
    d_kv: Positive = 64
    d_ff: Positive = 2048
    num_layers: NonNegative = 6  # of the encoder
    num_decoder_layers: Positive | None = None  # default: num_layers
    num_heads: Positive = 8
    # 1.0: relu; 1.1: gated-gelu, whose gelu is the tanh form gelu_new
    feed_forward_proj: Literal["relu", "gelu", "gelu_new", "silu", "gated-relu", "gated-gelu", "gated-silu"] = "relu"
    tie_word_embeddings: bool = True  # whether the output matrix is the embeddings; 1.0: yes, 1.1: no
    scale_decoder_outputs: bool | None = None  # by 1/sqrt(d_model) before the output matrix; default: when tied
    relative_attention_num_buckets: Annotated[int, Field(ge=4, multiple_of=2)] = 32
    relative_attention_max_distance: Positive = 128
    dropout_rate: Probability = 0.1
    layer_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-6
    decoder_start_token_id: NonNegative = Field(default=0, exclude_if=_is_zero)  # what the decoder reads first

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layers have a gate."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """Of the feed-forward layers, as `models.layers` calls it."""
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.removeprefix("gated-")

    @property
    def decoder_layers(self) -> int:
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def encoder_layers(self) -> int:
        return self.num_layers if self.architecture == "encoder_decoder" else 0

    @property
    def num_hidden_layers(self) -> int:
        """Of the deeper stack."""
        return max(self.encoder_layers, self.decoder_layers)

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


FAMILIES: dict[str, type[Section]] = {
    "bert": BertConfig,
    "distilbert": BertConfig,
    "t5": T5Config,
}
Model = Annotated[Any, KindOf("family", "bert", FAMILIES)]
ModelConfig: TypeAlias = BertConfig | T5Config
