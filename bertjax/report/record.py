"""Read a run folder for the report. Missing or truncated content is omitted, not an error."""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from bertjax.config.loading.step_meta import is_checkpoint_step, list_steps
from bertjax.errors import UserError
from bertjax.evaluation.records import OTHER_DIR, describe_provenance
from bertjax.storage.text import read_bytes
from bertjax.training.monitor import goodput
from bertjax.training.monitor.tracking import read_lines


@dataclass(frozen=True)
class EvaluationResult:
    """The last scores of an evaluation, with their samples and n-best lists.

    `details`: the other entries of its file, such as classes, regression, masked, teacher_forced and made_from.
    """

    name: str
    step: int | None
    scores: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    nbest: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    predictions: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OtherEvaluation:
    """Scores of `bertjax evaluate` that differ from the run's own evaluation, and how."""

    name: str
    description: str  # a sentence
    scores: dict[str, Any]
    step: int | None


@dataclass(frozen=True)
class Episode:
    """A range of steps that trained the same parameters."""

    number: int
    first_step: int
    last_step: int
    trainable_parameters: int | None


@dataclass(frozen=True)
class StageRecord:
    """One stage: log lines by step (each step once), episodes, resumes and scores."""

    name: str
    steps: int | None  # planned, if known
    finished: bool
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    episodes: list[Episode]
    evaluations: list[EvaluationResult]
    others: list[OtherEvaluation] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)  # steps of the checkpoints that the stage resumed from
    stopped_early: int | None = None  # the step at which early stopping ended it


@dataclass(frozen=True)
class RunRecord:
    name: str
    stages: list[StageRecord]
    config_text: str
    environment: dict[str, Any]
    baselines: list[dict[str, Any]]
    started: str | None
    unreadable: int  # lines of metrics.jsonl that could not be read
    goodput: str | None = None  # use of time, over all restarts
    wall_seconds: float | None = None  # from the first start to the last record, pauses included


def read_run(run: Path) -> RunRecord:
    """Read a run folder. Raises UserError for a folder with neither config.yaml nor metrics.jsonl."""
    metrics = run / "metrics.jsonl"
    if run.is_file():
        raise UserError(f"{run}: is a file; name the folder of a run, which 'bertjax train' wrote")
    if not (run / "config.yaml").is_file() and not metrics.is_file():
        if is_checkpoint_step(run) or list_steps(run):
            raise UserError(
                f"{run}: is a checkpoint, and only a run folder has a report; name the run folder, or "
                "score the checkpoint with `bertjax evaluate`"
            )
        raise UserError(
            f"{run}: is not a run folder (no config.yaml, no metrics.jsonl); name a folder that 'bertjax train' wrote"
        )
    lines = [line for line in read_lines(metrics) if _is_step(line["step"])] if metrics.is_file() else []
    written = sum(1 for raw in metrics.read_bytes().splitlines() if raw.strip()) if metrics.is_file() else 0
    config_text = _text(run / "config.yaml")
    environment = _json(run / "environment.json", dict)
    times = [line["time"] for line in lines if isinstance(line.get("time"), str)]
    started = find_key(environment, "started", "date", "time", "created") or (times[0] if times else None)
    planned = _planned_steps(config_text)
    evaluated = [stage for stage, _ in _evaluation_folders(run)]
    names = dict.fromkeys([*planned, *(str(line["stage"]) for line in lines), *evaluated])
    spent = goodput.read(run)
    return RunRecord(
        name=run.resolve().name,
        stages=[_stage(run, name, planned.get(name), [x for x in lines if x["stage"] == name]) for name in names],
        config_text=config_text,
        environment=environment,
        baselines=[row for row in _json(run / "baselines.json", list) if isinstance(row, dict)],
        started=str(started) if started else None,
        unreadable=written - len(lines),
        goodput=str(spent) if spent else None,
        wall_seconds=spent.wall if spent else None,
    )


def _is_step(value: Any) -> bool:
    """Whether a value counts steps, exactly as a float too."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def find_key(tree: Any, *names: str) -> Any:
    """The first value of one of these keys in nested mappings, names in order of preference; else None."""
    for name in names:
        level = [tree]
        while level:
            mappings = [node for node in level if isinstance(node, dict)]
            for node in mappings:
                if node.get(name) not in (None, "", [], {}):
                    return node[name]
            level = [value for node in mappings for value in node.values()]
    return None


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _stage(run: Path, name: str, planned: int | None, lines: list[dict[str, Any]]) -> StageRecord:
    by_kind: dict[str, list[dict[str, Any]]] = {"train": [], "eval": [], "event": []}
    for line in lines:
        by_kind.setdefault(str(line["kind"]), []).append(line)
    train = {line["step"]: line for line in by_kind["train"]}  # the last line of each step
    scored = [line for line in by_kind["eval"] if isinstance(line.get("scores"), dict)]
    evals = {(str(line.get("name")), line["step"]): line | {"name": str(line.get("name"))} for line in scored}
    start = next((line for line in by_kind["event"] if line.get("event") == "start"), {})
    steps = next((n for n in (planned, start.get("steps"), start.get("total_steps")) if isinstance(n, int)), None)
    ordered = [train[step] for step in sorted(train)]
    return StageRecord(
        name=name,
        steps=steps,
        finished=any(line.get("event") == "stage_end" for line in by_kind["event"]),
        stopped_early=next((line["step"] for line in by_kind["event"] if line.get("stopped_early")), None),
        train=ordered,
        evals=sorted(evals.values(), key=lambda line: line["step"]),
        episodes=_episodes(ordered, [line for line in by_kind["event"] if line.get("event") == "episode"]),
        evaluations=_evaluations(run, name, list(evals.values())),
        others=_other_evaluations(run, name),
        resumes=[line["step"] for line in by_kind["event"] if line.get("event") == "resume"],
    )


def _episodes(train: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[Episode]:
    """Episodes from their events and from the `episode` of training lines.

    An event at the last step of an episode belongs to the next one, so at equal steps the training line comes first.
    """
    marks = [line for line in (*train, *events) if isinstance(line.get("episode"), int)]
    found: list[Episode] = []
    for line in sorted(marks, key=lambda line: line["step"]):
        step, number = line["step"], line["episode"]
        trained = line["trainable_parameters"] if is_finite(line.get("trainable_parameters")) else None
        if found and found[-1].number == number:
            last = found.pop()
            found.append(Episode(number, last.first_step, step, last.trainable_parameters or trained))
        else:
            found.append(Episode(number, step, step, trained))
    joined = [Episode(a.number, a.first_step, b.first_step, a.trainable_parameters) for a, b in zip(found, found[1:])]  # noqa: B905
    return joined + found[-1:]


def _evaluations(run: Path, stage: str, lines: list[dict[str, Any]]) -> list[EvaluationResult]:
    """Scores from the evaluation files, or from metrics.jsonl if a file is missing."""
    last: dict[str, dict[str, Any]] = {}
    for line in sorted(lines, key=lambda line: line["step"]):
        last[line["name"]] = line
    found = {name: EvaluationResult(name, line["step"], line["scores"]) for name, line in last.items()}
    for path in _evaluation_files(run, stage):
        if path.name.endswith((".predictions.json", ".nbest.json")):
            continue
        content = _json(path, dict)
        if not isinstance(content.get("scores"), dict):
            continue
        name = path.name.removesuffix(".json")
        step = content.get("step", last.get(name, {}).get("step"))
        samples = content.get("samples")
        found[name] = EvaluationResult(
            name=name,
            step=step if isinstance(step, int) else None,
            scores=content["scores"],
            samples=[s for s in samples if isinstance(s, dict)] if isinstance(samples, list) else [],
            nbest=_json(path.parent / f"{name}.nbest.json", dict),
            predictions=len(_json(path.parent / f"{name}.predictions.json", dict)) or None,
            details={key: content[key] for key in content if key not in ("scores", "samples", "step")},
        )
    return list(found.values())


def _other_evaluations(run: Path, stage: str) -> list[OtherEvaluation]:
    found = []
    for path in _evaluation_files(run, stage, OTHER_DIR):
        content = _json(path, dict)
        scores, step, differs = (content.get(key) for key in ("scores", "step", "differs"))
        if isinstance(scores, dict):
            step = step if isinstance(step, int) else None
            text = describe_provenance(step, differs if isinstance(differs, dict) else {})
            name = find_key(content.get("made_from"), "name") or path.name.removesuffix(".json")
            found.append(OtherEvaluation(str(name), text, scores, step))
    return sorted(found, key=lambda other: (other.name, other.step or 0))


def _evaluation_folders(run: Path) -> list[tuple[str, Path]]:
    """(stage, folder) in order of the folders' names."""
    folders = sorted(path for path in (run / "evaluations").glob("*") if path.is_dir())
    return [(re.sub(r"^\d+-", "", folder.name), folder) for folder in folders]


def _evaluation_files(run: Path, stage: str, inside: str = "") -> list[Path]:
    folders = [folder / inside for name, folder in _evaluation_folders(run) if name == stage]
    return [path for folder in folders for path in sorted(folder.glob("*.json"))]


def _planned_steps(config_text: str) -> dict[str, int | None]:
    """{stage name: steps, or None for a stage in epochs}, in order."""
    try:
        stages = yaml.safe_load(config_text)["stages"]
        return {str(stage["name"]): stage.get("steps") for stage in stages}
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, ValueError, RecursionError):
        return {}


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8", "replace")
    except OSError:
        return ""


def _json(path: Path, kind: type) -> Any:
    """The content of a JSON file, or an empty `kind` if it is missing, invalid or of another kind."""
    try:
        content = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return kind()
    return content if isinstance(content, kind) else kind()
