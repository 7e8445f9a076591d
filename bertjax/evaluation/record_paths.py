"""Where the evaluations of a restored checkpoint write their scores: the run's own record, or separate files."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bertjax.evaluation import records
from bertjax.evaluation.evaluators.heldout import provenance
from bertjax.evaluation.records import EvaluationRecord
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.training.checkpoint.locate import stage_folder
from bertjax.training.run_context import RunContext


def open_records(
    restored: RestoredCheckpoint, evaluations: Sequence[Any], output: Path | None
) -> dict[str, EvaluationRecord]:
    """The record of each evaluation of a checkpoint; checks that its folder can be written."""
    assert restored.saved_config is not None
    ctx, run = restored.ctx, restored.saved_config.run_dir
    stage = ctx.config.stages[restored.stage].name
    folder = run / "evaluations" / stage_folder(Path(), restored.stage, stage).name
    places = records.output_paths(output, [e.name for e in evaluations]) if output else {}
    made = {}
    for config in evaluations:
        about = provenance(ctx, restored.program, config)
        last, before = records.last_recorded(run, folder, stage, config.name)
        differs = records.diff_from_run(restored.saved_config, ctx.config, restored.stage, config, before, about)
        if restored.step != last and not (last is None and restored.is_last):
            differs = {"step": {"here": restored.step, "run": last}} | differs
        own = (folder / records.OTHER_DIR, records.variant_stem(config.name, restored.step, differs))
        at, stem = places.get(config.name) or (own if differs else (folder, config.name))
        made[config.name] = EvaluationRecord(at, config.name, stem, about, differs)
    for record in made.values():
        records.check_writable(record.folder)
    return made


def with_writable_cache(ctx: RunContext, output: Path | None) -> RunContext:
    """The context with prepared data next to `output` if the run's folder for them is read-only."""
    if output is None or ctx.config.run.prepared_dir or records.is_writable(ctx.prepared_dir):
        return ctx
    folder = (output.parent if output.suffix == ".json" else output) / "prepared"
    print(f"{ctx.prepared_dir}: cannot be written; prepared data are stored in {folder}", file=sys.stderr, flush=True)
    run = ctx.config.run.model_copy(update={"prepared_dir": str(folder)})
    return replace(ctx, config=ctx.config.model_copy(update={"run": run}))
