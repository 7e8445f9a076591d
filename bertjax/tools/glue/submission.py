"""Predictions for GLUE's test sets and its diagnostic set, and the files that gluebenchmark.com takes.

A file has the header `index<tab>prediction` and a line for each example, as in the server's sample_submission: the
names of labels for MNLI, AX, QNLI and RTE, their ids for CoLA, SST-2, MRPC, QQP and WNLI, and for STS-B a number from 0
to 5 with three decimals (as jiant writes it: jiant/evaluate.py, _write_glue_preds). The archive holds the eleven files
without a folder.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.errors import StorageError
from bertjax.evaluation.metrics.matthews import matthews_correlation
from bertjax.evaluation.predictors.base import restore_for_prediction
from bertjax.evaluation.predictors.labels import Classifier
from bertjax.storage.atomic import replace_file, write_json_atomic
from bertjax.tools.glue.data import read_copy
from bertjax.tools.glue.results import Result, TaskSummary
from bertjax.tools.glue.tasks import AX, FILES, GlueTask
from bertjax.tools.prediction_files import chunks

ARCHIVE = "submission.zip"
AX_SCORES = "ax.json"  # in a run's folder
_MADE_BY = "made_by.json"  # the runs and steps of the predictions


def predict(classifier: Classifier, task: GlueTask, records: Sequence[Mapping[str, Any]]) -> list[str | float]:
    """The name of the class of each record, or the number of a regression."""
    found: list[str | float] = []
    for chunk in chunks(records):  # type: ignore[arg-type]
        first, *second = ([record[name] for record in chunk] for name in task.texts)
        predicted = classifier(first, second[0] if second else None, 1)
        found += [one["value"] if "value" in one else str(one["label"]) for one in predicted]
    return found


def submitted(task: GlueTask, value: str | float) -> str:
    """A prediction as the server takes it."""
    if isinstance(value, str):
        return value if task.says_words else str(task.labels.index(value))
    return f"{min(max(value, 0.0), 5.0):.3f}"


def open_classifier(result: Result) -> Classifier:
    return Classifier(restore_for_prediction(result.run.config.run_dir, step=result.step))


def score_ax(result: Result, data: Path) -> dict[str, float] | None:
    """Matthews correlation and accuracy, in percent, of an MNLI run on the diagnostic set; None if it has no labels.

    They are kept in the run's folder.
    """
    kept = result.run.config.run_dir / AX_SCORES
    before = _read(kept)
    if before.get("step") == result.step:
        return dict(before["scores"])
    path = data / f"{AX}.jsonl"
    records = [record for record in (read_copy(path) if path.is_file() else ()) if "label" in record]
    if not records:
        return None
    classifier, names = open_classifier(result), result.run.task.labels
    guesses = np.array([names.index(str(one)) for one in predict(classifier, result.run.task, records)])
    classifier.print_notes()
    labels = np.array([names.index(record["label"]) for record in records])
    scores = {
        "matthews": 100 * matthews_correlation(labels, guesses),
        "accuracy": 100 * float((labels == guesses).mean()),
    }
    write_json_atomic(kept, {"step": result.step, "examples": len(records), "scores": scores})
    return scores


def write_submission(summaries: Sequence[TaskSummary], rule: str, data: Path, folder: Path) -> dict[str, Any]:
    """Predict the tests of each task with its chosen run, unless the files are there -> what the folder has.

    -> {folder, from: median or best, runs: {file: run}, missing: [files that the server wants], archive}. Files of
    tasks that are not among `summaries` remain. Without all eleven there is no archive, since the server refuses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made_by = _read(folder / _MADE_BY)
    for summary in summaries:
        if not summary.scored:
            continue
        chosen, task = summary.chosen(rule), summary.task
        maker = {"run": str(chosen.run.config.run_dir), "step": chosen.step}
        copies = {name: data / task.name / f"{split}.jsonl" for name, split in task.tests.items()}
        todo = {
            name: copy
            for name, copy in copies.items()
            if copy.is_file() and not (made_by.get(name) == maker and (folder / f"{name}.tsv").is_file())
        }
        if not todo:
            continue
        classifier = open_classifier(chosen)
        for name, copy in todo.items():
            records = read_copy(copy)
            _write_file(folder / f"{name}.tsv", task, records, predict(classifier, task, records))
            made_by[name] = maker
            write_json_atomic(folder / _MADE_BY, made_by)
        classifier.print_notes()
    runs = {name: made_by[name]["run"] for name in FILES if name in made_by and (folder / f"{name}.tsv").is_file()}
    missing = [f"{name}.tsv" for name in FILES if name not in runs]
    archive = None if missing else str(_write_archive(folder))
    return {"folder": str(folder), "from": rule, "runs": runs, "missing": missing, "archive": archive}


def _write_file(path: Path, task: GlueTask, records: Sequence[Mapping[str, Any]], values: Sequence[Any]) -> None:
    lines = [f"{record['index']}\t{submitted(task, value)}\n" for record, value in zip(records, values, strict=True)]
    try:
        with replace_file(path) as partial:
            partial.write_text("index\tprediction\n" + "".join(lines), encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def _write_archive(folder: Path) -> Path:
    with replace_file(folder / ARCHIVE) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            archive.write(folder / f"{name}.tsv", f"{name}.tsv")
    return folder / ARCHIVE


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
