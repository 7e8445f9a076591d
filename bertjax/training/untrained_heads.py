"""Carry heads that a stage neither reads nor trains through to the stages after it.

Checkpoints hold them among the parameters; in the meta data `heads` names the heads of the stage and `carried` these.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import jax

from bertjax.models import families, registry
from bertjax.training.freezing import format_groups, param_groups
from bertjax.training.program import TrainProgram
from bertjax.training.state import Params

# A checkpoint has the names of one classifier's classes, so it holds one of these.
LABEL_HEADS = ("classifier", "token_classifier")


def label_head(heads: Iterable[str]) -> str | None:
    """The classifier, of texts or of tokens, among heads; None without one."""
    return next((head for head in heads if head in LABEL_HEADS), None)


@dataclass(frozen=True)
class UntrainedHeads:
    """Carried heads: names, arrays that the stage does not train itself, and entries of the meta data about them."""

    heads: tuple[str, ...] = ()
    params: Params = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_labels(self) -> int | None:
        """The number of outputs of a carried classifier, of texts or of tokens."""
        return registry.num_labels(self.params) if label_head(self.heads) else None


def all_heads(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads that a checkpoint holds: those of its stage and carried ones."""
    return (*meta["heads"], *meta.get("carried", ()))


def add_heads(program: TrainProgram, heads: Iterable[str], num_labels: int) -> TrainProgram:
    """`program` with carried heads added; `num_labels` is used if the classifier is carried."""
    own = label_head(program.heads)
    return replace(program, heads=(*program.heads, *heads), num_labels=program.num_classes if own else num_labels)


def find_untrained_heads(
    program: TrainProgram, loaded: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, jax.ShapeDtypeStruct]]:
    """-> (heads of `loaded` that a stage carries, their abstract arrays).

    Heads that do not fit are left out, and so is a classifier beside one of the other kind (`LABEL_HEADS`). A stage
    with a mixture of layers carries none: predictions would give it to heads that were trained on the last layer.
    """
    if program.peft.mixes_layers:
        return (), {}
    own = program.abstract_params()
    there = families.record_of(program.model).find_heads({**own, **loaded})
    heads: tuple[str, ...] = ()
    found: dict[str, jax.ShapeDtypeStruct] = {}
    others = [head for head in there if head not in program.heads]
    for head in others if label_head(program.heads) is None else [one for one in others if one not in LABEL_HEADS]:
        added = add_heads(program, (head,), registry.num_labels(loaded)).abstract_params()
        extra = {path: x for path, x in added.items() if path not in own}
        if all(path in loaded and loaded[path].shape == x.shape for path, x in extra.items()):
            heads, found = (*heads, head), found | extra
    return heads, found


def restored_heads(meta: Mapping[str, Any], params: Params) -> UntrainedHeads:
    """The carried heads of a checkpoint with these meta data."""
    heads = tuple(meta.get("carried", ()))
    return UntrainedHeads(heads, params, _about(heads, meta))


def _about(heads: Iterable[str], meta: Mapping[str, Any]) -> dict[str, Any]:
    facts = {"qa": "unanswerable"}  # label_mapping takes care of the names of classes
    return {facts[head]: meta[facts[head]] for head in heads if facts.get(head) in meta}


def load_untrained_heads(program: TrainProgram, loaded: Mapping[str, Any], meta: Mapping[str, Any]) -> UntrainedHeads:
    """The heads of `loaded`, a checkpoint with these meta data, that the stage does not train, in their shards."""
    heads, wanted = find_untrained_heads(program, loaded)
    params = {path: jax.device_put(loaded[path], x.sharding) for path, x in wanted.items()}
    return UntrainedHeads(heads, params, _about(heads, meta))


def summary_line(params: Mapping[str, Any]) -> str:
    """The line of a model summary about carried heads."""
    size = sum(prod(x.shape) for x in params.values())
    return f"  carried on, not trained: {size:,} ({format_modules(params)})\n"


def format_modules(paths: Iterable[str]) -> str:
    """Format parameters by module: "embeddings, layers 0..11, heads/mlm, heads/pooler, adapters"; or "LoRA"."""
    paths = list(paths)
    names = {"adapters": "/adapter/", "LoRA": "/lora/"}
    added = [name for name, part in names.items() if any(part in path for path in paths)]
    rest = [path for path in paths if not any(part in path for part in names.values())]
    heads = dict.fromkeys("/".join(path.split("/")[:2]) for path in sorted(rest) if path.startswith("heads/"))
    others = format_groups(param_groups(path for path in rest if not path.startswith("heads/")))
    return ", ".join([*([others] if others else []), *heads, *added])
