"""The batches of a stage or of an evaluation of an opened model, to look at."""

from collections.abc import Iterator

import numpy as np

from bertjax.config.schema.run import Stage
from bertjax.data.pipeline.loader import BatchIterator, open_batches
from bertjax.data.sources.class_names import ClassSpec
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.heldout import open_heldout
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.progress import reporter
from bertjax.training import inputs
from bertjax.training.untrained_heads import label_head

Batch = dict[str, np.ndarray]


def stage_batches(
    restored: RestoredCheckpoint, stage: str | None = None, evaluation: str | None = None, start: int = 0
) -> Iterator[Batch]:
    """The training batches of a stage from step `start` to its last one, or all batches of an evaluation.

    The data are opened, and prepared where needed, before this returns. Raises UserError.
    """
    ctx, found = restored.ctx, _stage(restored, stage)
    own = found is ctx.config.stages[restored.stage]
    names = tuple(restored.labels) if own and restored.labels else None
    classes = None
    if label_head(found.objective.heads):
        classes = ClassSpec.of_objective(found.objective, names, required=names is not None)
    if evaluation is not None:
        held = {one.name: one for one in found.evaluate}
        if evaluation not in held:
            known = ", ".join(held) or "none"
            raise UserError(f"stage '{found.name}' has no evaluation '{evaluation}' (it has: {known})")
        inputs.check_evaluations(found, ctx.base, evaluation)
        heldout = open_heldout(ctx, restored.program, held[evaluation], classes)
        return _all(heldout.epoch_batches())
    inputs.check_data(ctx.config.model_copy(update={"stages": [found]}), ctx.base)
    batches = open_batches(
        ctx.config, found, ctx.tokenizer, base=ctx.base, cache=ctx.prepared_dir, report=reporter.say, classes=classes,
        fingerprint=ctx.fingerprint,
    )  # fmt: skip
    return _all(batches.iterate(start, max(start, batches.steps(found))))


def _all(batches: BatchIterator) -> Iterator[Batch]:
    with batches:
        yield from batches


def _stage(restored: RestoredCheckpoint, name: str | None) -> Stage:
    stages = restored.ctx.config.stages
    if name is None:
        return stages[restored.stage]
    if (found := next((stage for stage in stages if stage.name == name), None)) is None:
        raise UserError(f"there is no stage '{name}'; there are: {', '.join(stage.name for stage in stages)}")
    return found
