"""The record of an objective.

An objective is a section in `config.schema.training.OBJECTIVES` with its facts (heads, rows and evaluations that fit)
and the `ObjectiveKind` that the section's `implementation` names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bertjax.config.schema import base
from bertjax.objectives.base import Objective


@dataclass(frozen=True)
class ObjectiveKind:
    """Attributes:
    make: (section, number of tasks that the batches are mixed from) -> the objective.
    """

    make: Callable[[Any, int], Objective]


def record_of(section: base.Section) -> ObjectiveKind:
    """The record of an objective's section. Raises TypeError where its `implementation` names none."""
    return base.record_of(section, ObjectiveKind)


def build(section: base.Section, tasks: int = 1) -> Objective:
    """The objective of a stage whose batches are mixed from `tasks` tasks."""
    return record_of(section).make(section, tasks)
