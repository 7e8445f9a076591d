"""Mixing rates and the order in which a stage sees its examples."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bertjax.config.data_schema import Mixture
from bertjax.errors import UserError

if TYPE_CHECKING:
    import grain

RATE_STEPS = 100  # grain mixes by whole numbers; the rarest task gets this many of them


class Place(NamedTuple):
    """Where one element of the stream comes from."""

    task: int
    epoch: int  # of that task
    index: int  # type: ignore[assignment]  # of the row in its store


def rates(counts: Mapping[str, int], mixture: Mixture) -> dict[str, float]:
    """The share of each task of `mixture`, adding up to one.

    Args:
        counts: examples in one epoch of each task.

    `proportional` follows seqio.mixing_rate_num_examples: the count is clipped at K = `limit` first and raised to
    1/T second (arXiv 1910.10683 section 3.5.2). `equal` and `explicit` take no notice of the counts.
    """
    names = list(mixture.mixture)
    empty = [name for name in names if counts[name] <= 0]
    if empty:
        raise UserError(f"task '{empty[0]}' has no examples and cannot be mixed; check its source")
    if isinstance(mixture.mixture, dict):
        raw = {name: float(rate) for name, rate in mixture.mixture.items()}
    elif mixture.rate == "equal":
        raw = dict.fromkeys(names, 1.0)
    else:
        clipped = {name: min(counts[name], mixture.limit or counts[name]) for name in names}
        raw = {name: count ** (1.0 / mixture.temperature) for name, count in clipped.items()}
    total = sum(raw.values())
    return {name: rate / total for name, rate in raw.items()}


def stream_seed(seed: int, *names: str) -> int:
    """A 32-bit seed of its own for each (stage, task): no two of them share an order or masks."""
    return int.from_bytes(hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()[:4], "little")


def order(counts: Sequence[int], shares: Sequence[float], seeds: Sequence[int]) -> "grain.MapDataset":
    """An endless random-access stream of `Place`: position -> (task, epoch, index), with no iterator state.

    Each task is reshuffled in each of its epochs and visits every row exactly once per epoch. Tasks alternate in
    grain's fixed stride, so any window holds its share of each to within one row.
    """
    import grain

    tasks = []
    for task, (count, seed) in enumerate(zip(counts, seeds, strict=True)):
        rows = grain.MapDataset.range(count).shuffle(seed=seed).repeat()
        # repeat() counts on without end, so the position in one task's stream tells its epoch.
        place = lambda at, index, task=task, count=count: Place(task, at // count, int(index))  # noqa: E731
        tasks.append(rows.map_with_index(place))
    if len(tasks) == 1:
        return tasks[0]
    # Rounded here because grain itself cuts the fractions off, which costs the rarer tasks up to a hundredth.
    weights = [round(share / min(shares) * RATE_STEPS) for share in shares]
    return grain.MapDataset.mix(tasks, weights=weights)
