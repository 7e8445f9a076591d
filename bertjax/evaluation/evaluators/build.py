"""The evaluators of a stage, which run inside training, and the command that runs them on a checkpoint.

An evaluator is a function of parameters. It keeps <name>.json (scores and samples) and, for questions, the official
predictions, n-best and null-odds files under evaluations/<stage>/ of the run.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bertjax.evaluation.evaluators.classification import classification_evaluator
from bertjax.evaluation.evaluators.heldout import provenance
from bertjax.evaluation.evaluators.loss import loss_evaluator
from bertjax.evaluation.evaluators.span_qa import squad_evaluator
from bertjax.evaluation.evaluators.text_to_text import text_to_text_evaluator, with_suite_averages
from bertjax.evaluation.records import EvaluationRecord
from bertjax.training.checkpoint.locate import stage_folder
from bertjax.training.loop import Evaluator
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params


def build_evaluators(
    ctx: RunContext,
    index: int,
    program: TrainProgram,
    labels: list[str] | None = None,
    kept: Mapping[str, EvaluationRecord] | None = None,
) -> list[Evaluator]:
    """The evaluations that stage `index` names, with their data read and checked.

    labels: names of the classes in the order of the training data's ids. kept: where the files of each evaluation go
    (default: the run's own record); an evaluation that is not among them is left out.
    """
    builders: dict[str, Callable[..., Callable[[Params, int], dict[str, float]]]]
    builders = {
        "mlm": loss_evaluator,
        "loss": loss_evaluator,
        "squad": squad_evaluator,
        "text_to_text": text_to_text_evaluator,
    }
    builders["classification"] = partial(classification_evaluator, labels=labels)
    made = []
    for config in ctx.config.stages[index].evaluate:
        if kept is None or config.name in kept:
            record = training_record(ctx, index, program, config) if kept is None else kept[config.name]
            made.append(Evaluator(config, builders[config.kind](ctx, program, config, record)))
    return with_suite_averages(made)


def training_record(ctx: RunContext, index: int, program: TrainProgram, config: Any) -> EvaluationRecord:
    """The run's record of an evaluation, as training writes it."""
    folder = ctx.config.run_dir / "evaluations" / stage_folder(Path(), index, ctx.config.stages[index].name).name
    return EvaluationRecord(folder, config.name, config.name, provenance(ctx, program, config))
