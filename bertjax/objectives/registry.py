"""Records of objectives, named by `implementation` of the sections in `config.schema.training.OBJECTIVES`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bertjax.config.schema import base
from bertjax.config.schema.distillation import Distillation
from bertjax.objectives.base import Objective
from bertjax.objectives.distillation import distill, soft_targets


@dataclass(frozen=True)
class ObjectiveKind:
    make: Callable[[Any, int], Objective]  # (section, number of tasks that the batches are mixed from) -> objective


BY_METHOD = ObjectiveKind(lambda section, tasks: section.make(tasks))  # of `bertjax.register_objective`


def record_of(section: base.Section) -> ObjectiveKind:
    """The record of an objective's section. Raises TypeError where its `implementation` names none."""
    return base.record_of(section, ObjectiveKind)


def build(section: base.Section, tasks: int = 1, distillation: Distillation | None = None) -> Objective:
    """The objective of a stage whose batches are mixed from `tasks` tasks; with `distillation`, a distilled one.

    Raises UserError for an objective that cannot be distilled.
    """
    objective = record_of(section).make(section, tasks)
    return objective if distillation is None else distill(objective, distillation, tasks)


def teacher_heads(section: base.Section, distillation: Distillation) -> tuple[str, ...]:
    """The heads of a teacher that a distilled objective reads. Raises UserError as `build`."""
    return soft_targets(record_of(section).make(section, 1), distillation).heads
