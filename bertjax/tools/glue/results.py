"""Scores of the runs: read from their checkpoints, summarized over seeds, chosen among the points of a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bertjax.errors import UserError
from bertjax.evaluation.metrics.glue_average import bert_paper_average, leaderboard_average
from bertjax.report.record import is_finite, read_run
from bertjax.tools.glue.runs import Select, SubRun
from bertjax.tools.glue.tasks import GlueTask
from bertjax.training import validate
from bertjax.training.checkpoint.stage_files import run_stages


@dataclass(frozen=True)
class Result:
    """A finished run: its scores in percent by metric, at `step`. A run that diverged has none."""

    run: SubRun
    step: int | None
    scores: Mapping[str, float]
    diverged: str | None = None
    seconds: float | None = None  # of training
    more: Mapping[str, Any] = field(default_factory=dict)  # scores of the diagnostic set

    @property
    def choosing(self) -> float:
        return self.scores[self.run.task.choosing]

    def as_json(self) -> dict[str, Any]:
        about: dict[str, Any] = {"run": str(self.run.config.run_dir), "seed": self.run.seed, "step": self.step}
        about |= {"grid": dict(self.run.point)} if self.run.point else {}
        about |= {"scores": dict(self.scores)} | ({"ax": dict(self.more)} if self.more else {})
        return about | ({"diverged": self.diverged} if self.diverged else {"seconds": self.seconds})


def is_finished(run: SubRun, base: Path) -> bool:
    return validate.is_complete(run_stages(run.config, base)[-1])


def read_result(run: SubRun, base: Path, select: Select) -> Result:
    """The scores of a finished run, at its last step or the one that is best by the task's first metric."""
    (files,) = run_stages(run.config, base)
    checkpoints = files.checkpoints
    metrics = run.task.metrics
    best = metrics[run.task.choosing] if select == "best" else None
    step = checkpoints.best_step(best) if best is not None else checkpoints.committed_steps()[-1]
    found = checkpoints.scores_of(step)
    if absent := [score for score in metrics.values() if not is_finite(found.get(score))]:
        raise UserError(
            f"{run.config.run_dir}: step {step} has no finite score {absent[0]}; remove the folder, and run again"
        )
    scores = {metric: float(found[score]) for metric, score in metrics.items()}
    return Result(run, step, scores, seconds=training_seconds(run))


def training_seconds(run: SubRun) -> float | None:
    lines = [line for stage in read_run(run.config.run_dir).stages for line in stage.train]
    return max((float(line["elapsed"]) for line in lines if is_finite(line.get("elapsed"))), default=None)


@dataclass(frozen=True)
class TaskSummary:
    """The results of a task at the point of the grid that is best by the median of the choosing metric."""

    task: GlueTask
    results: Sequence[Result]  # at that point, one for each seed
    others: Sequence[Result] = ()  # at other points

    @property
    def scored(self) -> list[Result]:
        return [one for one in self.results if one.diverged is None]

    def statistics(self, metric: str) -> dict[str, float]:
        values = [one.scores[metric] for one in self.scored]
        return {"median": median(values), "min": min(values), "max": max(values)}

    @property
    def medians(self) -> dict[str, float]:
        return {metric: self.statistics(metric)["median"] for metric in self.task.metrics} if self.scored else {}

    def chosen(self, rule: str) -> Result:
        """The result with the median (of an even number the lower) or the best of the choosing metric."""
        ordered = sorted(self.scored, key=lambda one: one.choosing)
        return ordered[-1] if rule == "best" else ordered[(len(ordered) - 1) // 2]

    def as_json(self) -> dict[str, Any]:
        metrics = {metric: self.statistics(metric) for metric in self.task.metrics} if self.scored else {}
        made: dict[str, Any] = {"title": self.task.title, "metrics": metrics}
        made |= {"runs": [one.as_json() for one in self.results]}
        if self.others or any(one.run.point for one in self.results):
            made |= {"grid": dict(self.results[0].run.point), "other_points": [one.as_json() for one in self.others]}
        if ax := [one.more["matthews"] for one in self.scored if "matthews" in one.more]:
            made["ax"] = {"matthews": {"median": median(ax), "min": min(ax), "max": max(ax)}}
        return made


def summarize(task: GlueTask, results: Sequence[Result]) -> TaskSummary:
    """Choose the point of the grid: the best median of the choosing metric; a point that only diverged is last."""
    points: dict[str, list[Result]] = {}
    for one in results:
        points.setdefault(repr(sorted(one.run.point.items())), []).append(one)

    def rank(found: list[Result]) -> float:
        scored = [one.choosing for one in found if one.diverged is None]
        return median(scored) if scored else float("-inf")

    best = max(points.values(), key=rank)
    return TaskSummary(task, best, [one for found in points.values() if found is not best for one in found])


def averages(summaries: Sequence[TaskSummary]) -> dict[str, Any]:
    """The two averages, of the medians over seeds."""
    scores = {summary.task.name: summary.medians for summary in summaries}
    return {"bert_paper": bert_paper_average(scores), "glue": leaderboard_average(scores)}
