"""What a plan compiles and counts, against a real state on eight CPU devices."""

import jax
import numpy as np
import pytest

from bertjax.config.loading.load import load
from bertjax.errors import UserError
from bertjax.parallel import batches
from bertjax.plan import memory
from bertjax.plan.compile import CompileResult, StageProgram, build_stage_program, compile_lowered
from bertjax.plan.hlo.collectives import find_collectives
from bertjax.plan.hlo.module import HloModule
from bertjax.plan.sharding_notes import sharding_notes
from bertjax.plan.stages import evaluation_steps

MIXED = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]


@pytest.fixture(scope="module")
def opened(tiny_project, tiny_t5_project):
    """A stage of a tiny project over eight devices."""

    def make(family: str, stage: str, *overrides: str, episode: int | None = None) -> StageProgram:
        config = load({"bert": tiny_project, "t5": tiny_t5_project}[family] / "tiny.yaml", overrides)
        (wanted,) = (one for one in config.stages if one.name == stage)
        return build_stage_program(config, wanted, jax.devices()[:8], episode)

    return make


@pytest.fixture(scope="module")
def compiled(opened):
    """The same, compiled, each once."""
    cache: dict[tuple[str, ...], tuple[StageProgram, CompileResult]] = {}

    def make(*words: str) -> tuple[StageProgram, CompileResult]:
        if words not in cache:
            program = opened(*words)
            cache[words] = program, compile_lowered(program.lower)
        return cache[words]

    return make


def on_first_device(tree) -> int:
    """Bytes that the first device really holds."""
    first = jax.devices()[0]
    shards = (shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == first)
    return sum(shard.data.nbytes for shard in shards)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_bytes_are_those_of_a_real_state(family: str, opened):
    program = opened(family, "qa", *MIXED)
    params = program.program.initialize(jax.random.key(0))
    state = program.program.init_state(params, program.groups, jax.random.key(1))
    assert memory.parameter_bytes(program) == on_first_device({**state.params, **state.frozen})
    assert memory.optimizer_bytes(program) == on_first_device(state.opt_state)


@pytest.mark.parametrize("family", ["bert", pytest.param("t5", marks=pytest.mark.slow)])
def test_the_compiled_step_runs_on_what_it_was_compiled_for(family: str, compiled):
    program, outcome = compiled(family, "pretrain", *MIXED)
    params = program.program.initialize(jax.random.key(0))
    state = program.program.init_state(params, program.groups, jax.random.key(1))
    rows = {name: np.zeros(x.shape, x.dtype) for name, x in program.batch.items()}
    batch = batches.place(rows, program.program.batch_sharding(), program.stage.batch_size)
    state, metrics = outcome.compiled(state, batch)
    assert int(state.step) == 1 and np.isfinite(float(metrics["learning_rate"]))


def test_memory_adds_up(compiled):
    program, outcome = compiled("bert", "pretrain", *MIXED)
    found = memory.program_memory(program, outcome, program.batch.values())
    told = outcome.compiled.memory_analysis()
    assert found.parameters + found.optimizer + found.batch >= told.argument_size_in_bytes
    assert found.temporaries == told.temp_size_in_bytes > 0
    parts = (found.parameters, found.optimizer, found.batch, found.temporaries, found.outputs, found.program)
    assert found.total == sum(parts)


def moves(compiled, *words: str):
    program, outcome = compiled(*words)
    found = find_collectives(HloModule.parse(outcome.compiled.as_text()), dict(program.program.mesh.shape))
    return program, [one for one in found if one.bytes > 64]  # sums of losses and weights aside


def test_plain_data_parallelism_reduces_gradients_and_nothing_else(compiled):
    program, found = moves(compiled, "bert", "pretrain")
    assert {(one.kind, one.axes) for one in found} == {("all-reduce", "data")}
    total = sum(one.bytes for one in found)
    weights = memory.parameter_bytes(program)
    table = 4 * program.state.params["embeddings/word/embedding"].size
    # On the CPU a vector's gradient is summed as eight equal rows (models/layers/modules.py), and the tied table twice.
    vectors = sum(4 * x.size for x in program.state.params.values() if x.ndim < 2 or x.shape[-2] == 3)
    assert weights <= total <= weights + table + 8 * vectors


def test_fsdp_gathers_what_it_splits(compiled):
    program, found = moves(compiled, "bert", "pretrain", "mesh.data=1", "mesh.fsdp=8")
    split = [x for x in program.state.params.values() if "fsdp" in jax.tree.leaves(tuple(x.sharding.spec))]
    bytes_ = sum(4 * x.size for x in split)
    gathered = sum(one.bytes for one in found if one.kind == "all-gather")
    assert {one.axes for one in found} == {"fsdp"}
    assert 0.9 * bytes_ <= gathered <= 2.1 * bytes_  # for the forward pass, and for the backward pass again


def test_tensor_alone_splits_no_rows(compiled):
    program, found = moves(compiled, "bert", "pretrain", "mesh.data=4", "mesh.tensor=2")
    assert program.program.batch_shards == 4
    assert {one.axes for one in found if one.kind == "all-reduce"} >= {"data", "tensor"}


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_an_episode_trains_its_groups(family: str, opened):
    first, last = opened(family, "qa", episode=0), opened(family, "qa")
    sizes = [sum(x.size for x in program.state.params.values()) for program in (first, last)]
    assert (first.episode, last.episode, last.episodes) == (0, 1, 2) and sizes[0] < sizes[1]
    assert memory.parameter_bytes(first) == memory.parameter_bytes(last) and memory.optimizer_bytes(
        first
    ) < memory.optimizer_bytes(last)
    with pytest.raises(UserError, match="episodes 0 to 1; got 2"):
        opened(family, "qa", episode=2)


def test_adapters_train_little(opened):
    program = opened("t5", "qa", "stages.qa.trainable={kind: adapters, adapter_size: 4}")
    assert any("/adapter/" in path for path in program.state.params)
    assert memory.optimizer_bytes(program) < memory.parameter_bytes(program) / 4


@pytest.mark.parametrize("rows, near", [(9, (8, 16)), (3, (8,)), (1000001, (1000000, 1000008))])
def test_rows_that_do_not_divide_name_sizes_that_do(rows: int, near: tuple[int, ...], opened):
    with pytest.raises(
        UserError, match=f"stages.pretrain.batch_size: {rows} rows do not divide over 8 parts"
    ) as caught:
        opened("bert", "pretrain", f"stages.pretrain.batch_size={rows}")
    assert f"set {' or '.join(map(str, near))}" in str(caught.value)
    for size in near:
        opened("bert", "pretrain", f"stages.pretrain.batch_size={size}")


def test_micro_batches_divide_too(opened):
    with pytest.raises(UserError, match="8 parts of 4 micro-batches .*set 32"):
        opened("bert", "pretrain", "stages.pretrain.batch_size=24", "stages.pretrain.grad_accum=4")


def test_each_evaluation_program_compiles_once(opened):
    found = dict(evaluation_steps(opened("bert", "qa")))
    assert list(found) == ["squad"] and compile_lowered(found["squad"]).compiled
    decoding = {"kind": "text_to_text", "data": "{source: {kind: squad, files: [heldout.json]}, preprocess: &a {kind: text_to_text, prompt: squad, sequence_length: 32, target_length: 16}}"}  # fmt: skip  # noqa: E501
    one = f"{{kind: text_to_text, name: NAME, data: {decoding['data']}}}".replace("&a ", "")
    both = opened("t5", "qa", f"stages.qa.evaluate=[{one.replace('NAME', 'a')}, {one.replace('NAME', 'b')}]")
    assert [names for names, _ in evaluation_steps(both)] == ["a, b"]
    assert [names for names, _ in evaluation_steps(opened("bert", "pretrain"))] == ["mlm"]


# ---- refusals -------------------------------------------------------------------------------------------------------


def raising(error: Exception):
    def lower():
        raise error

    return lower


@pytest.mark.parametrize(
    ("message", "needs"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G "
            "of 15.75G hbm. Exceeded hbm capacity by 4.75G.\n\nTotal hbm usage >= 20.75G:\n    reserved 258.00M",
            "20.50 G",
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (146.69G) exceeds available HBM (15.75G). HLO module: jit__lambda. See https://openxla.org/",
            "146.69 G",
        ),
    ],
)
def test_too_little_memory_is_an_outcome(message, needs):
    """The words of libtpu 0.0.51."""
    found = compile_lowered(raising(jax.errors.JaxRuntimeError(message)))
    assert found.compiled is None and found.required_bytes == int(float(needs[:-2]) * 2**30)
    assert found.reason == f"needs {needs}iB of the 15.75 GiB available to the compiler"


def test_other_refusals_are_one_line():
    found = compile_lowered(raising(jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nto compile")))
    assert (found.reason, found.required_bytes) == ("INTERNAL: Mosaic failed to compile", None)
    found = compile_lowered(raising(ValueError("attention kernel 'splash' cannot be used: it does not run on cpu")))
    assert found.reason.startswith("attention kernel 'splash'")
    with pytest.raises(ValueError, match="a bug"):
        compile_lowered(raising(ValueError("a bug")))


# ---- rules ----------------------------------------------------------------------------------------------------------


def test_what_stays_whole_is_said(opened):
    lines = sharding_notes(opened("bert", "pretrain", "mesh.data=2", "mesh.tensor=4", "model.vocab_size=130"))
    assert any("rule vocab -> tensor=4: embeddings/word/embedding[130]" in line for line in lines)
    assert "2 attention heads do not divide over 4: every device computes all of them" in lines
    assert sharding_notes(opened("bert", "pretrain", *MIXED)) == []


def test_rows_that_a_sequence_rule_cannot_divide_are_said(opened):
    rule = "mesh.rules={sequence: tensor}"
    lines = sharding_notes(
        opened("t5", "qa", "mesh.data=2", "mesh.tensor=4", "tasks.questions.preprocess.target_length=18", rule)
    )
    assert "rule sequence -> tensor=4: rows of 18 positions do not divide and are replicated" in lines
    assert not any("rows of 32" in line for line in lines)


def test_layers_are_named_together(opened):
    rule = "mesh.rules={mlp: data, heads: null, vocab: null, batch: fsdp}"
    lines = sharding_notes(opened("bert", "pretrain", "mesh.data=8", "model.intermediate_size=36", rule))
    assert lines and all("layers/*" in line for line in lines if "rule mlp" in line)
    assert not any("layers/0" in line for line in lines)


def test_an_axis_that_splits_nothing_is_said(opened):
    rules = "mesh.rules={mlp: null, heads: null, vocab: null}"
    lines = sharding_notes(opened("t5", "pretrain", "mesh.data=4", "mesh.tensor=2", rules))
    assert lines == ["mesh.tensor=2 shards nothing: its devices all do the same work"]
