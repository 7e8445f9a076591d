"""Aggregates of cloze scores and paired tests of their differences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertjax.evaluation.metrics.paired import SAMPLES, mcnemar, paired_bootstrap
from bertjax.evaluation.predictors.masked_scores import MaskScore


def aggregate(scores: Sequence[MaskScore]) -> dict[str, float]:
    """Mean reciprocal rank, accuracy at 1 and 10 in percent, and mean log-probability (nats) of the gold words."""
    ranks = np.array([score.rank for score in scores])
    return {
        "mean_reciprocal_rank": float((1 / ranks).mean()),
        "accuracy@1": float(100 * (ranks == 1).mean()),
        "accuracy@10": float(100 * (ranks <= 10).mean()),
        "mean_log_probability": float(np.mean([score.log_probability for score in scores])),
    }


def counts(a: Sequence[MaskScore], b: Sequence[MaskScore]) -> dict[str, int]:
    """Masks whose gold word has a better (smaller) rank in B, in A, or the same in both; and who has it first."""
    pairs = [(one.rank, other.rank) for one, other in zip(a, b, strict=True)]
    return {
        "won": sum(y < x for x, y in pairs),
        "lost": sum(y > x for x, y in pairs),
        "tied": sum(y == x for x, y in pairs),
        "only_a_first": sum(x == 1 != y for x, y in pairs),
        "only_b_first": sum(y == 1 != x for x, y in pairs),
    }


def paired_tests(a: Sequence[MaskScore], b: Sequence[MaskScore], seed: int) -> dict[str, Any]:
    """The exact sign test on ranks, McNemar's exact test on accuracy@1, and the paired bootstrap of B - A."""
    counted = counts(a, b)
    pairs = list(zip(a, b, strict=True))
    differences = {
        "log_probability": np.array([y.log_probability - x.log_probability for x, y in pairs]),
        "reciprocal_rank": np.array([1 / y.rank - 1 / x.rank for x, y in pairs]),
    }
    return {
        # the sign test of won against lost is the binomial test that McNemar's exact test is
        "sign_test": {"metric": "rank", "p": mcnemar(counted["lost"], counted["won"])},
        "mcnemar": {"metric": "accuracy@1", "p": mcnemar(counted["only_a_first"], counted["only_b_first"])},
        "bootstrap": bootstrap(differences, seed),
    }


def bootstrap(differences: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """The paired bootstrap of each named array of differences, B minus A."""
    found = {name: paired_bootstrap(values, seed) for name, values in differences.items()}
    return {"samples": SAMPLES, "seed": seed, **found}
