"""The parts of a batch are counted in one place, whatever the mesh and its rules."""

import numpy as np
import pytest

from bertjax.config.schema.run import Config, MeshConfig, Stage
from bertjax.errors import UserError
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.parallel import batches
from bertjax.parallel.mesh_shape import batch_shards
from bertjax.plan.sweep import MeshShape, smallest_batch
from bertjax.training.stage import plan as stage_plan

OVER_TENSOR = {"batch": ["dcn", "data", "fsdp", "tensor"], "vocab": None, "heads": None, "mlp": None}
CASES = [
    ({}, {"data": 4}, 4),
    ({}, {"tensor": 4}, 1),
    ({}, {"dcn": 2, "data": 2, "tensor": 2}, 4),
    (OVER_TENSOR, {"tensor": 4}, 4),
    (OVER_TENSOR, {"data": 2, "tensor": 2}, 4),
    ({"batch": ["fsdp"]}, {"data": 2, "fsdp": 4}, 4),
    ({"batch": None}, {"data": 4}, 1),
]
STAGE = {"name": "one", "data": {"source": {"kind": "stdlib_docs"}}, "steps": 1}


@pytest.mark.parametrize(("rules", "axes", "shards"), CASES)
def test_an_evaluation_batch_is_rounded_to_what_divides(make_program, rules, axes, shards):
    """With the batch over `tensor` too, batches of two rows were once kept for four parts and refused at the end."""
    program = make_program(rules=rules, **axes)
    assert program.batch_shards == shards
    for asked in (1, 2, 3, 8):
        size = round_up_batch(asked, program)
        assert asked <= size < asked + shards and size % shards == 0
        rows = batches.local_rows(program.batch_sharding(), size)
        assert len(np.arange(size)[rows]) == size


@pytest.mark.parametrize(("rules", "axes", "shards"), CASES)
def test_a_training_batch_is_checked_with_the_same_count(make_program, rules, axes, shards):
    program = make_program(rules=rules, **axes)
    stage_plan.check_batch(Stage(**STAGE, batch_size=2 * shards, grad_accum=2), program)
    if shards > 1:
        with pytest.raises(UserError, match=f"^stages.one.batch_size: {shards} rows do not divide over {shards} parts"):
            stage_plan.check_batch(Stage(**STAGE, batch_size=shards, grad_accum=2), program)


@pytest.mark.parametrize(("rules", "axes", "shards"), CASES)
def test_a_sweep_starts_at_the_same_count(rules, axes, shards):
    slices = axes.get("dcn", 1)
    config = Config(stages=[Stage(**STAGE, batch_size=1)], mesh=MeshConfig(dcn=slices, data=1, rules=rules))
    shape = MeshShape(axes.get("tensor", 1), axes.get("fsdp", 1), axes.get("data", 1))
    assert smallest_batch(config, config.stages[0], shape) == shards
    assert batch_shards({"dcn": 2, "data": 3, "fsdp": 5, "tensor": 7}, ("dcn", "tensor")) == 14
