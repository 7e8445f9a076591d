"""Select the layers of a deeper model that a stage starts from (`init_layers`), as extract_distilbert.py does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bertjax.config.loading.pretrained import read_model
from bertjax.config.schema.distillation import find_source_problem
from bertjax.config.schema.model import ModelConfig
from bertjax.config.schema.run import Stage
from bertjax.errors import UserError
from bertjax.training.checkpoint.reader import CheckpointReader

Leaf = TypeVar("Leaf")


class Selected(NamedTuple):
    """The parameters that a model starts from, {path: x}, and lines about those left out."""

    params: dict[str, Any]
    lines: tuple[str, ...]


def source_model(stage: Stage, folder: Path | None, checkpoints: CheckpointReader | None, model: ModelConfig) -> Any:
    """The model section of what a stage starts from: its own, unless it selects layers of a deeper one."""
    if stage.init_layers is None:
        return model
    if checkpoints is not None:
        return checkpoints.config().model
    assert folder is not None, "the configuration is checked"
    return read_model(folder)


def select_layers(params: Mapping[str, Leaf], stage: Stage, source: Any, model: Any, where: str) -> Selected:
    """Rename the selected layers of {path: x} and leave out what the model has no place for.

    A DistilBERT has no segment embeddings, pooler and next-sentence head. Raises UserError for layers that `source`
    (a section) does not have, and for a source whose layers compute something else.
    """
    if (layers := stage.init_layers) is None:
        return Selected(dict(params), ())
    if problem := find_source_problem(layers, source, model):
        raise UserError(f"{where}: {problem}")
    found: dict[str, Any] = {}
    left: dict[str, int] = {}
    for path, value in params.items():
        parts = path.split("/")
        if parts[0] == "layers":
            own = [number for number, layer in enumerate(layers) if layer == int(parts[1])]
            found |= {"/".join(["layers", str(number), *parts[2:]]): value for number in own}
            kept = bool(own)
        elif kept := not _is_absent(parts, model):
            found[path] = value
        if not kept:
            name = "/".join(parts[: 2 if parts[0] != "layers" else 1])
            left[name] = left.get(name, 0) + 1
    taken = f"{where}: layers {', '.join(map(str, layers))} of {source.num_hidden_layers} start layers 0 to "
    lines = [f"{taken}{len(layers) - 1}"]
    if left:
        lines.append("left out: " + ", ".join(f"{name} ({count} arrays)" for name, count in sorted(left.items())))
    return Selected(found, tuple(lines))


def _is_absent(parts: list[str], model: Any) -> bool:
    """Whether a parameter belongs to a part that this model cannot have."""
    if parts[0] == "heads":
        return parts[1] not in (*model.heads, "pre_classifier")
    return parts[:2] == ["embeddings", "token_type"] and not getattr(model, "type_vocab_size", 0)
