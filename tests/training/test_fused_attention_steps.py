"""Train steps with `attention: fused`, interpreted, against those with `xla`: BERT and T5, on one device and eight."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from t5_models import make_t5, train_t5

from bertjax.config.schema.training import AdamW, MlmNspObjective, SpanQaObjective
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.training import freezing
from bertjax.training.program import TrainProgram
from bertjax.training.step import jit_train_step

SLOW = pytest.mark.slow
MESHES = {
    "one": {},
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
    "dcn2_fsdp2_tensor2": {"dcn": 2, "fsdp": 2, "tensor": 2},
}
ADAMW = AdamW(learning_rate=1e-3)


def fused(program: TrainProgram, **options: object) -> TrainProgram:
    return replace(program, compute=replace(program.compute, attention="fused", **options))


def train_bert(program: TrainProgram, batches: list[dict]) -> tuple[list[float], dict[str, np.ndarray]]:
    groups = freezing.param_groups(program.abstract_params())
    state = program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))
    step, losses = jit_train_step(program, state), []
    for batch in batches:
        state, metrics = step(state, jax.device_put(batch, program.batch_sharding()))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


def assert_equal(found: tuple, expected: tuple, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert len(set(expected[0])) == len(expected[0])
    for path, value in expected[1].items():
        np.testing.assert_allclose(found[1][path], value, rtol=0, atol=tolerance, err_msg=path)


@pytest.mark.parametrize(
    ("mesh", "kind", "rules", "options"),
    [
        ("one", "pairs", {}, {}),
        pytest.param("one", "packed", {}, {}, marks=SLOW),
        pytest.param("one", "pairs", {}, {"remat": "dots", "segments": (2,)}, marks=SLOW),
        pytest.param("one", "pairs", {}, {"remat": "full"}, marks=SLOW),
        pytest.param("data2_fsdp2_tensor2", "packed", {}, {}, marks=SLOW),
        pytest.param("dcn2_fsdp2_tensor2", "pairs", {}, {}, marks=SLOW),
        pytest.param("data2_fsdp2_tensor2", "pairs", {"sequence": "tensor"}, {}, marks=SLOW),
    ],
)
def test_a_bert_step_is_that_of_xla(make_program, make_rows, mesh, kind, rules, options):
    objective = SpanQaObjective() if kind == "packed" else MlmNspObjective()
    row_kind, groups = ("span", 2) if kind == "packed" else ("pairs", 1)
    batches = [make_rows(row_kind, 16, groups=groups, seed=seed) for seed in range(2)]
    make = lambda **sizes: make_program(objective, optimizer=ADAMW, **sizes)  # noqa: E731
    expected = train_bert(make(), batches)
    found = train_bert(fused(make(rules=rules, **MESHES[mesh]), **options), batches)
    # what a span's softmax does not see has gradients of rounding, of which Adam makes steps
    unseen = {"heads/qa/bias", "layers/1/mlp/norm/bias"} if kind == "packed" else set()
    expected = expected[0], {path: x for path, x in expected[1].items() if path not in unseen}
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("mesh", "rules", "sizes"),
    [
        pytest.param("one", {}, {}, marks=SLOW),
        pytest.param("one", {}, {"model_type": "umt5", "segments": (2,)}, marks=SLOW),
        pytest.param("data2_fsdp2_tensor2", {}, {}, marks=SLOW),
        pytest.param("dcn2_fsdp2_tensor2", {}, {"segments": (2,)}, marks=SLOW),
        pytest.param("data2_fsdp2_tensor2", {"sequence": "tensor"}, {}, marks=SLOW),
    ],
)
def test_a_t5_step_is_that_of_xla(mesh, rules, sizes):
    """Encoder, decoder and cross attention, and the bias that all layers of a stack share."""
    optimizer = AdamW(learning_rate=1e-3, warmup_steps=0)
    expected_losses, state = train_t5(make_t5(optimizer=optimizer, **sizes), 2)
    expected = jax.device_get(state.params)
    program = replace(make_t5(optimizer=optimizer, mesh=MESHES[mesh], **sizes), rules=merge_rules(rules))
    losses, state = train_t5(fused(program), 2)
    assert_equal((losses, jax.device_get(state.params)), (expected_losses, expected), 1e-4)
    moved = [path for path in expected if "position" in path]
    assert moved
