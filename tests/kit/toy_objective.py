"""An objective of the tests' own: is the id of a token even? `SECTION` and `RECORD` are all that it needs."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from bertjax.config.schema.base import Positive, Section
from bertjax.objectives.base import Batch, LossTerm, Objective, cross_entropy, is_correct, weighted_sums
from bertjax.objectives.registry import ObjectiveKind


class ToyObjective(Section):
    implementation: ClassVar[str] = "toy_objective:RECORD"
    heads: ClassVar[tuple[str, ...]] = ("toy",)
    preprocess: ClassVar[tuple[str, ...]] = ("toy", "bert_pairs")
    evaluations: ClassVar[tuple[str, ...]] = ("loss",)

    kind: Literal["toy"] = "toy"
    modulus: Positive = 2


def make(config: ToyObjective, tasks: int) -> Objective:
    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        return {"parity": jnp.maximum((batch["segment_ids"] > 0).sum(), 1).astype(jnp.float32)}

    def losses(model, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        logits = model.toy_logits(model.encode(batch["input_ids"], key=key))
        targets = batch["input_ids"] % config.modulus
        weights = (batch["segment_ids"] > 0).astype(jnp.float32)
        loss = cross_entropy(logits, targets)
        return {"parity": weighted_sums(loss, is_correct(logits, targets), weights, batch, tasks)}

    return Objective(("toy",), config.modulus, {"parity": 1.0}, normalizers, losses)


SECTION, RECORD = ToyObjective, ObjectiveKind(make)
