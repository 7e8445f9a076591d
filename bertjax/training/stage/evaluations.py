"""The evaluations of a stage: when they are due, their scores, and whether these end the stage early."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertjax.config.schema.evaluation import Evaluation
from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import UserError
from bertjax.parallel.multihost.primary import run_on_primary
from bertjax.progress import reporter
from bertjax.training.monitor.callbacks import Callbacks
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.stage.plan import StagePlan
from bertjax.training.state import Params
from bertjax.training.triggers.early_stopping import StopRule
from bertjax.training.triggers.evaluation_steps import intervals


@dataclass(frozen=True)
class Evaluator:
    """An evaluation of a stage; `run(params, step)` returns its scores and writes its files.

    cost: about how many training rows take as long as one run of it; 0 if unknown. fit: what it fitted in this run, to
    keep with the checkpoint.
    """

    config: Evaluation
    run: Callable[[Params, int], dict[str, float]]
    cost: float = 0.0
    fit: Callable[[Params, int], Mapping[str, Any]] | None = None


class StageEvaluations:
    """The evaluators of a stage and what they have found so far.

    scores: the newest of each, {"dev/f1": ...}. fitted: what those of the last step that had some have fitted.
    stop_rule: decides by the scores whether the stage ends early. policy: which checkpoints are kept.
    """

    def __init__(
        self, evaluators: Sequence[Evaluator], plan: StagePlan, policy: CheckpointPolicy, tracker: Tracker,
        callbacks: Callbacks,
    ) -> None:  # fmt: skip
        self.evaluators, self.tracker, self.callbacks = evaluators, tracker, callbacks
        self.name, self.steps = plan.stage.name, plan.program.steps
        self.stop_rule = StopRule(plan.stage.early_stopping, policy.best_mode)
        self.scores: dict[str, float] = {}
        self.fitted: dict[str, Mapping[str, Any]] = {}
        self._every = intervals(
            {e.config.name: e.config.every for e in evaluators},
            self.steps,
            {e.config.name: e.cost / plan.stage.batch_size for e in evaluators},
            self.stop_rule.evaluation,
        )
        rule = self.stop_rule.rule
        also = [] if rule is None or rule.metric in policy.best_metrics else [rule.metric]
        # of the checkpoints also the best by the score of early stopping is kept
        self.policy = policy.model_copy(update={"keep_best": [*policy.best_metrics, *also]}) if also else policy

    def restore(self, meta: Mapping[str, Any], scores: Mapping[str, float], *, pending: bool) -> None:
        """Take what a checkpoint knows of them: its meta data and scores, more of which are `pending` or not."""
        self.scores = dict(scores)
        self.stop_rule.restore(meta, {} if pending else scores)

    def due(self, step: int) -> list[Evaluator]:
        """The evaluations to run after this step: at the end of the stage all of them."""
        return [e for e in self.evaluators if step == self.steps or self._is_due(e.config.name, step)]

    def _is_due(self, name: str, step: int) -> bool:
        every = self._every[name]
        return bool(every) and step % every == 0

    def needs_checkpoint(self, due: Sequence[Evaluator]) -> bool:
        """Whether checkpoints are compared by a score of one of these."""
        compared = {score.partition("/")[0] for score in self.policy.best_metrics}
        return any(e.config.name in compared for e in due)

    def run(self, due: Sequence[Evaluator], params: Params, step: int) -> dict[str, float]:
        """Run the evaluations that are due, and all of them if their scores end the stage -> {"dev/f1": ...}."""
        found: dict[str, float] = {}
        self.fitted = {}
        for evaluator in due:
            self._run_one(evaluator, params, step, found)
        if problem := self.stop_rule.unknown_metric(found):
            raise UserError(f"stages.{self.name}.{problem}")
        self.stop_rule.add(step, run_on_primary(lambda: found) if self.stop_rule.rule else found)
        if self.stop_rule.step is not None and step < self.steps:
            for evaluator in self.evaluators:
                if evaluator not in due:
                    self._run_one(evaluator, params, step, found)
        self.scores |= found
        return found

    def _run_one(self, evaluator: Evaluator, params: Params, step: int, found: dict[str, float]) -> None:
        name = evaluator.config.name
        with reporter.task(f"{self.name} {step}: evaluating '{name}'", finish=False):
            scores = evaluator.run(params, step)
            if evaluator.fit is not None and (fitted := evaluator.fit(params, step)):
                self.fitted[name] = fitted
        self.tracker.evaluation(self.name, step, name, scores)
        self.callbacks.call("on_evaluate", name, scores)
        found |= {f"{name}/{key}": value for key, value in scores.items()}
