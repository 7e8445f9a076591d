"""The evaluators of a stage: functions of parameters that write scores to evaluations/<stage>/ of the run."""

from collections.abc import Mapping

from bertjax.evaluation.evaluators import registry
from bertjax.evaluation.evaluators.heldout import provenance, records_folder
from bertjax.evaluation.evaluators.text_to_text import with_suite_averages
from bertjax.evaluation.records import EvaluationRecord
from bertjax.progress import reporter
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

    labels: names of the classes by id of the training data. kept: the record of each evaluation to build (default: the
    run's own record of each).
    """
    made = []
    folder = records_folder(ctx.config.run_dir, ctx.config, index)
    for config in ctx.config.stages[index].evaluate:
        name = config.name
        if kept is None or name in kept:
            record = kept[name] if kept else EvaluationRecord(folder, name, name, provenance(ctx, program, config))
            kind = registry.record_of(config)
            with reporter.task(f"evaluation '{name}': reading its data", finish=False):
                run = kind.build(ctx, program, config, record, labels)
            made.append(Evaluator(config, run, kind.cost(config, run)))
    return with_suite_averages(made)
