"""The record of an evaluation kind, and its lookup from a section of the configuration."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from bertjax.config.schema import base
from bertjax.config.schema.run import Stage
from bertjax.evaluation.records import EvaluationRecord
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params

Run = Callable[[Params, int], dict[str, float]]  # (parameters, step) -> scores
Fit = Callable[[Params, int], Mapping[str, Any]]  # (parameters, step) -> JSON object to keep with the checkpoint
AbstractBatch = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class CountedRun:
    """An evaluation that says how many rows of data one run of it reads.

    fit: what it fits on its data for predictions (a threshold, say), computed once a step; None where it fits nothing.
    use: takes the `fit` of another evaluation, where its section names one (`threshold_from`).
    """

    run: Run
    rows: int
    fit: Fit | None = None
    use: Callable[[Fit], None] | None = None

    def __call__(self, params: Params, step: int) -> dict[str, float]:
        return self.run(params, step)


@dataclass(frozen=True)
class EvaluationKind:
    """What the program asks of an evaluation kind; the heads and rows that fit it are facts of its section."""

    # (run context, program, section, record of its files, names of the classes by id) -> the evaluation, data read
    build: Callable[[RunContext, TrainProgram, Any, EvaluationRecord, list[str] | None], Run]
    # (..., section, its widest batch) -> (key, function that lowers the program); equal keys share a program
    lower: Callable[[RunContext, TrainProgram, Any, AbstractBatch], tuple[Hashable, Callable[[], Any]]]
    # whether the data of a section are questions with answers, which `qa-report` can ask
    asks_questions: Callable[[Any], bool] = lambda config: False
    # before anything is prepared: (section, base) -> what its data or this installation lack, a line each
    problems: Callable[[Any, Path], Iterable[str]] = lambda config, base: ()
    # (section, stage) -> the names of all scores that it can give, for `keep_best`; None where they are not known
    scores: Callable[[Any, Stage], Collection[str] | None] = lambda config, stage: None
    # section -> about how many training rows take as long as one row of it; default: a forward pass
    row_cost: Callable[[Any], float] = lambda config: 1 / 3

    def cost(self, config: Any, run: Run) -> float:
        """About how many training rows take as long as one run; 0 if its rows are not counted."""
        return run.rows * self.row_cost(config) if isinstance(run, CountedRun) else 0.0


def record_of(section: base.Section) -> EvaluationKind:
    """Raises TypeError for a kind without a record."""
    return base.record_of(section, EvaluationKind)
