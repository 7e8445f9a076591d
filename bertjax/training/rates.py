"""Learning rates of single parameters: `learning_rates` by pattern of paths, and `layer_decay` by depth."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from bertjax.config.schema.optimizers import Optimizer
from bertjax.config.schema.run import Stage
from bertjax.errors import UserError
from bertjax.training import freezing
from bertjax.training.optimizers import is_matrix


class Rate(NamedTuple):
    """A factor of the learning rate, and the pattern or parameter group that it is for."""

    factor: float
    name: str


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern is for a path: `layers/1` for all below it; `*`, `?`, `[a-b]` as in file names, also for /."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")


def other_rates(optimizer: Optimizer, paths: Iterable[str]) -> dict[str, Rate]:
    """{path: its rate} of the parameters that `learning_rates`, `layer_decay` or `adam_learning_rate` is for.

    The others have factor 1.
    """
    paths = list(paths)
    adam = getattr(optimizer, "adam_learning_rate", None)
    adam = 1.0 if adam is None else adam / optimizer.learning_rate
    patterns = sorted(optimizer.learning_rates, key=_specificity, reverse=True)
    decays = depth_factors(paths, optimizer.layer_decay) if optimizer.layer_decay != 1.0 else {}
    found: dict[str, Rate] = {}
    for path, group in freezing.grouped(paths).items():
        pattern = next((pattern for pattern in patterns if matches(pattern, path)), None)
        if pattern is not None:
            found[path] = Rate(_factor(optimizer.learning_rates[pattern], optimizer.learning_rate), pattern)
            continue
        own = 1.0 if is_matrix(path) else adam
        if group in decays:
            found[path] = Rate(own * decays[group], group)
        elif own != 1.0:
            found[path] = Rate(own, "adam_learning_rate")
    return found


def depth_factors(paths: Iterable[str], decay: float) -> dict[str, float]:
    """{parameter group: decay^(layers between it and the heads, its own included)}.

    In a stack of L layers, the top one has decay^1 and layer 0 decay^L, each with its norms and adapters. Position
    biases, which are in layer 0, have decay^L and embeddings decay^(L+1). Heads and final norms are above all layers.
    T5's stacks each count from their own top, as in gradual unfreezing.
    """
    groups = freezing.param_groups(paths)
    depths = freezing.stack_depths(groups)
    found: dict[str, float] = {}
    for group in groups:
        if place := freezing.parse_layer(group):
            stack, layer = place
            found[group] = decay ** (depths[stack] - layer)
        elif group.endswith("/shared"):
            found[group] = decay ** depths.get(group.split("/")[0], 0)
        elif group.split("/")[0] == "embeddings":
            found[group] = decay ** (max(depths.values(), default=0) + 1)
    return found


def restarts(stage: Stage, plan: Sequence[freezing.Episode]) -> tuple[tuple[int, int], ...]:
    """The steps of each episode, over which a schedule with `restart` runs. Raises UserError for a longer warm-up."""
    steps = tuple((episode.start, episode.stop) for episode in plan)
    shortest, warmup = min(stop - start for start, stop in steps), stage.optimizer.warmup_steps or 0
    if warmup > shortest and stage.optimizer.schedule != "inverse_sqrt":
        raise UserError(
            f"stages.{stage.name}.optimizer: warmup_steps ({warmup}) is more than an episode has ({shortest}), and "
            "restart begins each with a warm-up"
        )
    return steps


def check_patterns(stage: Stage, paths: Iterable[str], plan: Iterable[freezing.Episode]) -> None:
    """Raise UserError for a pattern of `learning_rates` that no parameter has, or none that trains in this stage."""
    groups, trained = freezing.grouped(paths), {group for episode in plan for group in episode.groups}
    paths = list(groups)
    for pattern in stage.optimizer.learning_rates:
        there = [path for path in paths if matches(pattern, path)]
        where = f"stages.{stage.name}.optimizer.learning_rates.{pattern}"
        if not there:
            raise UserError(f"{where}: matches no parameter of this model{_suggestion(pattern, paths)}")
        if not any(groups[path] in trained for path in there):
            raise UserError(
                f"{where}: nothing that it matches trains in this stage (trainable: {stage.trainable.kind})"
            )


def muon_note(stage: Stage, paths: Iterable[str], plan: Iterable[freezing.Episode]) -> str | None:
    """A line for a stage with Muon in which no matrix trains, so that AdamW does everything; None for other stages."""
    trained = {group for episode in plan for group in episode.groups}
    if stage.optimizer.kind != "muon" or any(
        is_matrix(path) and group in trained for path, group in freezing.grouped(paths).items()
    ):
        return None
    rate = stage.optimizer.adam_learning_rate or stage.optimizer.learning_rate
    return (
        f"stages.{stage.name}.optimizer: muon is for the matrices of the layers, of which none trains here (trainable: "
        f"{stage.trainable.kind}); all that trains has AdamW, with the rate {rate:g} unless learning_rates has another"
    )


def _factor(rate: float | str, base: float) -> float:
    return float(rate[:-1]) if isinstance(rate, str) else rate / base


def _specificity(pattern: str) -> tuple[int, str]:
    return sum(char not in "*?[]" for char in pattern), pattern


def _suggestion(pattern: str, paths: Iterable[str]) -> str:
    """The closest path or beginning of one; `*/lora` for lora."""
    paths, added = list(paths), f"*/{pattern.lower().removesuffix('s')}"
    if any(matches(added, path) for path in paths):
        return f"; did you mean '{added}'?"
    names = dict.fromkeys("/".join(path.split("/")[:end]) for path in paths for end in range(1, path.count("/") + 2))
    found = difflib.get_close_matches(pattern, names, 1, 0.5)
    first = ", ".join(dict.fromkeys(name.split("/")[0] for name in names))
    return f"; did you mean '{found[0]}'?" if found else f"; paths begin with {first}"
