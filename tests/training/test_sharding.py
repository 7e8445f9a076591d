"""The train step over eight devices: the same numbers, arrays where the rules put them, and no needless traffic."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from traffic import compile_step

from bertjax.config.schema.model import BertConfig
from bertjax.config.schema.training import MlmNspObjective, SpanQaObjective
from bertjax.models.compute_options import ComputeOptions
from bertjax.training import freezing
from bertjax.training.monitor.param_summary import model_summary
from bertjax.training.program import TrainProgram
from bertjax.training.state import TrainState
from bertjax.training.step import jit_train_step

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sharding_bert_fsdp4_tensor2.txt"
MESHES = {
    "data8": {"data": 8},
    "fsdp4_tensor2": {"fsdp": 4, "tensor": 2},
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
    "dcn2_fsdp2_tensor2": {"dcn": 2, "fsdp": 2, "tensor": 2},
    "dcn2_data4": {"dcn": 2, "data": 4},
}
SEQUENCE = {"sequence": "tensor"}  # positions of the residual stream over tensor
TASKS = {"pairs": (MlmNspObjective(), 1), "span": (SpanQaObjective(), 1), "packed_span": (SpanQaObjective(), 2)}
STEPS = 20


def begin(program: TrainProgram) -> TrainState:
    groups = freezing.param_groups(program.abstract_params())
    return program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))


def run(
    program: TrainProgram, batches: list[dict]
) -> tuple[list[float], dict[str, np.ndarray], dict[str, NamedSharding]]:
    state = begin(program)
    step, losses = jit_train_step(program, state), []
    for batch in batches:
        state, metrics = step(state, jax.device_put(batch, program.batch_sharding()))
        losses.append(metrics["loss"])
    where = {path: x.sharding for path, x in state.params.items()}
    return [float(loss) for loss in losses], jax.device_get(state.params), where


# ---- the same numbers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(make_program, make_rows) -> Callable[[str], tuple]:
    """Each task on one device: its batches, losses and final parameters."""
    kept: dict[str, tuple] = {}

    def get(task: str) -> tuple:
        if task not in kept:
            objective, groups = TASKS[task]
            batches = [make_rows(task.split("_")[-1], 16, groups=groups, seed=s) for s in range(STEPS)]
            kept[task] = (batches, *run(make_program(objective), batches)[:2])
        return kept[task]

    return get


SLOW = pytest.mark.slow
# One mesh for every run of the tests, the others for the slow ones.
TENSOR = [pytest.param(mesh, marks=() if "dcn" in mesh else SLOW) for mesh in MESHES if "tensor" in mesh]
EVERY = [pytest.param(mesh, marks=() if mesh == "data2_fsdp2_tensor2" else SLOW) for mesh in MESHES]
# A span's softmax does not see a shift, so the gradient of these is rounding, and Adam makes steps of it.
UNSEEN = ("heads/qa/bias", "layers/1/mlp/norm/bias")


@pytest.mark.parametrize(
    ("task", "mesh"),
    [
        ("pairs", "fsdp4_tensor2"),
        ("pairs", "dcn2_fsdp2_tensor2"),
        *(pytest.param("pairs", mesh, marks=SLOW) for mesh in ("data8", "data2_fsdp2_tensor2", "dcn2_data4")),
        *(pytest.param(task, mesh, marks=SLOW) for task in ("span", "packed_span") for mesh in MESHES),
    ],
)
def test_a_mesh_changes_nothing(make_program, single, task, mesh):
    """Twenty steps with dropout: the hash gives an element the same bits wherever it lives."""
    batches, expected_losses, expected = single(task)
    program = make_program(TASKS[task][0], **MESHES[mesh])
    losses, params, where = run(program, batches)
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=1e-5)
    for path, value in expected.items():
        tolerance = 1e-3 if task != "pairs" and path in UNSEEN else 1e-5
        np.testing.assert_allclose(params[path], value, rtol=0, atol=tolerance, err_msg=path)
    assert all(where[path].is_equivalent_to(s, expected[path].ndim) for path, s in program.param_shardings().items())
    assert len(set(losses)) == STEPS


@pytest.mark.parametrize("mesh", TENSOR)
def test_split_positions_change_nothing(make_program, single, mesh):
    """The residual stream in pieces along the row, with the dropout bits of the whole."""
    batches, expected_losses, expected = single("pairs")
    losses, params, _ = run(make_program(rules=SEQUENCE, **MESHES[mesh]), batches)
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=1e-5)
    for path, value in expected.items():
        np.testing.assert_allclose(params[path], value, rtol=0, atol=1e-5, err_msg=path)


@pytest.fixture(scope="module")
def micro(make_program, make_rows) -> tuple:
    """Two micro-batches a step, with dropout, on one device."""
    batches = [make_rows("pairs", 16, seed=s) for s in range(3)]
    return batches, *run(make_program(grad_accum=2), batches)[:2]


@pytest.mark.parametrize("mesh", EVERY)
def test_micro_batches_over_devices_change_nothing(make_program, micro, mesh):
    batches, expected_losses, expected = micro
    losses, params, _ = run(make_program(grad_accum=2, **MESHES[mesh]), batches)
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=1e-5)
    for path, value in expected.items():
        np.testing.assert_allclose(params[path], value, rtol=0, atol=1e-5, err_msg=path)


@SLOW
@pytest.mark.parametrize("rng", ["hash", "threefry"])
def test_slices_and_micro_batches_with_either_generator(make_program, make_rows, rng):
    """jax's own bits are drawn for the whole batch, so that such a program is left to the partitioner."""
    batches = [make_rows("pairs", 16, seed=s) for s in range(3)]
    execution = ComputeOptions(dropout_rng=rng)
    meshes = ({}, MESHES["dcn2_data4"])
    drawn = [replace(make_program(grad_accum=2, **axes), compute=execution) for axes in meshes]
    assert (drawn[1].manual_axes == ()) == (rng == "threefry")
    expected, found = (run(program, batches) for program in drawn)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)


@SLOW
def test_other_rules_change_nothing(make_program, make_rows):
    """Weights whole on every device and the batch over `data` alone: slower, and the same."""
    batches = [make_rows("pairs", 16, seed=s) for s in range(3)]
    expected = run(make_program(), batches)
    rules = {"embed": None, "heads": None, "batch": "data"}
    found = run(make_program(rules=rules, **MESHES["data2_fsdp2_tensor2"]), batches)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    assert found[2]["layers/0/attention/qkv/kernel"].is_fully_replicated


# ---- where arrays live ----------------------------------------------------------------------------------------------


def table(program: TrainProgram) -> list[str]:
    """path, shape and PartitionSpec of each parameter, without the totals that follow them."""
    params = program.abstract_params()
    text = model_summary(params, program.param_shardings(), freezing.param_groups(params))
    return [re.sub(r" +", " ", line.rsplit("  ", 1)[0]).strip() for line in text.split("\n\n")[0].splitlines()]


def test_bert_base_is_placed_as_the_golden_table_says(make_program):
    """BERT-base's widths, one layer: ZeRO-3 over fsdp, columns then rows over tensor, norms and small biases whole."""
    model = BertConfig(num_hidden_layers=1)
    program = make_program(MlmNspObjective(), model=model, **MESHES["fsdp4_tensor2"])
    program = replace(program, heads=("mlm", "nsp", "qa", "classifier"))
    lines = [line for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#")]
    expected = dict(re.sub(r" +", " ", line).split(" ", 1) for line in lines)
    found = dict(line.split(" ", 1) for line in table(program))
    wrong = [
        f"{path}: {found.get(path, 'missing')}, the table has {expected.get(path, 'no such line')}"
        for path in sorted(found.keys() | expected)
        if found.get(path) != expected.get(path)
    ]
    assert not wrong, (
        f"parameters moved ({GOLDEN.name}, columns: path, shape, axes):\n" + "\n".join(wrong)
        + "\nWanted? Then change these lines of the table, and say in the commit what it does to memory and traffic."
    )  # fmt: skip


def test_parameters_and_slots_are_born_in_their_shards(make_program):
    program = make_program(**MESHES["fsdp4_tensor2"])
    state, placed = begin(program), program.param_shardings()
    for path, x in state.params.items():
        assert x.sharding.is_equivalent_to(placed[path], x.ndim), path
        mu = state.opt_state[freezing.param_group(path)][0].mu[path]
        assert mu.sharding.is_equivalent_to(placed[path], x.ndim), path
    kernel = state.params["layers/1/attention/qkv/kernel"]
    assert kernel.shape == (32, 3, 32) and {s.data.shape for s in kernel.addressable_shards} == {(8, 3, 16)}
    held = sum(x.addressable_shards[0].data.size for x in state.params.values())
    assert held < sum(x.size for x in state.params.values()) / 8 * 1.35  # an eighth, and what is whole everywhere


# ---- what the partitioner says --------------------------------------------------------------------------------------

REMATERIALIZED = "Involuntary full rematerialization"


@pytest.fixture
def no_compile_cache() -> Iterator[None]:
    """A program out of the cache is not compiled, and its compiler says nothing."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("no_compile_cache")
def test_the_partitioners_complaint_can_be_heard(make_program, capfd):
    """The control of the test below: a change of sharding that needs the whole array on every device."""
    mesh = make_program(data=4, tensor=2).mesh
    place = jax.lax.with_sharding_constraint

    def clumsy(x: jax.Array) -> jax.Array:
        x = place(x * 2, NamedSharding(mesh, P("data", None, "tensor")))
        return place(jnp.sin(x), NamedSharding(mesh, P(None, ("tensor", "data"), None)))

    jax.jit(clumsy).lower(jax.ShapeDtypeStruct((8, 8, 8), jnp.float32)).compile()
    assert REMATERIALIZED in capfd.readouterr().err


@pytest.mark.usefixtures("no_compile_cache")
@pytest.mark.parametrize(
    ("task", "mesh", "execution"),
    [
        ("pairs", "fsdp4_tensor2", ComputeOptions()),
        ("pairs", "dcn2_fsdp2_tensor2", ComputeOptions()),
        pytest.param("pairs", "data2_fsdp2_tensor2", ComputeOptions(segments=(2,)), marks=SLOW),
        pytest.param("packed_span", "data2_fsdp2_tensor2", ComputeOptions(), marks=SLOW),
        pytest.param("packed_span", "fsdp4_tensor2", ComputeOptions(segments=(2,), remat="full"), marks=SLOW),
    ],
)
def test_the_partitioner_never_gives_up(make_program, make_rows, capfd, task, mesh, execution):
    objective, groups = TASKS[task]
    program = replace(make_program(objective, **MESHES[mesh]), compute=execution)
    compile_step(program, make_rows(task.split("_")[-1], 16, groups=groups))
    assert REMATERIALIZED not in capfd.readouterr().err
