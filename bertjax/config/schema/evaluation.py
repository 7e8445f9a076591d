"""The part of the schema that says how a model is scored and how text is generated."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from bertjax.config.schema.base import FiniteFloat, KindOf, Name, Positive, Section
from bertjax.config.schema.data import Task

Metric: TypeAlias = Literal[
    "accuracy", "f1", "mean_3class_f1", "matthews", "pearson", "spearman", "squad", "trivia_qa", "exact_match", "bleu",
    "rouge", "multirc", "record", "wsc",
]  # fmt: skip


class Decoding(Section):
    """How text is generated; greedy by default."""

    beam_size: Positive = 1
    # alpha: beams are ranked by log p / ((5 + length) / 6)^alpha; below 0 for beam_rules: transformers alone
    length_penalty: Annotated[float, Field(ge=-2, le=100)] = 0.6
    beam_rules: Literal["t5x", "transformers"] = "t5x"  # transformers: as its generate(), log p / length^alpha
    sample: bool = False
    temperature: Annotated[float, Field(ge=1e-6)] = 1.0
    top_k: Positive | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: Positive | None = None  # default: the task's target_length

    @model_validator(mode="after")
    def _check(self) -> "Decoding":
        if self.sample and self.beam_size > 1:
            raise ValueError("sample draws one answer and beam_size searches for the best: use one of them")
        if not self.sample and (self.top_k is not None or self.top_p is not None or self.temperature != 1.0):
            raise ValueError("temperature, top_k and top_p need sample: true")
        if self.length_penalty < 0 and self.beam_rules != "transformers":
            raise ValueError("a length_penalty below 0 needs beam_rules: transformers")
        return self


class MlmEvaluation(Section):
    """Masked-token and next-sentence loss and accuracy on held-out text."""

    kind: Literal["mlm"] = "mlm"
    name: Name = "mlm"
    data: Task
    batch_size: Positive = 32
    batches: Positive | None = None  # default: all
    every: Positive | None = None  # in steps; always at the end of the stage


class SquadEvaluation(Section):
    """Extractive answers by run_squad.py's rules, scored by the official v1.1 or v2.0 script's rules."""

    kind: Literal["squad"] = "squad"
    name: Name = "squad"
    data: Task
    batch_size: Positive = 32
    every: Positive | None = None
    n_best: Positive = 20
    max_answer_length: Positive = 30
    null_score_diff_threshold: FiniteFloat = 0.0
    version_2: bool | None = None  # default: whether the file has unanswerable questions


class ClassificationEvaluation(Section):
    kind: Literal["classification"] = "classification"
    name: Name = "classification"
    data: Task
    batch_size: Positive = 32
    every: Positive | None = None


class LossEvaluation(Section):
    """The objective's loss and accuracy on held-out data, teacher-forced."""

    kind: Literal["loss"] = "loss"
    name: Name = "loss"
    data: Task
    batch_size: Positive = 32
    batches: Positive | None = None  # default: all
    every: Positive | None = None


class TextToTextEvaluation(Section):
    """Generated answers, scored by the task's metrics (t5/evaluation/metrics.py)."""

    kind: Literal["text_to_text"] = "text_to_text"
    name: Name = "text_to_text"
    data: Task
    batch_size: Positive = 32
    every: Positive | None = None
    metrics: list[Metric] | None = None  # default: those of the prompt
    decoding: Decoding = Decoding()


EVALUATIONS: dict[str, type[Section]] = {
    "mlm": MlmEvaluation,
    "squad": SquadEvaluation,
    "classification": ClassificationEvaluation,
    "loss": LossEvaluation,
    "text_to_text": TextToTextEvaluation,
}
Evaluation = Annotated[Any, KindOf("kind", "mlm", EVALUATIONS)]
