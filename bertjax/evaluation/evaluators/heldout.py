"""Held-out data of an evaluation, and where and how its scores are written."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.config.schema.run import Config
from bertjax.data.jobs import text_counts
from bertjax.data.pipeline.loader import Batches, is_decoder_only, open_task
from bertjax.data.sources.class_names import ClassSpec
from bertjax.evaluation import records
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.evaluation.records import EvaluationRecord
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter
from bertjax.storage import atomic
from bertjax.training.checkpoint.locate import stage_folder
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext

NUM_SAMPLES = 12  # samples saved by an evaluation


def open_heldout(ctx: RunContext, program: TrainProgram, config: Any, classes: ClassSpec | None = None) -> Batches:
    """Opens the data of an evaluation; reports truncated texts and unknown characters on stderr."""
    batches = open_task(
        config.data,
        config.name,
        ctx.tokenizer,
        batch_size=round_up_batch(config.batch_size, program),
        seed=ctx.config.run.seed,
        base=ctx.base,
        cache=ctx.prepared_dir,
        classes=classes,
        decoder_only=is_decoder_only(ctx.config),
        fingerprint=ctx.fingerprint,
    )
    for store in batches.stores.values():
        report_truncation(f"evaluation '{config.name}'", store.meta.get(text_counts.META_KEY), config.data.preprocess)
    return batches


def report_truncation(name: str, counts: text_counts.TextCounts | None, options: Any) -> None:
    """Reports truncated texts and unknown characters on stderr, on one process."""
    for line in text_counts.report_lines(name, counts, options) if primary.is_primary() else ():
        reporter.say(line)


def save_json(record: EvaluationRecord, name: str, content: Any) -> None:
    """Writes the file `name` of an evaluation: its own name, possibly with a suffix such as .predictions."""
    if primary.is_primary():
        path = record.file_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = record.with_provenance(content) if name == record.name else content
        atomic.write_json_atomic(path, content)


def provenance(ctx: RunContext, program: TrainProgram, config: Any) -> dict[str, Any]:
    """The provenance of scores: section, content hash of the data, platform and dtype."""
    found = "".join(map(ctx.fingerprint, config.data.source))
    compute = program.compute
    return {
        "evaluation": config.model_dump(mode="json"),
        "data": hashlib.sha256(found.encode()).hexdigest()[:16],
        "computed": f"{compute.platform} {np.dtype(compute.dtype).name}",
    }


def records_folder(run_dir: Path, config: Config, stage: int) -> Path:
    """Folder of the run's own records of a stage's evaluations."""
    return run_dir / "evaluations" / stage_folder(Path(), stage, config.stages[stage].name).name


def open_records(
    restored: RestoredCheckpoint, evaluations: Sequence[Any], output: Path | None
) -> dict[str, EvaluationRecord]:
    """The record of each evaluation of a restored checkpoint; checks that its folder can be written."""
    assert restored.saved_config is not None
    ctx, run = restored.ctx, restored.saved_config.run_dir
    folder = records_folder(run, ctx.config, restored.stage)
    places = records.output_paths(output, [e.name for e in evaluations]) if output else {}
    made = {}
    for config in evaluations:
        about = provenance(ctx, restored.program, config)
        last, before = records.last_recorded(run, folder, ctx.config.stages[restored.stage].name, config.name)
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
    reporter.say(f"{ctx.prepared_dir}: cannot be written; prepared data are stored in {folder}")
    run = ctx.config.run.model_copy(update={"prepared_dir": str(folder)})
    return replace(ctx, config=ctx.config.model_copy(update={"run": run}))
