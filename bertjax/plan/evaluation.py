"""The compiled programs of a stage's evaluations, as evaluation/ runs them inside training."""

from collections.abc import Iterator
from typing import Any

from bertjax.evaluation.evaluators.registry import record_of
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.plan.batch import task_fields
from bertjax.plan.compile import StageProgram, abstract_batch


def evaluation_steps(opened: StageProgram) -> Iterator[tuple[str, Any]]:
    """(names of the evaluations, function that lowers their program) for each distinct program of a stage."""
    names: dict[Any, list[str]] = {}
    lowers: dict[Any, Any] = {}
    regression = opened.program.objective.num_labels == 1
    for config in opened.stage.evaluate:
        fields = task_fields(opened.config, config.data, regression)
        batch = abstract_batch(fields, round_up_batch(config.batch_size, opened.program), opened.program)
        key, lower = record_of(config).lower(opened.ctx, opened.program, config, batch)
        lowers[key] = lower
        names.setdefault(key, []).append(config.name)
    for key, lower in lowers.items():
        yield ", ".join(names[key]), lower
