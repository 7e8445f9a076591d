"""Mixing rates, and the order in which a stage reads its examples."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bertjax.config.schema.data import Mixture
from bertjax.data.preprocess.counter_rng import row_streams
from bertjax.errors import UserError

if TYPE_CHECKING:
    import grain

RATE_STEPS = 100  # grain mixes by integer weights; the rarest task gets this one
MIN_SHARE = 1e-9  # of the examples: a task below it would never be read in any run
SMALL_TASK_ROWS = 256  # grain's shuffle takes 65536 / rows steps for each row of a smaller task


class RowRef(NamedTuple):
    task: int
    epoch: int  # of that task
    index: int  # type: ignore[assignment]  # of the row in its store


def rates(
    counts: Mapping[str, int], mixture: Mixture, mixtures: Mapping[str, Mixture] = MappingProxyType({})
) -> dict[str, float]:
    """The share of each task in the examples of `mixture`, adding up to one; `counts`: examples in one epoch of each.

    `proportional` follows seqio.mixing_rate_num_examples: the count is clipped at K = `limit` first and raised to
    1/T second (arXiv 1910.10683 section 3.5.2). `equal` and `explicit` ignore the counts. A mixture inside another
    contributes its rate there times the shares of its own tasks, and a task in several branches adds up
    (seqio.Mixture.get_rate). Raises UserError for a task without examples, or with a share below MIN_SHARE.
    """
    return _rates(counts, mixture, mixtures, {})


def _rates(
    counts: Mapping[str, int], mixture: Mixture, mixtures: Mapping[str, Mixture], known: dict[str, dict[str, float]]
) -> dict[str, float]:
    """`rates`; `known` holds those of mixtures already visited, which may be inside many others."""
    found: dict[str, float] = {}
    for name, rate in _unnormalized_rates(counts, mixture, mixtures).items():
        if name in mixtures and name not in known:
            known[name] = _rates(counts, mixtures[name], mixtures, known)
        for task, share in (known[name] if name in mixtures else {name: 1.0}).items():
            found[task] = found.get(task, 0.0) + rate * share
    largest = max(found.values())
    if largest > 1e300:  # or the sum may be infinite
        found = {name: rate / largest for name, rate in found.items()}
    total = sum(found.values())
    shares = {name: rate / total for name, rate in found.items()}
    for name, share in shares.items():
        if share < MIN_SHARE:
            raise UserError(
                f"task '{name}' has a share of {share:.0e} in a mixture of {len(shares)} tasks and would never be "
                "drawn; raise the mixture's temperature (or its rate), or leave the task out"
            )
    return shares


def _unnormalized_rates(
    counts: Mapping[str, int], mixture: Mixture, mixtures: Mapping[str, Mixture]
) -> dict[str, float]:
    """The rates of the direct members of the mixture, not normalized."""
    empty = [name for name in mixture.mixture if name not in mixtures and counts[name] <= 0]
    if empty:
        raise UserError(f"task '{empty[0]}' has no examples and cannot be mixed; check its source")
    if isinstance(mixture.mixture, dict):
        return dict(mixture.mixture)
    if mixture.rate == "equal":
        return dict.fromkeys(mixture.mixture, 1.0)
    clipped = {name: min(counts[name], mixture.limit or counts[name]) for name in mixture.mixture}
    power, largest = 1.0 / mixture.temperature, max(clipped.values())
    unit = largest if power * math.log(largest) > 600 else 1  # only shares matter; the powers must fit into a float
    return {name: (count / unit) ** power for name, count in clipped.items()}


def to_row_rates(shares: Mapping[str, float], examples: Mapping[str, int], rows: Mapping[str, int]) -> dict[str, float]:
    """Shares of the examples -> shares of the rows: T5 mixes examples and packs afterwards, here rows are packed first,
    each with examples of one task, so a task with more examples in a row takes fewer rows."""
    taken = {name: share * rows[name] / examples[name] for name, share in shares.items()}
    total = sum(taken.values())
    return {name: share / total for name, share in taken.items()}


def task_seed(seed: int, *names: str) -> int:
    """A 32-bit seed for each (stage, task), so that no two share an order or masks."""
    return int.from_bytes(hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()[:4], "little")


def order(counts: Sequence[int], shares: Sequence[float], seeds: Sequence[int]) -> "grain.MapDataset":
    """An endless random-access stream of `RowRef`: position -> (task, epoch, index), with no iterator state.

    Each task is reshuffled in each of its epochs and visits every row exactly once per epoch. Tasks alternate in
    grain's fixed stride, so any window has the share of each to within one row.
    """
    import grain

    tasks = []
    for task, (count, seed) in enumerate(zip(counts, seeds, strict=True)):
        rows = grain.MapDataset.range(count)
        # repeat() counts on without end, so the position in a task's stream gives its epoch.
        rows = (rows if count < SMALL_TASK_ROWS else rows.shuffle(seed=seed)).repeat()
        tasks.append(rows.map_with_index(partial(_row_ref, task, count, seed)))
    if len(tasks) == 1:
        return tasks[0]
    # Rounded here because grain truncates, which costs the rarer tasks up to a hundredth.
    weights = [round(share / min(shares) * RATE_STEPS) for share in shares]
    return grain.MapDataset.mix(tasks, weights=weights)


def _row_ref(task: int, count: int, seed: int, at: int, row: int) -> RowRef:
    epoch = at // count
    return RowRef(task, epoch, small_task_order(count, seed, epoch)[row] if count < SMALL_TASK_ROWS else int(row))


@lru_cache(maxsize=1024)
def small_task_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The rows 0..count-1 of a small task in the order of one epoch: sorted by 64 hashed bits of each."""
    return tuple(np.argsort(row_streams(seed, epoch, np.arange(count))[:, 0], kind="stable").tolist())
