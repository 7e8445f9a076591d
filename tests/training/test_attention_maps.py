"""Attention maps of models that are sharded over eight devices are those of one device."""

import jax
import numpy as np
import pytest
from t5_models import make_t5
from t5_models import rows as t5_rows

from bertjax.training.program import MeshJit


def maps(program, batch, names) -> list[np.ndarray]:
    """The attention of each layer, as `AttentionReader` computes it."""

    def run(params, batch):
        return program.build_model(params).attention_probabilities(*(batch[name] for name in names))

    params = program.initialize(jax.random.key(1))
    put = jax.device_put({name: batch[name] for name in names}, program.batch_sharding())
    found = MeshJit(jax.jit(run), program.mesh, program.rules)(params, put)
    return [np.asarray(x) for x in jax.device_get(found)]


def assert_same(expected: list[np.ndarray], found: list[np.ndarray]) -> None:
    assert len(expected) == len(found) == 2
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "rules"), [({"data": 2, "fsdp": 2, "tensor": 2}, {}), ({"fsdp": 4, "tensor": 2}, {"sequence": "tensor"})]
)
def test_bert(make_program, make_rows, mesh, rules):
    names, batch = ("input_ids", "token_type_ids", "segment_ids", "positions"), make_rows("pairs", 8)
    assert_same(maps(make_program(), batch, names), maps(make_program(rules=rules, **mesh), batch, names))


def test_t5():
    names, batch = ("input_ids", "segment_ids"), t5_rows(8, 0)
    sharded = make_t5(mesh={"data": 2, "fsdp": 2, "tensor": 2})
    assert_same(maps(make_t5(), batch, names), maps(sharded, batch, names))
