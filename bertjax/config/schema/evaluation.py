"""Configuration sections of evaluations and of text generation, and the table of evaluation kinds."""

from operator import not_
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bertjax.config.schema.base import (
    FiniteFloat,
    KindOf,
    Name,
    NonNegative,
    NonNegativeFloat,
    Positive,
    Probability,
    Section,
    Size,
)
from bertjax.config.schema.custom import LabelMetric, TextMetric
from bertjax.config.schema.data import Task


def is_none(value: Any) -> bool:
    return value is None


_NAME = "Name of the evaluation in logs and files."
Heldout = Annotated[Task, Field(description="Held-out data and their preprocessing.")]
BatchSize = Annotated[Size, Field(description="Rows per batch, over all devices.")]
Batches = Annotated[Positive | None, Field(description="Batches to score. Default: all.")]
Every = Annotated[
    Positive | Literal["auto", "end"] | None,
    Field(
        description="Steps between evaluations; a stage always ends with one. `auto`: up to ten in a stage, at least "
        "100 steps apart, for about a tenth of its time; `end` or null: only at its end."
    ),
]


class EarlyStopping(Section):
    """End of a stage before its last step, once a score has not improved for some evaluations.

    `run.checkpoint.best_mode` says whether the highest or the lowest score is best.
    """

    metric: str = Field(description="Score to watch, of an evaluation of this stage: `dev/f1`.")
    patience: Positive = Field(3, description="Evaluations in a row without improvement that end the stage.")
    min_delta: NonNegativeFloat = Field(0.0, description="Improvements must be greater than this.")


class Decoding(Section):
    """Text generation; greedy by default."""

    beam_size: Size = Field(1, description="Beams of the beam search; 1 turns it off.")
    length_penalty: float = Field(0.6, ge=-2, le=100, description="alpha of `beam_rules`; below 0 for `transformers`.")
    beam_rules: Literal["t5x", "transformers"] = Field(
        "t5x", description="Rank beams by log p / ((5 + length) / 6)^alpha (`t5x`) or log p / length^alpha."
    )
    sample: bool = Field(False, description="Sample tokens instead of taking the most likely one.")
    temperature: float = Field(1.0, ge=1e-6, description="Divisor of the logits when sampling.")
    top_k: Positive | None = Field(None, description="Sample from the k likeliest tokens. Default: all.")
    top_p: float | None = Field(None, gt=0, le=1, description="Total probability of the likeliest tokens to sample.")
    max_new_tokens: Size | None = Field(None, description="Longest output. Default: `target_length` of the data.")
    min_new_tokens: NonNegative = Field(0, exclude_if=not_, description="No end token before this number of tokens.")
    no_repeat_ngram_size: NonNegative = Field(
        0, exclude_if=not_, description="No sequence of this many tokens occurs twice in an output; 0 turns it off."
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        le=100,
        exclude_if=lambda penalty: penalty == 1,
        description="Above 1, tokens of the output are less likely to occur again; below 1, more likely.",
    )
    bad_words_ids: list[list[NonNegative]] = Field(
        [], exclude_if=not_, description="Sequences of token ids that no output contains."
    )
    early_stopping: bool | Literal["never"] = Field(
        False,
        exclude_if=not_,
        description="End of `beam_rules: transformers`: once `beam_size` beams have finished (`true`), once it is "
        "unlikely that a better one follows (`false`), or once it is impossible (`never`).",
    )

    @model_validator(mode="after")
    def _check(self) -> "Decoding":
        if self.sample and self.beam_size > 1:
            raise ValueError("use either sample or beam_size")
        if not self.sample and (self.top_k is not None or self.top_p is not None or self.temperature != 1.0):
            raise ValueError("temperature, top_k and top_p need sample: true")
        if self.length_penalty < 0 and self.beam_rules != "transformers":
            raise ValueError("a length_penalty below 0 needs beam_rules: transformers")
        if self.early_stopping and self.beam_rules != "transformers":
            raise ValueError("early_stopping needs beam_rules: transformers")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        if any(not words for words in self.bad_words_ids):
            raise ValueError("bad_words_ids has an empty list; remove it")
        return self


# Facts of a section: `implementation` names its EvaluationKind (evaluation/evaluators/registry.py), `head`
# is what a checkpoint needs to be scored, whatever its objective (None: the objective must list the evaluation), and
# `preprocess` the kinds of rows that it reads (None: those of the objective).


class MlmEvaluation(Section):
    """Masked-token and next-sentence loss and accuracy."""

    implementation: ClassVar[str] = "bertjax.evaluation.evaluators.loss:LOSS"
    head: ClassVar[str | None] = None
    preprocess: ClassVar[tuple[str, ...] | None] = None

    kind: Literal["mlm"] = "mlm"
    name: Name = Field("mlm", description=_NAME)
    data: Heldout
    batch_size: BatchSize = 32
    batches: Batches = None
    every: Every = "auto"


class SquadEvaluation(Section):
    """Extracted answers, found by run_squad.py's rules and scored by those of the official v1.1 or v2.0 script."""

    implementation: ClassVar[str] = "bertjax.evaluation.evaluators.span_qa:SQUAD"
    head: ClassVar[str | None] = "qa"
    preprocess: ClassVar[tuple[str, ...] | None] = ("span_qa",)

    kind: Literal["squad"] = "squad"
    name: Name = Field("squad", description=_NAME)
    data: Heldout
    batch_size: BatchSize = 32
    every: Every = "auto"
    n_best: Size = Field(20, description="Candidate answers per question.")
    max_answer_length: Size = Field(30, description="Longest answer, in tokens.")
    null_score_diff_threshold: FiniteFloat = Field(
        0.0,
        description="Answer nothing if the null score leads by more. Predictions use the threshold that was swept "
        "instead, where the checkpoint keeps one.",
    )
    null_threshold: FiniteFloat | Literal["swept"] | None = Field(
        None,
        exclude_if=is_none,
        description="`swept`: score with the threshold that is best on these data. A number replaces "
        "`null_score_diff_threshold`, and for predictions the swept threshold.",
    )
    threshold_from: Name | None = Field(
        None,
        exclude_if=is_none,
        description="Evaluation of this stage whose swept threshold and calibration are scored on these data.",
    )
    version_2: bool | None = Field(None, description="Score as v2.0. Default: if a question has no answer.")

    @model_validator(mode="after")
    def _check(self) -> "SquadEvaluation":
        if self.threshold_from is not None and self.null_threshold is not None:
            raise ValueError("use either null_threshold or threshold_from")
        if isinstance(self.null_threshold, float) and self.null_score_diff_threshold not in (0.0, self.null_threshold):
            raise ValueError("null_threshold and null_score_diff_threshold differ; give null_threshold alone")
        if self.version_2 is False and self.null_threshold is not None:
            raise ValueError("null_threshold needs questions without an answer (version_2: true)")
        return self


class ClassificationEvaluation(Section):
    """Accuracy and other scores of predicted labels."""

    implementation: ClassVar[str] = "bertjax.evaluation.evaluators.classification:CLASSIFICATION"
    head: ClassVar[str | None] = "classifier"
    preprocess: ClassVar[tuple[str, ...] | None] = ("classify",)

    kind: Literal["classification"] = "classification"
    name: Name = Field("classification", description=_NAME)
    data: Heldout
    batch_size: BatchSize = 32
    every: Every = "auto"
    threshold: Probability = Field(
        0.5,
        exclude_if=lambda at: at == 0.5,
        description="Probability from which a text has a label, where it may have several.",
    )
    metrics: list[LabelMetric] = Field(
        [], exclude_if=not_, description="Metrics of plugins (`@bertjax.metric(name, inputs='labels')`), besides those."
    )


class TokenClassificationEvaluation(Section):
    """Precision, recall and F1 of entities by the rules of conlleval and seqeval, and accuracy of words."""

    implementation: ClassVar[str] = "bertjax.evaluation.evaluators.token_classification:TOKEN_CLASSIFICATION"
    head: ClassVar[str | None] = "token_classifier"
    preprocess: ClassVar[tuple[str, ...] | None] = ("token_labels",)

    kind: Literal["token_classification"] = "token_classification"
    name: Name = Field("token_classification", description=_NAME)
    data: Heldout
    batch_size: BatchSize = 32
    every: Every = "auto"
    scheme: Literal["IOB2", "IOE2", "IOBES", "BILOU"] | None = Field(
        None,
        description="Count only entities that this scheme allows (seqeval's `mode='strict'`). Default: every run of "
        "labels with one type, as conlleval.",
    )


class StsEvaluation(Section):
    """Correlation of the cosines of pairs of texts with their scores (semantic textual similarity)."""

    implementation: ClassVar[str] = "bertjax.evaluation.evaluators.embedding:STS"
    head: ClassVar[str | None] = None
    preprocess: ClassVar[tuple[str, ...] | None] = ("text_pairs",)

    kind: Literal["sts"] = "sts"
    name: Name = Field("sts", description=_NAME)
    data: Heldout
    batch_size: BatchSize = 32
    every: Every = "auto"

    @model_validator(mode="after")
    def _check(self) -> "StsEvaluation":
        options = self.data.preprocess
        if options.kind == "text_pairs" and options.score is None:
            raise ValueError("kind sts needs data.preprocess.score, the field of the similarity of the two texts")
        return self


class RetrievalEvaluation(Section):
    """Search for the `text_b` of each `text_a` among those of all records, by cosine."""

    implementation: ClassVar[str] = "bertjax.evaluation.evaluators.embedding:RETRIEVAL"
    head: ClassVar[str | None] = None
    preprocess: ClassVar[tuple[str, ...] | None] = ("text_pairs",)

    kind: Literal["retrieval"] = "retrieval"
    name: Name = Field("retrieval", description=_NAME)
    data: Heldout
    batch_size: BatchSize = 32
    every: Every = "auto"


class LossEvaluation(Section):
    """The objective's loss and accuracy, teacher-forced."""

    implementation: ClassVar[str] = "bertjax.evaluation.evaluators.loss:LOSS"
    head: ClassVar[str | None] = None
    preprocess: ClassVar[tuple[str, ...] | None] = None

    kind: Literal["loss"] = "loss"
    name: Name = Field("loss", description=_NAME)
    data: Heldout
    batch_size: BatchSize = 32
    batches: Batches = None
    every: Every = "auto"


class TextToTextEvaluation(Section):
    """Generated text, scored by the task's metrics (t5/evaluation/metrics.py)."""

    implementation: ClassVar[str] = "bertjax.evaluation.evaluators.text_to_text:TEXT_TO_TEXT"
    head: ClassVar[str | None] = None
    preprocess: ClassVar[tuple[str, ...] | None] = ("text_to_text",)

    kind: Literal["text_to_text"] = "text_to_text"
    name: Name = Field("text_to_text", description=_NAME)
    data: Heldout
    batch_size: BatchSize = 32
    every: Every = "auto"
    metrics: list[TextMetric] | None = Field(None, description="Metrics. Default: those of the prompt.")
    decoding: Decoding = Field(Decoding(), description="How the text is generated.")


EVALUATIONS: dict[str, type[Section]] = {
    "mlm": MlmEvaluation,
    "squad": SquadEvaluation,
    "classification": ClassificationEvaluation,
    "token_classification": TokenClassificationEvaluation,
    "sts": StsEvaluation,
    "retrieval": RetrievalEvaluation,
    "loss": LossEvaluation,
    "text_to_text": TextToTextEvaluation,
}
Evaluation = Annotated[Any, KindOf("kind", "mlm", EVALUATIONS)]
