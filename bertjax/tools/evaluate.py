"""`bertjax evaluate`: run the evaluations of a stage on a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.evaluators.heldout import open_records, with_writable_cache
from bertjax.evaluation.restore import restore
from bertjax.progress import reporter
from bertjax.training import inputs, validate


def evaluate_command(
    path: str | Path,
    step: int | None,
    stage: str | None,
    name: str | None,
    overrides: Sequence[str],
    best: str | None = None,
    output: Path | None = None,
    base_model: str | Path | None = None,
) -> dict[str, Any]:
    """Run the evaluations of a checkpoint's stage (or only `name`) and save their scores.

    Results that differ from the run's own evaluation never replace the run's record (see `records`). -> {"checkpoint",
    "stage", "step", "scores": {name: scores}, "kept": {name: file}, "differs": {name: differences}}.
    """
    restored = restore(path, stage=stage, step=step, best=best, overrides=overrides, base_model=base_model)
    config = restored.ctx.config.stages[restored.stage]
    known = [e.name for e in config.evaluate]
    if not known:
        asked = f"no evaluation '{name}', nor any other" if name else "no evaluations"
        raise UserError(
            f"{path}: stage '{config.name}' has {asked}; name another --stage, "
            f"or give it some: stages.{config.name}.evaluate='[{{kind: ..., data: ...}}]'"
        )
    if name not in (None, *known):
        there = ", ".join(known)
        raise UserError(f"{path}: stage '{config.name}' has no evaluation '{name}'; its evaluations: {there}")
    validate.check_scores(config, restored.program.heads, str(path), name)
    inputs.check_evaluations(config, restored.ctx.base, name)
    if not restored.in_run and output is None:
        home = restored.ctx.config.run_dir
        reporter.say(f"note: {path} is not in a run folder; its evaluations are kept in {home}")
    kept = open_records(restored, [e for e in config.evaluate if name in (None, e.name)], output)
    ctx = with_writable_cache(restored.ctx, output)
    evaluators = build_evaluators(ctx, restored.stage, restored.program, restored.labels, kept)
    scores = {}
    for evaluator in evaluators:
        with reporter.task(f"evaluating '{evaluator.config.name}'"):
            scores[evaluator.config.name] = evaluator.run(restored.params, restored.step)
        if record := kept.get(evaluator.config.name):
            reporter.say(record.summary(restored.step))
    dtype = str(restored.program.compute.dtype)
    found = {"checkpoint": str(path), "stage": config.name, "step": restored.step, "compute_dtype": dtype}
    found |= {"scores": scores, "kept": {name: str(record.path) for name, record in kept.items()}}
    return found | {"differs": {name: dict(record.differs) for name, record in kept.items() if record.differs}}
