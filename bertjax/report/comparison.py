"""What several runs have in common and where they differ: options, scores and curves, stages aligned by name."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bertjax.config.loading.error_messages import mask_secrets
from bertjax.config.loading.load import identity_fields, load_saved
from bertjax.errors import UserError
from bertjax.report.record import RunRecord, StageRecord, find_key, is_finite, read_run
from bertjax.storage.nested import flatten
from bertjax.training.checkpoint.layout import LOWEST

COUNTS = ("total", "examples", "tasks")  # entries of scores that are no scores
ABSENT = object()  # an option that a run does not have
PRESENT = "(present)"  # a part that only some runs have
_OWN = ("run.name", "run.root")  # options that differ in any two runs


@dataclass(frozen=True)
class ComparedRun:
    """`learned`: the options that decide what is learned; `others`: all others. Dotted keys, stages by name."""

    label: str
    path: Path
    record: RunRecord
    learned: dict[str, Any]
    others: dict[str, Any]


@dataclass(frozen=True)
class ScoreRow:
    """A score of several runs; None where a run does not have it. `same_data`: None where that is not recorded."""

    stage: str
    evaluation: str
    metric: str
    values: list[float | None]
    same_data: bool | None

    @property
    def best(self) -> float | None:
        """The best of different values of two or more runs."""
        found = [value for value in self.values if value is not None]
        if len(found) < 2 or len(set(found)) == 1 or self.metric in COUNTS:
            return None
        return min(found) if self.metric.endswith(LOWEST) else max(found)


def read_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """Raises UserError for a folder that is not a run or is named twice."""
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise UserError(f"{paths[number]}: is named twice; name different runs")
    records = [read_run(path) for path in paths]
    labels = run_labels(resolved)
    return [
        ComparedRun(label, path, record, *_options(path, record))
        for label, path, record in zip(labels, paths, records, strict=True)
    ]


def run_labels(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many folders above them as it takes to tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]


def _options(path: Path, record: RunRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options that decide what is learned, others); both empty without a readable configuration."""
    try:
        config = load_saved(path / "config.yaml")
    except (UserError, OSError):
        return {}, {}
    learned = _flat(identity_fields(config))
    everything = _flat(mask_secrets(config.model_dump(mode="json")))
    return learned, {k: v for k, v in everything.items() if k not in learned and k != "run.seed" and k not in _OWN}


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """Flatten, with stages and evaluations by name instead of number."""
    return flatten(_by_name(data))


def _by_name(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _by_name(value) for key, value in data.items()}
    if isinstance(data, list):
        names = [item.get("name") if isinstance(item, Mapping) else None for item in data]
        if data and all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
            return {
                name: _by_name({k: v for k, v in x.items() if k != "name"}) for name, x in zip(names, data, strict=True)
            }
        return [_by_name(item) for item in data]
    return data


def differences(options: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{key: value of each run, or ABSENT} for the keys in which the runs differ, in order of their appearance.

    A stage, task or mixture that only some of the runs have is one entry, with PRESENT for its options.
    """
    named = [{_named_part(key) for key in one} for one in options]
    partial = {part for parts in named for part in parts if part and any(part not in other for other in named)}
    found: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for one in options for key in one):
        if (part := _named_part(key)) in partial:
            found[str(part)] = [PRESENT if part in parts else ABSENT for parts in named]
        else:
            found[key] = [one.get(key, ABSENT) for one in options]
    text = lambda value: "" if value is ABSENT else json.dumps(value, sort_keys=True)  # noqa: E731
    return {key: values for key, values in found.items() if len({text(value) for value in values}) > 1}


def _named_part(key: str) -> str | None:
    """`stages.qa` of stages.qa.steps."""
    section, _, rest = key.partition(".")
    return f"{section}.{rest.split('.')[0]}" if section in ("stages", "tasks", "mixtures") and rest else None


def stage_names(runs: Sequence[ComparedRun]) -> dict[str, list[StageRecord | None]]:
    """{name of a stage: the stage in each run, or None}, in order of their appearance."""
    by_name = [{stage.name: stage for stage in run.record.stages} for run in runs]
    return {name: [one.get(name) for one in by_name] for name in dict.fromkeys(n for one in by_name for n in one)}


def scores(runs: Sequence[ComparedRun]) -> list[ScoreRow]:
    """Every score that two or more runs have, by stage, evaluation and metric."""
    rows = []
    for stage, of_runs in stage_names(runs).items():
        found = [{e.name: e for e in one.evaluations} if one else {} for one in of_runs]
        for name in dict.fromkeys(name for one in found for name in one):
            results = [one.get(name) for one in found]
            metrics = dict.fromkeys(k for r in results if r for k, v in r.scores.items() if is_finite(v))
            if "exact" in metrics:
                metrics.pop("exact_match", None)  # equal ones
            data = [find_key(r.details.get("made_from"), "data") for r in results if r]
            data = [one if isinstance(one, str) else None for one in data]
            same = None if None in data or len(data) < 2 else len(set(data)) == 1
            for metric in metrics:
                values = [float(r.scores[metric]) if r and is_finite(r.scores.get(metric)) else None for r in results]
                counted = metric in COUNTS and len(set(values)) == 1  # the same questions in all runs
                if sum(value is not None for value in values) > 1 and not counted:
                    rows.append(ScoreRow(stage, name, metric, values, same))
    return rows


# ---- positions on the x axis ----------------------------------------------------------------------------------------

X_UNITS = ("step", "tokens", "seconds")


def positions(stage: StageRecord, began: float, unit: str) -> Callable[[Sequence[float]], list[float]] | None:
    """steps of a stage -> their tokens or seconds since its start, interpolated between log lines; None if not logged.

    Tokens are the logged rate times the time of a step; the median fills lines without them, such as compiling ones.
    """
    if unit == "step":
        return lambda steps: [float(step) for step in steps]
    steps, values = [0.0], [0.0]
    if unit == "seconds":
        for line in stage.train:
            if is_finite(line.get("elapsed")):
                steps.append(float(line["step"]))
                values.append(max(float(line["elapsed"]) - began, 0.0))
    else:
        rates = [_tokens_per_step(line) for line in stage.train]
        known = [rate for rate in rates if rate is not None]
        if known:
            places = [0.0, *(float(line["step"]) for line in stage.train)]
            taken = [(b - a) * (known_rate if known_rate is not None else median(known))
                     for (a, b), known_rate in zip(pairwise(places), rates, strict=True)]  # fmt: skip
            steps, values = places, [0.0, *np.cumsum(taken).tolist()]
    if len(steps) < 2:
        return None
    return lambda wanted: np.interp(np.asarray(wanted, float), steps, values).tolist()


def _tokens_per_step(line: Mapping[str, Any]) -> float | None:
    rate, seconds = line.get("tokens_per_second"), line.get("step_seconds")
    tokens = float(rate) * float(seconds) if is_finite(rate) and is_finite(seconds) else -1.0
    return tokens if 0 <= tokens < 1e15 else None


def stage_starts(run: RunRecord) -> dict[str, float]:
    """The `elapsed` seconds at the start of each stage: the last value of the stages before."""
    starts, last = {}, 0.0
    for stage in run.stages:
        starts[stage.name] = last
        last = max([last, *(float(line["elapsed"]) for line in stage.train if is_finite(line.get("elapsed")))])
    return starts
