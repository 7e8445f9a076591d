"""Match the classes of a stage's data to those of the classifier it starts from, and decide whether that is kept.

Only names give a classifier's outputs a meaning. They are passed on with the weights, through `init_from` and from
stage to stage; data are matched to them by name, and where that is impossible the classifier starts fresh.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bertjax.config.schema.run import Stage
from bertjax.data.pipeline.loader import Batches
from bertjax.data.preprocess import labels
from bertjax.data.sources.class_names import ClassSpec, format_names
from bertjax.errors import UserError
from bertjax.interop import hf_folder
from bertjax.training.checkpoint.stage_files import StageFiles, init_error
from bertjax.training.untrained_heads import all_heads

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


def init_classes(files: StageFiles, previous: StageLabels | None) -> InitClasses | None:
    """The classifier that a stage starts from; None where there is none, or `fresh` excludes it.

    previous: labels of the previous stage. Raises UserError for a start that cannot be read, where a classification
    that has not begun needs it.
    """
    stage = files.stage
    if files.init_source == "scratch" or CLASSIFIER in stage.fresh:
        return None
    if files.init_source == "previous":
        if previous is None or previous.outputs is None:
            return None
        return InitClasses(previous.outputs, tuple(previous.names) if previous.names else None, files.init_name)
    try:
        return _read_init_classes(files)
    except UserError as error:
        if files.has_begun or CLASSIFIER not in stage.objective.heads:  # others only pass the names on
            return None
        raise init_error(stage, error) from None


def _read_init_classes(files: StageFiles) -> InitClasses | None:
    if files.init_weights:
        found = hf_folder.read_classifier(files.init_weights)
        return None if found is None else InitClasses(found.outputs, found.names, files.init_name)
    meta = files.init_checkpoints.meta() if files.init_checkpoints else None
    if meta is None or CLASSIFIER not in all_heads(meta):
        return None
    return InitClasses(meta["num_labels"], _names(meta), files.init_name)


def _names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    return tuple(meta["labels"]) if meta.get("labels") else None


def expected_classes(stage: Stage, start: InitClasses | None) -> ClassSpec | None:
    """What the rows of a classification stage are for; None for other stages."""
    if CLASSIFIER not in stage.objective.heads:
        return None
    return ClassSpec(stage.objective.num_labels, start.names if start else None)


def saved_names(files: StageFiles) -> tuple[str, ...] | None:
    """The names in the checkpoints of a stage that has begun, which take precedence over those of its start."""
    return _names(files.checkpoints.meta()) if files.has_begun else None


def resolve_labels(stage: Stage, start: InitClasses | None, batches: Batches) -> StageLabels:
    """Decide the labels of a stage and which heads start fresh, once its data are open."""
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
