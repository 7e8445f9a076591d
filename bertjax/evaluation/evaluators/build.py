"""The evaluators of a stage: functions of parameters that write scores to evaluations/<stage>/ of the run."""

from collections.abc import Mapping
from typing import Any

from bertjax.evaluation.evaluators import registry
from bertjax.evaluation.evaluators.heldout import provenance, records_folder
from bertjax.evaluation.evaluators.registry import CountedRun
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
    fitted: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Evaluator]:
    """The evaluations of stage `index`, with their data read and checked.

    labels: names of the classes by id of the training data. kept: the record of each evaluation to build (default: the
    run's own record of each). fitted: what a checkpoint keeps of evaluations; those that another one of the stage names
    are built too where it keeps nothing of them.
    """
    made: dict[str, Evaluator] = {}
    folder = records_folder(ctx.config.run_dir, ctx.config, index)
    evaluations = {config.name: config for config in ctx.config.stages[index].evaluate}

    def build(name: str) -> Evaluator:
        config, kind = evaluations[name], registry.record_of(evaluations[name])
        record = (kept or {}).get(name) or EvaluationRecord(folder, name, name, provenance(ctx, program, config))
        with reporter.task(f"evaluation '{name}': reading its data", finish=False):
            run = kind.build(ctx, program, config, record, labels)
        if isinstance(run, CountedRun) and run.use and (source := getattr(config, "threshold_from", None)):
            run.use(fit_of(source))
        return Evaluator(config, run, kind.cost(config, run), run.fit if isinstance(run, CountedRun) else None)

    def fit_of(name: str) -> registry.Fit:
        if found := (fitted or {}).get(name):
            return lambda params, step: found
        if name not in made:
            made[name] = build(name)
        fit = made[name].fit
        assert fit is not None, "validate.check_kinds has checked it"
        return fit

    for name in evaluations:
        if (kept is None or name in kept) and name not in made:
            made[name] = build(name)
    return with_suite_averages([made[name] for name in evaluations if name in made and (kept is None or name in kept)])
