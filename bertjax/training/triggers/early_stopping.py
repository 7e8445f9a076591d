"""Early stopping: end a stage when a score has not improved for some evaluations.

The decision follows from the scores alone. A checkpoint precedes every evaluation of the score: its meta data have the
scores before it, and its own are added when the evaluation has ended. So a killed run decides as one that went on.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from bertjax.config.schema.evaluation import EarlyStopping
from bertjax.config.schema.run import Config, Stage
from bertjax.training.checkpoint.layout import sign

META_KEY = "early_stopping"  # in a step's meta data: [[step, score], ...] of the evaluations before it
History = list[tuple[int, float | None]]  # a score that is not finite is None


def stops_at(rule: EarlyStopping, history: Iterable[tuple[int, float | None]], best_mode: str = "auto") -> int | None:
    """The step at which a stage with these scores ends early; None if it goes on. best_mode: as for `keep_best`.

    A score improves if it is better than the best before it by more than `min_delta`; one that is not finite does not.
    """
    best, waited = -math.inf, 0
    for step, value in history:
        better = value is not None and sign(rule.metric, best_mode) * value > best + rule.min_delta
        best, waited = (sign(rule.metric, best_mode) * (value or 0.0), 0) if better else (best, waited + 1)
        if waited >= rule.patience:
            return step
    return None


class StopRule:
    """The scores of the metric of `early_stopping` in this stage so far; without the option it never stops."""

    def __init__(self, rule: EarlyStopping | None, best_mode: str) -> None:
        self.rule, self.best_mode = rule, best_mode
        self.history: History = []

    @property
    def evaluation(self) -> str | None:
        """The name of the evaluation that gives the score."""
        return self.rule.metric.partition("/")[0] if self.rule else None

    @property
    def step(self) -> int | None:
        """The step at which the stage has ended early; None while it goes on."""
        return stops_at(self.rule, self.history, self.best_mode) if self.rule else None

    def add(self, step: int, scores: Mapping[str, float]) -> None:
        """Add the scores of an evaluation, {"dev/f1": ...}; those without the metric count as none."""
        if self.rule and self.rule.metric in scores and step not in dict(self.history):
            value = float(scores[self.rule.metric])
            self.history.append((step, value if math.isfinite(value) else None))

    def restore(self, meta: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Take the history from a checkpoint's meta data and its own scores (none, if they are pending)."""
        self.history = [(int(step), value) for step, value in meta.get(META_KEY, ())]
        self.add(meta["step"], scores)

    @property
    def meta(self) -> dict[str, Any]:
        """What to save in the meta data of a checkpoint."""
        return {META_KEY: [list(entry) for entry in self.history]} if self.rule else {}

    def unknown_metric(self, scores: Mapping[str, float]) -> str | None:
        """What is wrong when the evaluation that should give the metric has other scores."""
        mine = [name for name in scores if name.partition("/")[0] == self.evaluation]
        if not self.rule or not mine or self.rule.metric in mine:
            return None
        return f"early_stopping.metric: there is no score '{self.rule.metric}'; the scores are {', '.join(mine)}"


def stopped_early(config: Config, stage: Stage, meta: Mapping[str, Any], scores: Mapping[str, float]) -> bool:
    """Whether a stage has stopped early by the meta data and scores of its last checkpoint."""
    rule = StopRule(stage.early_stopping, config.run.checkpoint.best_mode)
    rule.restore(meta, scores)
    return rule.step is not None
