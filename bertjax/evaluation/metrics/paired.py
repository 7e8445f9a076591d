"""Whether two systems differ on the same questions: McNemar's exact test and the paired bootstrap."""

import math
from typing import Any

import numpy as np

SAMPLES = 10_000
_DRAWS = 1 << 22  # numbers drawn at once


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided exact p-value of McNemar's test (1947), from the questions that only one system has right.

    Under the hypothesis that both are right equally often, the smaller count is binomial with probability 1/2. 1.0
    without such questions.
    """
    total, least = only_a + only_b, min(only_a, only_b)
    tail, term = 0, 1
    for wins in range(least + 1):
        tail += term
        term = term * (total - wins) // (wins + 1)
    return min(1.0, 2 * tail / 2**total)


def paired_bootstrap(differences: np.ndarray, seed: int, samples: int = SAMPLES) -> dict[str, Any]:
    """Resample the questions with replacement (Efron and Tibshirani 1993, chapters 13 and 16).

    differences: float64 [N], score of B minus score of A. -> {"difference": the mean, "low", "high": the 95 %
    percentile interval of the mean, "p": twice the smaller share of samples whose mean is <= 0 or >= 0, with one added
    to counts and samples, at most 1}. The same seed gives the same numbers.
    """
    differences = np.asarray(differences, np.float64)
    count = len(differences)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _DRAWS // count)
    for first in range(0, samples, step):
        rows = min(step, samples - first)
        means[first : first + rows] = differences[generator.integers(0, count, (rows, count))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    # sums of the same numbers in another order differ in the last bits
    near = 1e-12 * max(1.0, float(np.abs(differences).max()))
    below, above = int((means <= near).sum()), int((means >= -near).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (samples + 1))
    return {"difference": math.fsum(differences) / count, "low": float(low), "high": float(high), "p": p}
