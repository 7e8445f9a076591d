"""The evaluators of a stage, for training and for `bertjax evaluate`.

An evaluator is a function of parameters. It writes <name>.json (scores and samples) and, for questions, the official
predictions, n-best and null-odds files to evaluations/<stage>/ of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.evaluation.evaluators import registry
from bertjax.evaluation.evaluators.heldout import provenance
from bertjax.evaluation.evaluators.text_to_text import with_suite_averages
from bertjax.evaluation.records import EvaluationRecord
from bertjax.training.checkpoint.locate import stage_folder
from bertjax.training.loop import Evaluator
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext


def build_evaluators(
    ctx: RunContext,
    index: int,
    program: TrainProgram,
    labels: list[str] | None = None,
    kept: Mapping[str, EvaluationRecord] | None = None,
) -> list[Evaluator]:
    """The evaluations of stage `index`, with their data read and checked.

    labels: names of the classes by id of the training data. kept: the record of each evaluation to build (default: all
    of them, each with the run's own record).
    """
    made = []
    for config in ctx.config.stages[index].evaluate:
        if kept is None or config.name in kept:
            record = training_record(ctx, index, program, config) if kept is None else kept[config.name]
            run = registry.record_of(config).build(ctx, program, config, record, labels)
            made.append(Evaluator(config, run))
    return with_suite_averages(made)


def training_record(ctx: RunContext, index: int, program: TrainProgram, config: Any) -> EvaluationRecord:
    """The run's record of an evaluation, as training writes it."""
    folder = ctx.config.run_dir / "evaluations" / stage_folder(Path(), index, ctx.config.stages[index].name).name
    return EvaluationRecord(folder, config.name, config.name, provenance(ctx, program, config))
