"""Mixing rates: the share of each task in the rows of a stage."""

import hashlib
import math
from collections.abc import Mapping
from types import MappingProxyType

from bertjax.config.schema.data import Mixture
from bertjax.errors import UserError

MIN_SHARE = 1e-9  # of the examples: a task below it would never be read in any run


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
