"""A T5's train step over eight devices: the meshes of the BERT tests, the same losses and parameters."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from t5_models import ADAMW, make_t5, train_t5

from bertjax.config.schema.training import Adafactor
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.training.program import TrainProgram

MESHES = {
    "data8": {"data": 8},
    "fsdp4_tensor2": {"fsdp": 4, "tensor": 2},
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
    "dcn2_fsdp2_tensor2": {"dcn": 2, "fsdp": 2, "tensor": 2},
}
STEPS = 20
ADAFACTOR = Adafactor(min_dim_size_to_factor=16)  # at T5's own rate; a larger one makes more of a rounding
SLOW = pytest.mark.slow


def run(program: TrainProgram, steps: int = STEPS) -> tuple[list[float], dict[str, np.ndarray]]:
    losses, state = train_t5(program, steps)
    return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def single() -> dict[str, tuple]:
    return {}


@pytest.mark.parametrize(
    ("optimizer", "mesh"),
    [
        (ADAFACTOR, "data2_fsdp2_tensor2"),
        *(pytest.param(ADAFACTOR, mesh, marks=SLOW) for mesh in ("data8", "fsdp4_tensor2", "dcn2_fsdp2_tensor2")),
        *(pytest.param(ADAMW, mesh, marks=SLOW) for mesh in MESHES),
    ],
    ids=lambda x: x if isinstance(x, str) else x.kind,
)
@pytest.mark.parametrize("variant", ["tied", *(pytest.param(name, marks=SLOW) for name in ("v1_1", "scanned", "umt5"))])
def test_a_mesh_changes_nothing(single, optimizer, mesh, variant):
    """Twenty steps with dropout, as for BERT; Adafactor's factored slots are split where their parameter is."""
    options: dict = {
        "tied": {},
        "v1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "scanned": {"segments": (2,)},
        "umt5": {"model_type": "umt5", "segments": (2,)},
    }[variant]
    key = f"{optimizer.kind} {variant}"
    if key not in single:
        single[key] = run(make_t5(optimizer=optimizer, steps=100, **options))
    expected_losses, expected = single[key]
    found = run(make_t5(optimizer=optimizer, steps=100, mesh=MESHES[mesh], **options))
    assert_equal(found, (expected_losses, expected))
    assert len(set(found[0])) == STEPS


def assert_equal(found: tuple, expected: tuple) -> None:
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=0)
    for path, value in expected[1].items():
        np.testing.assert_allclose(found[1][path], value, rtol=0, atol=2e-4, err_msg=path)


@pytest.mark.parametrize("grad_accum", [1, pytest.param(2, marks=SLOW)])
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ("dcn2_fsdp2_tensor2", {"adapter_size": 8}),
        *(pytest.param(mesh, {}, marks=SLOW) for mesh in ("fsdp4_tensor2", "data2_fsdp2_tensor2")),
        pytest.param("dcn2_fsdp2_tensor2", {"segments": (2,)}, marks=SLOW),
        pytest.param("fsdp4_tensor2", {"num_heads": 3}, marks=SLOW),  # do not divide: left to the partitioner
        pytest.param("dcn2_fsdp2_tensor2", {"model_type": "umt5"}, marks=SLOW),
    ],
)
def test_split_positions_change_nothing(mesh, options, grad_accum):
    """Both stacks in pieces along their rows, with dropout, cross attention and micro-batches."""
    options = {"optimizer": ADAFACTOR, "steps": 100, "grad_accum": grad_accum} | options
    split = replace(make_t5(mesh=MESHES[mesh], **options), rules=merge_rules({"sequence": "tensor"}))
    assert_equal(run(split, steps=3), run(make_t5(**options), steps=3))
