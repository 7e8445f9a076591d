"""Configuration sections of the objectives of word2vec, ELMo and GPT; `config.schema.training` has their table."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bertjax.config.schema.base import NonNegativeFloat, Section, Size

Window = Annotated[
    Size, Field(description="Most tokens on either side of a center; each center draws a width from 1 to this.")
]
Negatives = Annotated[
    Size, Field(description="Random tokens for each center, drawn by their frequency to the power 0.75.")
]
Sample = Annotated[
    NonNegativeFloat, Field(description="Frequency above which tokens are left out at random (word2vec.c); 0: none.")
]


class CbowObjective(Section):
    """Continuous bag of words of word2vec: predict a token from the mean of those around it, with negative sampling."""

    implementation: ClassVar[str] = "bertjax.objectives.word2vec:CBOW"
    heads: ClassVar[tuple[str, ...]] = ("context",)
    has_soft_targets: ClassVar[bool] = False
    preprocess: ClassVar[tuple[str, ...]] = ("text_rows",)
    evaluations: ClassVar[tuple[str, ...]] = ("loss",)

    kind: Literal["cbow"] = "cbow"
    window: Window = 5
    negatives: Negatives = 5
    sample: Sample = 1e-3


class SkipGramObjective(Section):
    """Skip-gram of word2vec: predict a token from each of those around it, with negative sampling."""

    implementation: ClassVar[str] = "bertjax.objectives.word2vec:SKIP_GRAM"
    heads: ClassVar[tuple[str, ...]] = ("context",)
    has_soft_targets: ClassVar[bool] = False
    preprocess: ClassVar[tuple[str, ...]] = ("text_rows",)
    evaluations: ClassVar[tuple[str, ...]] = ("loss",)

    kind: Literal["skip_gram"] = "skip_gram"
    window: Window = 5
    negatives: Negatives = 5
    sample: Sample = 1e-3


class BidirectionalLmObjective(Section):
    """ELMo's two language models: forward the next token, backward the one before, with one softmax."""

    implementation: ClassVar[str] = "bertjax.objectives.language_model:BIDIRECTIONAL_LM"
    heads: ClassVar[tuple[str, ...]] = ("lm",)
    has_soft_targets: ClassVar[bool] = False
    families: ClassVar[tuple[str, ...]] = ("elmo",)
    preprocess: ClassVar[tuple[str, ...]] = ("text_rows",)
    evaluations: ClassVar[tuple[str, ...]] = ("loss",)

    kind: Literal["bidirectional_lm"] = "bidirectional_lm"


class CausalLmObjective(Section):
    """Cross-entropy of the next token of a causal encoder (GPT)."""

    implementation: ClassVar[str] = "bertjax.objectives.language_model:CAUSAL_LM"
    heads: ClassVar[tuple[str, ...]] = ("lm",)
    has_soft_targets: ClassVar[bool] = False
    families: ClassVar[tuple[str, ...]] = ("gpt",)
    preprocess: ClassVar[tuple[str, ...]] = ("text_rows",)
    evaluations: ClassVar[tuple[str, ...]] = ("loss",)

    kind: Literal["causal_lm"] = "causal_lm"
