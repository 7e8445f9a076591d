"""Turn a stage that classifies texts into one that generates the name of the label (arXiv 1910.10683 section 2.4)."""

from typing import Any

from bertjax.config.schema.data import Classify, Task, TextToText
from bertjax.config.schema.evaluation import TextToTextEvaluation
from bertjax.config.schema.run import Config, Stage
from bertjax.config.schema.training import TextToTextObjective
from bertjax.errors import UserError

TARGET_LENGTH = 16  # tokens of the longest label, end included


def as_text_to_text(config: Config, stage: Stage) -> Stage:
    """The stage with inputs `NAME: text` and the names of the labels as targets; NAME is that of the stage.

    Raises UserError for anything but a single task of the kind `classify` with one label per text.
    """
    where = f"stages.{stage.name}"
    tasks = list(config.stage_tasks(stage).values())
    options: Any = tasks[0].preprocess
    if len(tasks) != 1 or config.stage_mixture(stage) is not None or not isinstance(options, Classify):
        raise UserError(f"{where}.data: only one task of kind classify becomes text; set text_to_text: false")
    several = options.label_delimiter is not None or options.label_columns is not None
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
    options: Classify = task.preprocess
    second = f" | {{{options.text_b}}}" if options.text_b else ""
    made = TextToText(
        sequence_length=options.sequence_length,
        target_length=TARGET_LENGTH,
        inputs=f"{name}: {{{options.text_a}}}{second}",
        targets=f"{{{options.label}}}",
        labels=options.labels,
    )
    return task.model_copy(update={"preprocess": made})


def _evaluation(evaluation: Any, name: str) -> Any:
    if evaluation.kind != "classification":
        raise UserError(f"stages.{name}.evaluate.{evaluation.name}: kind {evaluation.kind} does not score text")
    shared = {key: getattr(evaluation, key) for key in ("name", "batch_size", "every")}
    return TextToTextEvaluation(**shared, data=_task(evaluation.data, name), metrics=["accuracy"])
