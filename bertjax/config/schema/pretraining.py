"""Configuration sections of further pre-training objectives (the table of objectives is in training.py)."""

from typing import ClassVar, Literal

from pydantic import Field

from bertjax.config.schema.base import NonNegativeFloat, PositiveFloat, Section


class ReplacedTokensObjective(Section):
    """Replaced-token detection, ELECTRA's pre-training (arXiv 2003.10555), with a generator that trains by MLM.

    The discriminator says which tokens the generator has replaced. Both share their embeddings.
    """

    implementation: ClassVar[str] = "bertjax.objectives.replaced_tokens:REPLACED_TOKENS"
    heads: ClassVar[tuple[str, ...]] = ("generator", "discriminator")
    has_soft_targets: ClassVar[bool] = False
    preprocess: ClassVar[tuple[str, ...]] = ("bert_pairs",)
    evaluations: ClassVar[tuple[str, ...]] = ("mlm", "loss")

    kind: Literal["replaced_tokens"] = "replaced_tokens"
    generator_weight: NonNegativeFloat = Field(1.0, description="Weight of the generator's masked-token loss.")
    discriminator_weight: PositiveFloat = Field(50.0, description="Weight of the discriminator's loss.")
    temperature: PositiveFloat = Field(1.0, description="Divisor of the generator's logits when it samples tokens.")
