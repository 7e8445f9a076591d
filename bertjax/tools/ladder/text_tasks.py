"""Turn a stage that classifies texts or answers questions into one that generates text (arXiv 1910.10683, 2.4)."""

from typing import Any

from bertjax.config.schema.data import Classify, SpanQa, Task, TextToText
from bertjax.config.schema.evaluation import TextToTextEvaluation
from bertjax.config.schema.run import Config, Stage
from bertjax.config.schema.training import TextToTextObjective
from bertjax.errors import UserError

LABEL_LENGTH = 16  # tokens of the longest label, end included
ANSWER_LENGTH = 32  # of the longest answer to a question
_EVALUATIONS = {"classification": ["accuracy"], "squad": None}  # that become text, and the metrics of the text


def as_text_to_text(config: Config, stage: Stage) -> Stage:
    """The stage as text. The inputs of a classification are `NAME: text`, with the name of the stage, and its targets
    the names of the labels; questions have T5's prompt for SQuAD.

    Raises UserError for anything but a single task of the kind `classify`, with one label per text, or `span_qa`.
    """
    where = f"stages.{stage.name}"
    tasks = list(config.stage_tasks(stage).values())
    options: Any = tasks[0].preprocess
    if len(tasks) != 1 or config.stage_mixture(stage) is not None or not isinstance(options, Classify | SpanQa):
        raise UserError(
            f"{where}.data: only one task of kind classify or span_qa becomes text; set text_to_text: false"
        )
    several = isinstance(options, Classify) and (options.label_delimiter or options.label_columns)
    if several or getattr(stage.objective, "num_labels", None) == 1:
        raise UserError(f"{where}.objective: only one label per text becomes text; set text_to_text: false")
    return stage.model_copy(
        update={
            "data": _task(tasks[0], stage.name),
            "objective": TextToTextObjective(),
            "evaluate": [_evaluation(one, stage.name) for one in stage.evaluate],
        }
    )


def _task(task: Task, name: str) -> Task:
    options: Any = task.preprocess
    length = options.sequence_length
    if isinstance(options, SpanQa):
        made = TextToText(sequence_length=length, target_length=ANSWER_LENGTH, prompt="squad")
    else:
        second = f" | {{{options.text_b}}}" if options.text_b else ""
        made = TextToText(
            sequence_length=length,
            target_length=LABEL_LENGTH,
            inputs=f"{name}: {{{options.text_a}}}{second}",
            targets=f"{{{options.label}}}",
            labels=options.labels,
        )
    return task.model_copy(update={"preprocess": made})


def _evaluation(evaluation: Any, name: str) -> Any:
    if evaluation.kind not in _EVALUATIONS:
        raise UserError(f"stages.{name}.evaluate.{evaluation.name}: kind {evaluation.kind} does not score text")
    shared = {key: getattr(evaluation, key) for key in ("name", "batch_size", "every")}
    data = _task(evaluation.data, name)
    return TextToTextEvaluation(**shared, data=data, metrics=_EVALUATIONS[evaluation.kind])
