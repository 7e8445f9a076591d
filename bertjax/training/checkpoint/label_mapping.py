"""Match the classes of a stage's data by name to those of the classifier it starts from, else start a fresh one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.config.schema.run import Stage
from bertjax.data.pipeline.loader import Batches
from bertjax.data.preprocess import labels
from bertjax.data.sources.class_names import ClassSpec, format_names
from bertjax.errors import UserError
from bertjax.interop import hf_folder
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.checkpoint.stage_files import StageFiles, init_error
from bertjax.training.run_context import is_multi_label
from bertjax.training.untrained_heads import all_heads, label_head


class InitClasses(NamedTuple):
    """The classifier a stage starts from, of texts or of tokens: number of outputs, names by id, location, head."""

    outputs: int
    names: tuple[str, ...] | None
    where: str
    head: str
    multi_label: bool = False  # whether it was trained to give a text several labels


class StageLabels(NamedTuple):
    """The labels of a stage, and lines that report them."""

    names: list[str] | None  # of the classes by id, as saved in checkpoints
    outputs: int | None  # of the stage's classifier
    fresh: tuple[str, ...]  # heads, adapters and LoRA that start fresh although the start has them
    lines: tuple[str, ...]
    multi_label: bool = False  # whether a text may have several of them
    head: str | None = None  # the classifier that these are of: the stage's own, or one that it carries


def init_classes(files: StageFiles, previous: StageLabels | None) -> InitClasses | None:
    """The classifier that a stage starts from; None if there is none, or if it is listed in `fresh`.

    previous: labels of the previous stage. Raises UserError if a classification that has not begun cannot read it.
    """
    stage, own = files.stage, label_head(files.stage.objective.heads)
    if files.init_source == "scratch" or (own in stage.fresh):
        return None
    try:
        found = _start_classes(files, previous)
    except UserError as error:
        if files.has_begun or own is None:  # others only pass the names on
            return None
        raise init_error(stage, error) from None
    return found if found is not None and own in (None, found.head) else None


def _start_classes(files: StageFiles, previous: StageLabels | None) -> InitClasses | None:
    """The classifier, of any kind, in what a stage starts from."""
    if files.starts_from_previous:
        if previous is None or previous.outputs is None or previous.head is None:
            return None
        names = tuple(previous.names) if previous.names else None
        return InitClasses(previous.outputs, names, files.init_name, previous.head, previous.multi_label)
    return classifier_in(files.init_weights, files.init_checkpoints, files.init_name)


def classifier_in(weights: Path | None, checkpoints: CheckpointReader | None, where: str) -> InitClasses | None:
    """The classifier, of any kind, in a Hugging Face folder or a checkpoint; None without one."""
    if weights:
        found = hf_folder.read_classifier(weights)
        return found and InitClasses(found.outputs, found.names, where, found.head, found.multi_label)
    meta = checkpoints.meta() if checkpoints else None
    head = label_head(all_heads(meta)) if meta is not None else None
    if meta is None or head is None:
        return None
    return InitClasses(meta["num_labels"], _names(meta), where, head, is_multi_label(meta))


def _names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    return tuple(meta["labels"]) if meta.get("labels") else None


def expected_classes(stage: Stage, start: InitClasses | None) -> ClassSpec | None:
    """The classes that the rows of a classification stage are made for; None for other stages."""
    if label_head(stage.objective.heads) is None:
        return None
    return ClassSpec.of_objective(stage.objective, start.names if start else None)


def saved_names(files: StageFiles) -> tuple[str, ...] | None:
    """The names in the checkpoints of a stage that has begun; they take precedence over those of its start."""
    return _names(files.checkpoints.meta()) if files.has_begun else None


def resolve_labels(stage: Stage, start: InitClasses | None, batches: Batches) -> StageLabels:
    """Decide the labels of a stage and which heads start fresh, once its data are open."""
    if (head := label_head(stage.objective.heads)) is None:
        names = list(start.names) if start and start.names else None
        outputs, carried = (start.outputs, start.head) if start else (None, None)
        several = start is not None and start.multi_label
        return StageLabels(names, outputs, tuple(stage.fresh), (), several, carried)
    names = batches.labels
    reports = {name: labels.report_lines(store.meta, training=True) for name, store in batches.stores.items()}
    lines = [f"{name}: {line}" for name, found in reports.items() for line in found]
    why = _why_fresh(stage.objective.num_labels, start, batches)
    if why is not None:
        lines.append(f"stage '{stage.name}': the classifier starts fresh: {why}")
    elif start is not None and start.names is None and names is not None:
        order = format_names(names)
        lines.append(f"stage '{stage.name}': the classes of {start.where} have no names; they are taken to be {order}")
    several = getattr(stage.objective, "multi_label", False)
    if (
        why is None
        and start is not None
        and start.multi_label != several
        and 1 not in (start.outputs, stage.objective.num_labels)
    ):
        kinds = {True: "several labels for a text", False: "one label for each text"}
        was, now = kinds[start.multi_label], kinds[several]
        lines.append(f"stage '{stage.name}': the classifier of {start.where} gives {was}; it is trained on for {now}")
    fresh = dict.fromkeys([*stage.fresh, *([head] if why is not None else [])])
    return StageLabels(names, stage.objective.num_labels, tuple(fresh), tuple(lines), several, head)


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


def drop_fresh(params: Mapping[str, Any], fresh: Sequence[str]) -> dict[str, Any]:
    """The parameters without those of the heads (or "adapters", "lora") in `fresh`."""
    added = {"adapters": "adapter", "lora": "lora"}

    def is_fresh(parts: list[str]) -> bool:
        return any(added[name] in parts if name in added else parts[:2] == ["heads", name] for name in fresh)

    return {path: x for path, x in params.items() if not is_fresh(path.split("/"))}
