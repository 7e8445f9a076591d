"""Whose classes a stage has: the names of the classifier it starts from, and whether that classifier can be kept.

A classifier's outputs mean something by their names alone. The names go along with the weights, through `init_from` and
from stage to stage; data are matched to them by name, and where that is impossible the classifier starts fresh.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.config.schema.run import Config, Stage
from bertjax.data.pipeline.loader import Batches
from bertjax.data.preprocess import labels
from bertjax.data.sources.class_names import ClassSpec, format_names
from bertjax.errors import UserError
from bertjax.interop import hf_folder
from bertjax.training.checkpoint import adapters
from bertjax.training.checkpoint.layout import committed_steps
from bertjax.training.checkpoint.locate import find, stage_folder
from bertjax.training.checkpoint.manager import CheckpointManager

CLASSIFIER = "classifier"


class InitClasses(NamedTuple):
    """The classifier a stage starts from: its outputs, their names by id (None: none), and where it is."""

    outputs: int
    names: tuple[str, ...] | None
    where: str


class StageLabels(NamedTuple):
    """Attributes:
    names: of the classes by id, as the stage's checkpoints keep them; None where there are none.
    outputs: number of classes of the stage's classifier; None where it has none.
    fresh: heads and adapters that start fresh though the start has them.
    lines: report the labels and why the classifier starts fresh.
    """

    names: list[str] | None
    outputs: int | None
    fresh: tuple[str, ...]
    lines: tuple[str, ...]


def init_classes(config: Config, base: Path, index: int, previous: StageLabels | None) -> InitClasses | None:
    """The classifier that stage `index` starts from; None where there is none, or `fresh` passes it over.

    previous: labels of the previous stage. Raises UserError for a start that cannot be read, where a classification
    that has not begun needs it.
    """
    stage = config.stages[index]
    source = adapters.init_source(stage, index)
    if source == "scratch" or CLASSIFIER in stage.fresh:
        return None
    if source == "previous":
        if previous is None or previous.outputs is None:
            return None
        names = tuple(previous.names) if previous.names else None
        return InitClasses(previous.outputs, names, f"stage '{config.stages[index - 1].name}'")
    try:
        return _read_init_classes(base / Path(source).expanduser())
    except UserError as error:
        begun = committed_steps(stage_folder(config.run_dir, index, stage.name))
        if begun or CLASSIFIER not in stage.objective.heads:  # others only pass the names on
            return None
        raise UserError(f"stage '{stage.name}': init_from: {error}") from None


def _read_init_classes(folder: Path) -> InitClasses | None:
    if (folder / "config.json").is_file():
        found = hf_folder.read_classifier(folder)
        return None if found is None else InitClasses(found.outputs, found.names, str(folder))
    place = find(folder)
    with CheckpointManager.open_readonly(place) as checkpoints:
        meta = checkpoints.meta(place.step)
    if CLASSIFIER not in (*meta["heads"], *meta.get("carried", ())):
        return None
    return InitClasses(meta["num_labels"], _names(meta), str(folder))


def _names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    return tuple(meta["labels"]) if meta.get("labels") else None


def expected_classes(stage: Stage, start: InitClasses | None) -> ClassSpec | None:
    """What the rows of a classification stage are for; None for other stages."""
    if CLASSIFIER not in stage.objective.heads:
        return None
    return ClassSpec(stage.objective.num_labels, start.names if start else None)


def saved_names(config: Config, index: int) -> tuple[str, ...] | None:
    """The names in the checkpoints of a stage that has begun, which go before those of its start."""
    folder = stage_folder(config.run_dir, index, config.stages[index].name)
    if not committed_steps(folder):
        return None
    with CheckpointManager(folder, config.run.checkpoint, read_only=True) as checkpoints:
        return _names(checkpoints.meta())


def resolve_labels(stage: Stage, start: InitClasses | None, batches: Batches) -> StageLabels:
    """Settles the labels of a stage and which heads start fresh, now that its data are known."""
    if CLASSIFIER not in stage.objective.heads:
        names = list(start.names) if start and start.names else None
        return StageLabels(names, start.outputs if start else None, tuple(stage.fresh), ())
    names = batches.labels
    reports = {name: labels.report_lines(store.meta, training=True) for name, store in batches.stores.items()}
    lines = [f"{name}: {line}" for name, found in reports.items() for line in found]
    why = _why_fresh(stage.objective.num_labels, start, batches)
    if why is not None:
        lines.append(f"stage '{stage.name}': the classifier starts fresh: {why}")
    elif start is not None and start.names is None and names is not None:
        order = format_names(names)
        lines.append(f"stage '{stage.name}': the classes of {start.where} have no names; they are taken to be {order}")
    fresh = dict.fromkeys([*stage.fresh, *([CLASSIFIER] if why is not None else [])])
    return StageLabels(names, stage.objective.num_labels, tuple(fresh), tuple(lines))


def _why_fresh(count: int, start: InitClasses | None, batches: Batches) -> str | None:
    if start is None:
        return None
    names, by = batches.labels, next(iter(batches.stores.values())).meta.get("labels_by")
    if start.names is not None and by != "start" and (names is not None or count == 1):
        own = "a number (regression)" if names is None else f"labels {format_names(names, 60)}"
        return f"the data have {own}, {start.where} has {format_names(start.names, 60)}"
    if start.names is None and by == "data" and start.outputs == count:
        return f"the labels are texts, and the classes of {start.where} have no names; preprocess.labels can name them"
    return None


def is_fresh(path: str, fresh: Sequence[str]) -> bool:
    """Whether the parameter at `path` belongs to one of the heads (or the adapters) in `fresh`."""
    parts = path.split("/")
    return any(("adapter" in parts) if name == "adapters" else parts[:2] == ["heads", name] for name in fresh)


def drop_fresh(params: Mapping[str, Any], fresh: Sequence[str]) -> dict[str, Any]:
    """The parameters of a start that a stage takes over."""
    return {path: x for path, x in params.items() if not is_fresh(path, fresh)}
