"""`bertjax evaluate`: run the evaluations of a stage on a checkpoint."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bertjax.config.schema.evaluation import SquadEvaluation
from bertjax.errors import BertjaxError, StorageError, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.evaluators.heldout import open_records, with_writable_cache
from bertjax.evaluation.fitted import describe_fits, keep_fits, use_kept_thresholds
from bertjax.evaluation.records import EvaluationRecord, check_writable, describe_fit
from bertjax.evaluation.restore import RestoredCheckpoint, restore
from bertjax.progress import reporter
from bertjax.storage import atomic, remote, remote_folder
from bertjax.training import inputs, validate
from bertjax.training.stage.evaluations import Evaluator

OFFICIAL_FILES = {"predictions": "predictions.json", "nbest": "nbest_predictions.json", "null_odds": "null_odds.json"}


def evaluate_command(
    path: str | Path,
    step: int | None,
    stage: str | None,
    name: str | None,
    overrides: Sequence[str],
    best: str | None = None,
    output: Path | None = None,
    base_model: str | Path | None = None,
    predictions_dir: Path | None = None,
    keep_threshold: bool = False,
) -> dict[str, Any]:
    """Run the evaluations of a checkpoint's stage (or only `name`) and save their scores.

    predictions_dir: a folder for the answers of a squad evaluation in the official files. keep_threshold: keep what
    evaluations fit with the checkpoint also where they differ from the run's own, and score with their own settings
    instead of a kept threshold.

    Results that differ from the run's own evaluation never replace the run's record (see `records`). -> {"checkpoint",
    "stage", "step", "scores": {name: scores}, "kept": {name: file}, "differs": {name: differences}}.
    """
    restored = restore(path, stage=stage, step=step, best=best, overrides=overrides, base_model=base_model)
    validate.check_threshold_sources(restored.ctx.config.stages[restored.stage], restored.fitted)
    if not keep_threshold:
        restored = use_kept_thresholds(restored, name)
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
    chosen = [e for e in config.evaluate if name in (None, e.name)]
    if predictions_dir is not None:
        _check_predictions_dir(predictions_dir, chosen, str(path))
    if keep_threshold:
        _check_keeping(restored, chosen, str(path))
    kept = open_records(restored, chosen, output)
    ctx = with_writable_cache(restored.ctx, output)
    evaluators = build_evaluators(ctx, restored.stage, restored.program, restored.labels, kept, restored.fitted)
    scores, started = {}, time.time()
    for evaluator in evaluators:
        with reporter.task(f"evaluating '{evaluator.config.name}'"):
            scores[evaluator.config.name] = evaluator.run(restored.params, restored.step)
        if record := kept.get(evaluator.config.name):
            reporter.say(record.summary(restored.step))
            _report_fit(restored, evaluator, record, keep_threshold)
            if predictions_dir is not None and isinstance(evaluator.config, SquadEvaluation):
                _write_official_files(record, predictions_dir)
    if remote.is_remote(path) and restored.in_run and output is None:
        _upload_records(str(path), kept.values(), started)
    dtype = str(restored.program.compute.dtype)
    found = {"checkpoint": str(path), "stage": config.name, "step": restored.step, "compute_dtype": dtype}
    found |= {"scores": scores, "kept": {name: str(record.path) for name, record in kept.items()}}
    return found | {"differs": {name: dict(record.differs) for name, record in kept.items() if record.differs}}


def _upload_records(url: str, kept: Iterable[EvaluationRecord], started: float) -> None:
    """Upload what evaluations have written into the local copy of a run; without the rights it stays there."""
    folders = {record.folder for record in kept}
    run = next((above for folder in folders for above in folder.parents if (above / "config.yaml").is_file()), None)
    if run is None or run != remote_folder.copy_of(url):
        return
    written = [path for folder in folders for path in folder.iterdir()
               if path.is_file() and path.stat().st_mtime >= started]  # fmt: skip
    try:
        names = remote_folder.upload_results(url, written)
        reporter.say(f"{url}: uploaded {', '.join(sorted(names))}")
    except BertjaxError as error:
        reporter.say(f"note: not uploaded: {error}")


def _report_fit(restored: RestoredCheckpoint, evaluator: Evaluator, record: EvaluationRecord, keep: bool) -> None:
    """Say which threshold was used and where it is from; keep what was fitted by the run's own evaluation."""
    name = evaluator.config.name
    for line in describe_fit(json.loads(record.path.read_bytes()) if record.path.is_file() else {}):
        reporter.say(f"{name}: {line}")
    own = restored.in_run and restored.folder is not None and not record.differs
    if evaluator.fit is None or not (keep or own):
        return
    fit = evaluator.fit(restored.params, restored.step)
    if not fit:
        if keep:
            reporter.say(f"{name}: nothing to keep: no unanswerable questions, and too few for a calibration")
    elif keep:
        reporter.say(f"{name}: {describe_fits({name: fit})} kept in {keep_fits(restored, {name: fit})}")
    elif restored.fitted.get(name, {}).get("data") != fit["data"]:  # of a run that an earlier version has trained
        try:
            reporter.say(f"{name}: {describe_fits({name: fit})} kept in {keep_fits(restored, {name: fit})}")
        except StorageError as error:  # scores of a read-only run may be written elsewhere
            reporter.say(f"note: {error}")


def _check_keeping(restored: RestoredCheckpoint, chosen: Sequence[Any], path: str) -> None:
    if not any(isinstance(one, SquadEvaluation) and one.threshold_from is None for one in chosen):
        raise UserError(
            f"{path}: none of its evaluations here is of kind squad with a threshold of its own, so --keep-threshold "
            "has nothing to keep"
        )
    if restored.folder is None:
        keep_fits(restored, {})  # raises
    elif not os.access(restored.folder, os.W_OK):
        raise UserError(f"{restored.folder}: cannot be written, as --keep-threshold needs; copy the checkpoint first")


def _check_predictions_dir(folder: Path, chosen: Sequence[Any], path: str) -> None:
    squads = [one.name for one in chosen if isinstance(one, SquadEvaluation)]
    if not squads:
        raise UserError(f"{path}: none of its evaluations here is of kind squad, so --predictions-dir has no answers")
    if len(squads) > 1:
        raise UserError(
            f"{folder}: --predictions-dir is for one evaluation, but there are {', '.join(squads)}; give --name"
        )
    check_writable(folder, "--predictions-dir")


def _write_official_files(record: EvaluationRecord, folder: Path) -> None:
    """Write the answers of an evaluation under the names of run_squad.py, indented as there."""
    written = []
    for suffix, name in OFFICIAL_FILES.items():
        source = record.file_path(f"{record.name}.{suffix}")
        stale = suffix == "null_odds" and "null_threshold" not in json.loads(record.path.read_bytes())
        if stale or not source.is_file():
            continue
        try:
            atomic.write_json_atomic(folder / name, json.loads(source.read_bytes()), indent=4)
        except OSError as error:
            raise StorageError(f"{folder / name}: cannot be written: {error.strerror}") from error
        written.append(name)
    reporter.say(f"{folder}: {', '.join(written)}")
    for name in OFFICIAL_FILES.values():
        if name not in written and (folder / name).is_file():
            reporter.say(f"note: {folder / name} is there already and is of another evaluation")
