"""Configuration sections of the model families word2vec and ELMo; `config.schema.model` has the table of families."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bertjax.config.schema.base import (
    ConfigFrom,
    Layers,
    PositiveFloat,
    Probability,
    Section,
    Size,
    VocabSize,
)


class Word2VecConfig(Section):
    """Word vectors (arXiv 1301.3781): a table of input vectors and one of output vectors, without layers."""

    implementation: ClassVar[str] = "bertjax.models.word2vec:WORD2VEC"
    tokenizer: ClassVar[str] = "wordpiece"
    heads: ClassVar[tuple[str, ...]] = ("context", "qa", "classifier", "token_classifier")
    stacks: ClassVar[tuple[str, ...]] = ("",)
    has_adapters: ClassVar[bool] = False
    has_features: ClassVar[bool] = True
    max_length: ClassVar[int | None] = None
    num_hidden_layers: ClassVar[int] = 0
    num_attention_heads: ClassVar[int] = 1
    qa_dropout: ClassVar[float] = 0.0

    family: Literal["word2vec"] = "word2vec"
    config_from: ConfigFrom = None
    vocab_size: VocabSize = Field(30522, description="Rows of both tables.")
    hidden_size: Size = Field(300, description="Width of the vectors.")
    classifier_dropout: Probability = Field(
        0.0,
        description="Dropout before the output of a task. Means of word vectors are much alike: dropout of what they "
        "share is more noise than what differs.",
    )
    initializer_range: PositiveFloat = Field(0.02, description="Standard deviation of the initial task outputs.")

    @property
    def intermediate_size(self) -> int:
        return self.hidden_size


class ElmoConfig(Section):
    """A bidirectional LSTM language model (ELMo, arXiv 1802.05365) over word pieces."""

    implementation: ClassVar[str] = "bertjax.models.elmo.model:ELMO"
    tokenizer: ClassVar[str] = "wordpiece"
    heads: ClassVar[tuple[str, ...]] = ("lm", "qa", "classifier", "token_classifier")
    stacks: ClassVar[tuple[str, ...]] = ("",)
    has_adapters: ClassVar[bool] = False
    has_features: ClassVar[bool] = True
    max_length: ClassVar[int | None] = None
    num_attention_heads: ClassVar[int] = 1
    qa_dropout: ClassVar[float] = 0.0

    family: Literal["elmo"] = "elmo"
    config_from: ConfigFrom = None
    vocab_size: VocabSize = Field(30522, description="Rows of the token embeddings.")
    hidden_size: Size = Field(512, description="Cells of an LSTM layer in each direction; 4096 in the paper.")
    num_hidden_layers: Layers = Field(2, description="LSTM layers in each direction.")
    projection_size: Size | None = Field(
        None,
        exclude_if=lambda size: size is None,
        description="Width of the projected outputs of a layer, below `hidden_size` (512 in the paper), and of the "
        "token embeddings. Default: no projection.",
    )
    hidden_dropout_prob: Probability = Field(0.1, description="Dropout of the inputs of each layer.")
    classifier_dropout: Probability | None = Field(
        None, exclude_if=lambda rate: rate is None, description="Classifier dropout; null: `hidden_dropout_prob`."
    )
    initializer_range: PositiveFloat = Field(0.02, description="Standard deviation of the initial embeddings.")

    @property
    def embedding_width(self) -> int:
        """Width of the token embeddings and of the output of one direction."""
        return self.hidden_size if self.projection_size is None else self.projection_size

    @property
    def intermediate_size(self) -> int:
        return self.hidden_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.projection_size is not None and self.projection_size >= self.hidden_size:
            raise ValueError(f"projection_size ({self.projection_size}) must be below hidden_size ({self.hidden_size})")
        return self
