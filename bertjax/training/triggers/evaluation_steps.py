"""The steps after which the evaluations of a stage run."""

from collections.abc import Mapping
from typing import Any

MOST = 10  # evaluations of a stage by `every: auto`, the last one included
LEAST_STEPS = 100  # between two of them
SHARE = 0.1  # of the stage's training, spent on them at most


def intervals(evaluations: Mapping[str, Any], steps: int, costs: Mapping[str, float], watched: str | None) -> dict:
    """{name of an evaluation: steps between two of them, or None for only at the end} of a stage with so many steps.

    evaluations: the `every` of each. costs: of one run of each in training steps, as far as known. `auto` evaluations
    share one interval: at most MOST in a stage, LEAST_STEPS apart, for SHARE of its steps; the one `watched` for early
    stopping always has MOST.
    """
    auto = [name for name, every in evaluations.items() if every == "auto" and name != watched]
    cost = sum(costs.get(name, 0.0) for name in auto)
    between = MOST - 1 if cost <= 0 else min(MOST - 1, int(SHARE * steps / cost))
    shared = max(-(-steps // (between + 1)), LEAST_STEPS) if between else None
    found = {name: every if isinstance(every, int) else None for name, every in evaluations.items()}
    found |= dict.fromkeys(auto, shared)
    if watched is not None and evaluations.get(watched) == "auto":
        found[watched] = max(steps // MOST, 1)
    return found
