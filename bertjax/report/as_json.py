"""The content of a report as JSON, for `bertjax report --json`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertjax.config.loading.error_messages import mask_secrets
from bertjax.report.classes import class_scores
from bertjax.report.comparison import ABSENT, ComparedRun, differences, read_runs, scores
from bertjax.report.page import save_text
from bertjax.report.record import RunRecord, read_run


def report_json(runs: Sequence[Path]) -> dict[str, Any]:
    """The record of one run, or the comparison of several. Raises UserError."""
    return record_json(read_run(runs[0])) if len(runs) == 1 else comparison_json(read_runs(runs))


def write_json(runs: Sequence[Path], output: Path) -> Path:
    """Write `report_json` to a file. Raises UserError and StorageError."""
    return save_text(output, json.dumps(report_json(runs), ensure_ascii=False, indent=1) + "\n")


def record_json(record: RunRecord) -> dict[str, Any]:
    """The record of a run, with the scores by class of its classifications; text under secret keys is hidden."""
    found = asdict(record) | {"environment": mask_secrets(record.environment)}
    for stage in found["stages"]:
        for evaluated in stage["evaluations"]:
            try:
                evaluated["by_class"] = class_scores(evaluated["details"]["classes"])
            except (KeyError, ValueError, TypeError):
                continue
    return _storable(found)


def comparison_json(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """The records of runs, the options in which they differ (runs without an option are left out) and their scores."""

    def by_run(found: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
        labels = [run.label for run in runs]
        return {
            key: {label: value for label, value in zip(labels, values, strict=True) if value is not ABSENT}
            for key, values in found.items()
        }

    return _storable({
        "runs": {run.label: {"path": str(run.path), **record_json(run.record)} for run in runs},
        "differences": by_run(differences([run.learned for run in runs])),
        "other_differences": by_run(differences([run.others for run in runs])),
        "scores": [
            {"stage": row.stage, "evaluation": row.evaluation, "metric": row.metric, "same_data": row.same_data,
             "values": dict(zip([run.label for run in runs], row.values, strict=True))}
            for row in scores(runs)
        ],
    })  # fmt: skip


def _storable(value: Any) -> Any:
    """JSON has no NaN or infinity (null here), and UTF-8 no lone surrogates (? here)."""
    if isinstance(value, Mapping):
        return {_storable(str(key)): _storable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(inner) for inner in value]
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value
