"""Divide parameters into groups, and a stage into episodes in which some groups train (gradual unfreezing).

Frozen groups are not inputs of the gradient (a partition, not a mask): no weight gradients, no optimizer state.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import Any

from bertjax.config.schema.model import FAMILIES
from bertjax.config.schema.run import Stage
from bertjax.config.schema.training import Trainable
from bertjax.errors import UserError

ADDED = ("adapter", "lora")  # parts of paths, and of groups, of the parameters that `trainable` adds to a model
_LAYER = re.compile(r"(?:(\w+)/)?layers/(\d+)(?:/|$)")


def stack_names() -> tuple[str, ...]:
    """The layer stacks of all model families; "" is the only stack of a family."""
    return tuple(dict.fromkeys(stack for family in FAMILIES.values() for stack in family.stacks))


@dataclass(frozen=True)
class Episode:
    """The groups that train in steps [start, stop) of a stage."""

    start: int
    stop: int
    groups: tuple[str, ...]


def param_group(path: str, norms: bool = False) -> str:
    """The group of a parameter: layers/3/mlp/output/kernel -> layers/3; heads/mlm/... -> heads.

    What a stage adds to a layer is a group: layers/3/adapter, layers/3/lora. With `norms` (beside adapters, which train
    with them) norms below the heads are groups too: layers/3/norms, embeddings/norms.

    T5: encoder/layers/3/mlp/output/kernel -> encoder/layers/3, its mlp/norm/scale -> encoder/layers/3/norms, its
    adapter/... -> encoder/layers/3/adapter; encoder/position/embedding -> encoder/shared, encoder/norm/scale ->
    encoder/shared/norms.
    """
    parts = path.split("/")
    if parts[0] == "layers":
        group, inside = "/".join(parts[:2]), parts[2:]
    elif parts[0] not in stack_names():
        return f"{parts[0]}/norms" if norms and parts[0] != "heads" and "norm" in parts else parts[0]
    else:
        norms = True
        group = "/".join(parts[:3]) if parts[1] == "layers" else f"{parts[0]}/shared"
        inside = parts[3:] if parts[1] == "layers" else parts[1:]
    if added := next((name for name in ADDED if name in inside), None):
        return f"{group}/{added}"
    return f"{group}/norms" if norms and "norm" in inside else group


def grouped(paths: Iterable[str]) -> dict[str, str]:
    """{path: its group} of a model's parameters, or of those that train: adapters are among either."""
    paths = list(paths)
    norms = any("/adapter/" in path for path in paths)
    return {path: param_group(path, norms) for path in paths}


def parse_layer(group: str) -> tuple[str, int] | None:
    """encoder/layers/3/norms -> (encoder, 3), layers/3 -> ("", 3); None for a group outside the layers."""
    found = _LAYER.match(group)
    return (found[1] or "", int(found[2])) if found else None


def param_groups(paths: Iterable[str]) -> tuple[str, ...]:
    """All groups, from the bottom of the network to the top."""
    bottom_up = ("embeddings", *stack_names(), "heads")

    def place(group: str) -> tuple[int, int, str]:
        stack, layer = parse_layer(group) or (group.split("/")[0], -1)
        return bottom_up.index(stack), layer, group

    return tuple(sorted(set(grouped(paths).values()), key=place))


def group_sizes(params: Mapping[str, Any]) -> dict[str, int]:
    """The number of parameters of each group, from {path: array or shape}."""
    counted = dict.fromkeys(param_groups(params), 0)
    for path, group in grouped(params).items():
        counted[group] += prod(params[path].shape)
    return counted


def stack_depths(groups: Iterable[str]) -> dict[str, int]:
    """{stack: number of its layers that have one of these groups}; BERT's only stack is ""."""
    layers = {layer for group in groups if (layer := parse_layer(group))}
    stacks = dict.fromkeys(sorted(stack for stack, _ in layers), 0)
    for stack, _ in layers:
        stacks[stack] += 1
    return stacks


def episodes(trainable: Trainable, groups: tuple[str, ...], steps: int) -> tuple[Episode, ...]:
    """The episodes of a stage, a single one for all kinds but `gradual`.

    `head` and `features` train the heads, or the embeddings of a T5 whose output matrix they are. `adapters` (arXiv
    1910.10683 section 3.5.1) trains with adapter_norms `paper` the adapters and every norm of the model ("only the
    adapter layer and layer normalization parameters are updated"), with `houlsby` the adapters and the norms inside
    them (variable_filter of T5's task_adapter.gin). `lora` trains the low-rank updates. The heads of an encoder, which
    are new, train with either (arXiv 1902.00751: adapters, norms and the output layer); T5's output matrix, which is
    pre-trained, does not. Raises UserError for fewer steps or layers than episodes.
    """
    if trainable.kind == "gradual":
        return _gradual(trainable, groups, steps)
    if trainable.kind in ("head", "features"):
        groups = ("heads",) if "heads" in groups else ("embeddings",)
    if trainable.kind in ("adapters", "lora"):
        norms = trainable.kind == "adapters" and trainable.adapter_norms == "paper"
        trained = ("/lora",) if trainable.kind == "lora" else ("/adapter", *(["/norms"] if norms else []))
        new = ("heads",) if "" in stack_depths(groups) else ()
        groups = tuple(group for group in groups if group in new or group.endswith(trained))
    return (Episode(0, steps, groups),)


def stage_episodes(stage: Stage, groups: tuple[str, ...], steps: int) -> tuple[Episode, ...]:
    """`episodes` of a stage with so many steps. Raises UserError that names the stage."""
    try:
        return episodes(stage.trainable, groups, steps)
    except UserError as error:
        raise UserError(f"stages.{stage.name}.{error}") from None


def _gradual(trainable: Trainable, groups: tuple[str, ...], steps: int) -> tuple[Episode, ...]:
    """Gradual unfreezing (arXiv 1910.10683 section 3.5.1): E episodes with boundaries floor(i * steps / E).

    With `episode_lengths` w they are at floor(steps * sum(w[:i]) / sum(w)); `unfreeze_ratio` r stands for E - 1 lengths
    of r / (E - 1) and one of 1 - r.

    Episode n trains the top ceil((n+1) * L / E) of the L layers of every stack, with their norms; E is by default the
    depth of the deeper stack. Heads and final norms always train. As in the paper T5's embeddings always train, since
    its output matrix is shared with them; BERT's join in the last episode by default. The paper does not mention the
    relative position bias: it trains with the embeddings, else it joins with the bottom layer, so that no gradient
    flows through frozen layers.
    """
    stacks = stack_depths(groups)
    deepest = max(stacks.values())
    lengths = trainable.episode_lengths or [1.0] * (trainable.episodes or deepest)
    count = len(lengths)
    if (ratio := trainable.unfreeze_ratio) is not None:
        if count == 1:
            raise UserError(
                "trainable.unfreeze_ratio: the model has 1 layer, which trains from the start; leave it out"
            )
        lengths = [*[ratio / (count - 1)] * (count - 1), 1 - ratio]
    if count > deepest:
        raise UserError(f"trainable.episodes: {count} is more than the {deepest} layers there are to unfreeze")
    if count > steps:
        raise UserError(f"trainable.episodes: {count} episodes need at least as many steps, the stage has {steps}")
    auto = "last" if "" in stacks else "always"
    when = auto if trainable.embeddings == "auto" else trainable.embeddings

    def is_open(group: str, n: int) -> bool:
        last = n == count - 1
        if group == "embeddings":
            return when == "always" or (when == "last" and last)
        if (layer := parse_layer(group)) is None:
            return when == "always" or last or not group.endswith("/shared")
        stack, number = layer
        return number >= stacks[stack] + -(n + 1) * stacks[stack] // count

    ends = _boundaries(lengths, steps)
    return tuple(
        Episode(start, stop, tuple(g for g in groups if is_open(g, n)))
        for n, (start, stop) in enumerate(pairwise(ends))
    )


def _boundaries(lengths: Sequence[float], steps: int) -> list[int]:
    """The first step of each episode, and `steps`. Raises UserError for an episode without a step."""
    # exact: a float product such as 0.3 * 10 / 3 may be below the whole number that it stands for
    parts = [Fraction(length).limit_denominator(10**6) for length in lengths]
    ends = [int(steps * sum(parts[:n]) / sum(parts)) for n in range(len(parts) + 1)]
    if short := [n for n, (start, stop) in enumerate(pairwise(ends)) if start == stop]:
        raise UserError(
            f"trainable: episode {short[0]} has no step, by the lengths of its episodes; the stage has {steps} steps; "
            "give it more, or fewer episodes"
        )
    return ends


_OPTIONS = {
    "features": ("feature_layers", "cache_features", "cache_gib", "adapter_only_checkpoints"),
    "gradual": ("episodes", "episode_lengths", "unfreeze_ratio", "embeddings", "cache_frozen", "cache_gib"),
    "adapters": ("adapter_size", "adapter_placement", "adapter_norms", "adapter_init", "adapter_only_checkpoints"),
    "lora": (
        "lora_rank", "lora_alpha", "lora_rslora", "lora_dropout", "lora_targets", "adapter_only_checkpoints",
    ),
}  # fmt: skip


def unused_options(trainable: Trainable) -> list[str]:
    """Options with a value of their own that only other kinds read.

    They are not refused: `trainable=all` on the command line leaves the other options of a file in place.
    """
    fields, read = type(trainable).model_fields, _OPTIONS.get(trainable.kind, ())
    others = dict.fromkeys(name for names in _OPTIONS.values() for name in names if name not in read)
    return [name for name in others if getattr(trainable, name) != fields[name].default]


def episode_at(plan: tuple[Episode, ...], step: int) -> int:
    """Index of the episode of `step`; from the end of the stage on, of the last one."""
    return next((i for i, episode in enumerate(plan) if step < episode.stop), len(plan) - 1)


def format_groups(groups: Sequence[str]) -> str:
    """Format groups: "embeddings, layers 4..11, heads"; T5: "encoder layers 4..5, encoder final norm"."""
    names = [g for g in groups if g == "embeddings"]
    for stack in stack_names():
        layers = {g: place[1] for g in groups if (place := parse_layer(g)) and place[0] == stack}
        full = {g: n for g, n in layers.items() if g.endswith(f"layers/{n}")}
        added = [{g: n for g, n in layers.items() if g.endswith(f"/{name}")} for name in ADDED]
        norms = {g: n for g, n in layers.items() if not full and g.endswith("/norms")}  # layers include their norms
        for name, found in (("layers", full), ("adapters", added[0]), ("lora", added[1]), ("norms", norms)):
            if found:
                first, last = min(found.values()), max(found.values())
                span = f"{name} {first}..{last}" if last > first else f"{name.removesuffix('s')} {first}"
                names.append(f"{stack} {span}".strip())
    others = [g for g in groups if g != "embeddings" and parse_layer(g) is None]
    plain = {"shared/norms": "final norm", "shared": "position bias", "norms": "norm"}
    return ", ".join(names + [" ".join(plain.get(part, part) for part in g.split("/", 1)) for g in others])
