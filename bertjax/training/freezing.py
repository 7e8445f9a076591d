"""What trains when: parameter groups, and gradual unfreezing as a list of episodes.

A group is a layer, the embeddings or the heads. Frozen groups are not in the gradient's inputs at all (a partition, not
a mask): they cost no backward pass and have no optimizer slots, and their bytes do not change.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bertjax.config.training_schema import Trainable
from bertjax.errors import UserError


@dataclass(frozen=True)
class Episode:
    """Steps [start, stop) of a stage and the groups that train in them."""

    start: int
    stop: int
    groups: tuple[str, ...]


def group_of(path: str) -> str:
    """layers/3/mlp/output/kernel -> layers/3; embeddings/... -> embeddings; heads/... -> heads."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "layers" else parts[0]


def groups_of(paths: Iterable[str]) -> tuple[str, ...]:
    """All groups from the bottom of the network to the top."""
    found = {group_of(path) for path in paths}
    layers = sorted((g for g in found if g.startswith("layers/")), key=lambda g: int(g.split("/")[1]))
    return tuple(g for g in ("embeddings", *layers, "heads") if g in found)


def episodes(trainable: Trainable, groups: tuple[str, ...], steps: int) -> tuple[Episode, ...]:
    """The plan of a stage.

    Gradual unfreezing follows arXiv 1910.10683 section 3.5.1: E episodes of steps/E each (boundaries
    floor(i * steps / E)); episode n trains the top n+1 of L layers (with E other than L, the top ceil((n+1) * L / E)).
    The heads always train. The paper trains T5's embeddings throughout because they are shared with its output matrix;
    a BERT with another head shares nothing, so by default its embeddings join in the last episode.

    Raises UserError when there are fewer steps than episodes.
    """
    if trainable.kind == "all":
        return (Episode(0, steps, groups),)
    if trainable.kind == "head":
        return (Episode(0, steps, ("heads",)),)
    layers = [g for g in groups if g.startswith("layers/")]
    count = trainable.episodes or len(layers)
    if count > len(layers):
        raise UserError(f"trainable.episodes: {count} is more than the {len(layers)} layers there are to unfreeze")
    if count > steps:
        raise UserError(f"trainable.episodes: {count} episodes need at least as many steps, the stage has {steps}")
    plan = []
    for n in range(count):
        top = layers[len(layers) - -(-(n + 1) * len(layers) // count) :]
        embeddings = trainable.embeddings == "always" or (trainable.embeddings == "last" and n == count - 1)
        open_groups = (("embeddings",) if embeddings and "embeddings" in groups else ()) + tuple(top) + ("heads",)
        plan.append(Episode(n * steps // count, (n + 1) * steps // count, open_groups))
    return tuple(plan)


def episode_at(plan: tuple[Episode, ...], step: int) -> int:
    """Index of the episode that holds `step`; the last one from the end of the stage on."""
    return next((i for i, episode in enumerate(plan) if step < episode.stop), len(plan) - 1)
