"""The runs of `bertjax glue`: a configuration for each task, seed and point of the grid."""

import difflib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bertjax.config.loading.load import build
from bertjax.config.schema.run import Config, Stage
from bertjax.errors import UserError
from bertjax.tools.glue.tasks import TASKS, GlueTask

Select = Literal["last", "best"]
DATA = "data"  # the folder of copied data in the output folder
INTERMEDIATE = ("rte", "mrpc", "stsb")  # tasks that may start from the MNLI model (arXiv 1907.11692, section 5.1)
_SHORT = {"learning_rate": "lr", "batch_size": "batch", "epochs": "epochs"}  # in names of runs
_OWN = {
    "run.name": "every run has its own; name the folder with --output", "run.root": "use --output",
    "run.seed": "use --seeds", "pretrained": "use --init", "data": "use --data", "init_from": "use --init",
    "fresh": "each task has a fresh classifier", "name": "each stage has its task's name",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the command was asked for. `settings`: key=value for all tasks, or TASK.key=value."""

    init: str
    data: str
    output: Path
    tasks: tuple[str, ...] = ()  # () for all that the data have
    seeds: tuple[int, ...] = (1, 2, 3)
    options: Mapping[str, str] = field(default_factory=dict)  # epochs, batch_size, learning_rate
    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    select: Select = "last"
    intermediate: bool = False
    limit: int | None = None
    submission: Literal["median", "best", "none"] = "median"
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SubRun:
    """A run of one task with one seed at one point of the grid, {key: value}."""

    task: GlueTask
    seed: int
    point: Mapping[str, str]
    config: Config

    @property
    def name(self) -> str:
        return self.config.run.name


def parse_grid(text: str | None) -> dict[str, list[str]]:
    """`learning_rate=2e-5,3e-5 batch_size=16,32` -> {key: values}. Raises UserError."""
    grid: dict[str, list[str]] = {}
    for part in (text or "").split():
        key, equals, values = part.partition("=")
        listed = values.split(",")
        if not equals or not key or not all(listed) or len(set(listed)) < len(listed):
            raise UserError(f"--grid: {ascii(part)[1:-1][:80]}: expected key=value,value with different values")
        grid[key] = listed
    return grid


def make_runs(request: Request, task: GlueTask, start: str | None = None) -> list[SubRun]:
    """The runs of a task, by point of the grid and seed; `start`: a checkpoint to start from instead of --init.

    Raises UserError for settings that are not valid.
    """
    general, own = split_settings(request.settings)
    fixed = {setting.partition("=")[0] for setting in own.get(task.name, [])}
    axes = [[(key, value) for value in values] for key, values in request.grid.items() if key not in fixed]
    runs = []
    for point in map(dict, itertools.product(*axes)):
        common = {key: value for key, value in request.options.items() if value is not None}
        chosen = [*(f"{k}={v}" for k, v in common.items()), *general, *(f"{k}={v}" for k, v in point.items())]
        overrides = [one for setting in [*chosen, *own.get(task.name, [])] for one in expand(task, setting)]
        label = "-".join(_SHORT.get(key, key.rpartition(".")[2]) + value for key, value in point.items())
        label = re.sub(r"[^A-Za-z0-9.-]", "_", label)
        for seed in request.seeds:
            name = "-".join(filter(None, [task.name, label, f"seed{seed}"]))
            data = _base(request, task, name, seed, start)
            runs.append(SubRun(task, seed, point, build(data, overrides, where=f"glue: {task.title}")))
    return runs


def split_settings(settings: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """-> (settings of all tasks, {task: its own}): `rte.epochs=10` is one of RTE."""
    general: list[str] = []
    own: dict[str, list[str]] = {}
    for setting in settings:
        first, _, rest = setting.partition(".")
        if first in TASKS and "=" in rest:
            own.setdefault(first, []).append(rest)
        else:
            general.append(setting)
    return general, own


def expand(task: GlueTask, setting: str) -> list[str]:
    """Overrides of a run's configuration: `epochs=5` -> `stages.0.epochs=5`. Raises UserError for an unknown key."""
    key, _, value = setting.partition("=")
    head = key.partition(".")[0]
    for refused, remedy in _OWN.items():
        if key == refused or key.startswith(f"{refused}."):
            raise UserError(f"command line: {key}: cannot be set here: {remedy}")
    if key == "sequence_length":
        places = ["data", *(f"evaluate.{name}.data" for name in task.evaluations)]
        return [f"stages.0.{place}.preprocess.sequence_length={value}" for place in places]
    if key == "steps":
        return [f"stages.0.steps={value}", "stages.0.epochs=null"]
    if key == "learning_rate":
        return [f"stages.0.optimizer.learning_rate={value}"]
    if head in Stage.model_fields:
        return [f"stages.0.{setting}"]
    if head in Config.model_fields:
        return [setting]
    known = [*Stage.model_fields, *Config.model_fields, "learning_rate", "sequence_length", *TASKS]
    near = difflib.get_close_matches(head, known, 1)
    hint = f"; did you mean '{near[0]}'?" if near else "; use an option of a stage (epochs, trainable, ...) or run.KEY"
    raise UserError(f"command line: {ascii(key)[1:-1][:80]}: unknown key{hint}")


def _base(request: Request, task: GlueTask, name: str, seed: int, start: str | None) -> dict[str, Any]:
    """BERT's fine-tuning (arXiv 1810.04805, appendix A.3) with the lengths of run_classifier.py and run_glue.py."""
    pair = {"text_b": task.texts[1]} if len(task.texts) > 1 else {}
    names = {"labels": list(task.labels)} if task.labels else {}

    def data(split: str) -> dict[str, Any]:
        path = request.output / DATA / task.name / f"{split}.jsonl"
        preprocess = {"kind": "classify", "sequence_length": 128, "text_a": task.texts[0], **pair, **names}
        return {"source": {"kind": "jsonl", "files": [str(path)]}, "preprocess": preprocess}

    every = "auto" if request.select == "best" else "end"
    policy = {"keep_last": 1} | ({"keep_best": task.metrics[task.choosing]} if request.select == "best" else {})
    stage = {
        "name": task.name, "data": data("train"), "epochs": 3, "batch_size": 32, "fresh": ["classifier"],
        "objective": {"kind": "classification", "num_labels": len(task.labels) or 1},
        "optimizer": {"learning_rate": 2e-5, "warmup_ratio": 0.1},
        "evaluate": [
            {"kind": "classification", "name": evaluation, "every": every, "data": data(evaluation)}
            for evaluation in task.evaluations
        ],
    }  # fmt: skip
    if start is not None:
        stage["init_from"] = start
    run = {"name": name, "root": str(request.output), "seed": seed, "checkpoint": policy}
    return {"pretrained": request.init, "run": run, "stages": [stage]}


def planned_steps(run: SubRun, rows: int) -> int:
    """The steps of a run over so many rows, as `Batches.steps` counts them."""
    stage = run.config.stages[0]
    return stage.steps or max(1, math.ceil((stage.epochs or 1) * rows / stage.batch_size))


def options_record(request: Request) -> dict[str, Any]:
    """What must not change while the runs of an output folder last, apart from their configurations."""
    return {
        "--init": request.init, "--data": request.data, "--select": request.select, "--limit": request.limit,
        "--intermediate": "mnli" if request.intermediate else None,
    }  # fmt: skip


def check_options(request: Request, path: Path) -> None:
    """Raise UserError if the output folder was begun with other options."""
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{path}: cannot be read; name another --output") from None
    now = options_record(request)
    if changed := [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]:
        raise UserError(
            f"{request.output}: was begun with other options ({'; '.join(changed)[:160]}); undo the change, or name "
            "another --output"
        )
