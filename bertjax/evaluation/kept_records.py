"""Where the evaluations of a restored checkpoint keep their scores: with the run's own record, or apart from it."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bertjax.evaluation import records
from bertjax.evaluation.heldout import made_from
from bertjax.evaluation.records import Record
from bertjax.evaluation.restore import Restored
from bertjax.training.runs import stage_folder
from bertjax.training.setup import Job


def records_of(restored: Restored, evaluations: Sequence[Any], output: Path | None) -> dict[str, Record]:
    """Where each evaluation of a checkpoint keeps its files; that it can write there is found out at once."""
    assert restored.stored is not None
    job, run = restored.job, restored.stored.run_dir
    stage = job.config.stages[restored.stage].name
    folder = run / "evaluations" / stage_folder(Path(), restored.stage, stage).name
    places = records.placed_at(output, [e.name for e in evaluations]) if output else {}
    made = {}
    for config in evaluations:
        about = made_from(job, restored.program, config)
        last, before = records.recorded(run, folder, stage, config.name)
        differs = records.differences(restored.stored, job.config, restored.stage, config, before, about)
        if restored.step != last and not (last is None and restored.is_last):
            differs = {"step": {"here": restored.step, "run": last}} | differs
        own = (folder / records.OTHER, records.other_stem(config.name, restored.step, differs))
        at, stem = places.get(config.name) or (own if differs else (folder, config.name))
        made[config.name] = Record(at, config.name, stem, about, differs)
    for record in made.values():
        records.check_writable(record.folder)
    return made


def with_cache(job: Job, output: Path | None) -> Job:
    """The same with prepared data beside `output`, where the run's folder for them can only be read."""
    if output is None or job.config.run.prepared or records.is_writable(job.cache):
        return job
    folder = (output.parent if output.suffix == ".json" else output) / "prepared"
    print(f"{job.cache}: cannot be written; prepared data are kept in {folder}", file=sys.stderr, flush=True)
    run = job.config.run.model_copy(update={"prepared": str(folder)})
    return replace(job, config=job.config.model_copy(update={"run": run}))
