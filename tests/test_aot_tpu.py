"""The real train step compiles for TPU pods that are not here (jax.experimental.topologies and libtpu's compiler).

Slow, and skipped where libtpu is not installed: pip install libtpu. Compiling proves that a step lowers and fits, and
which collectives and kernels it has; not that it is fast or right.
"""

import importlib.util
import json
import os
from collections import Counter
from math import prod
from pathlib import Path

import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import build, load
from bertjax.errors import UserError
from bertjax.parallel.hardware import CHIPS_BY_NAME, find_chip
from bertjax.plan import topologies
from bertjax.plan.compile import build_stage_program, compile_lowered
from bertjax.plan.hlo.collectives import find_collectives
from bertjax.plan.hlo.module import HloModule, custom_kernels

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
    pytest.mark.filterwarnings("default"),  # libtpu's own
]
MINI = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
NO_DROPOUT = {"attention_probs_dropout_prob": 0.0}


def made(config, topology: str) -> dict:
    """Of the first stage's train step: bytes of one device, {kind: number of collectives}, {kernel: calls}.

    `arrays` are the shapes of all results outside of fusions.
    """
    devices = topologies.devices(topologies.parse(topology, config.mesh.dcn))
    outcome = compile_lowered(build_stage_program(config, config.stages[0], devices).lower, dump=True)
    assert outcome.compiled is not None, outcome.reason
    memory, module, counts = outcome.compiled.memory_analysis(), HloModule.parse(outcome.text), Counter()
    for one in find_collectives(module):
        counts[one.kind] += one.count
    kept = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "bytes": kept + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "collectives": dict(counts),
        "kernels": custom_kernels(module),
        "arrays": {array.shape for op in module.executed_ops if not op.fused for array in op.operation.result},
    }


def scores(found: dict, rows: int, heads: int, length: int) -> set[tuple[int, ...]]:
    """Arrays as large as the scores of so many rows and heads of a device, with two axes of this length."""
    size = rows * heads * length**2
    return {shape for shape in found["arrays"] if shape.count(length) > 1 and prod(shape) >= size}


@pytest.fixture(scope="module", autouse=True)
def quiet_libtpu():
    before = dict(os.environ)
    found = topologies.compiler_env(topologies.parse("v5e:2x4"))
    os.environ.update({name: value for name, value in found.items() if "TPU" in name})
    yield
    os.environ.clear()
    os.environ.update(before)


def compiled(
    topology: str, *, model: dict, mesh: dict, rows: int, length: int, pack: bool = False, run: dict | None = None,
    **stage,
) -> dict:  # fmt: skip
    pairs = {"kind": "bert_pairs", "sequence_length": length, "pack": pack}
    task = {"source": {"kind": "stdlib_docs"}, "preprocess": pairs}
    settings = {"name": "pretrain", "data": task, "steps": 1000, "batch_size": rows} | stage
    return made(build({"model": model, "mesh": mesh, "run": run or {}, "stages": [settings]}), topology)


def fits(found: dict) -> bool:
    return found["bytes"] < CHIPS_BY_NAME["v5e"].memory


def test_base_with_attention_dropout_takes_the_fused_kernel():
    found = compiled("v5e:2x4", model={}, mesh={}, rows=256, length=128)
    assert found["kernels"] == {"fused_attention_forward": 12, "fused_attention_backward": 12}
    assert set(found["collectives"]) == {"all-reduce"}  # plain data parallelism moves gradients and nothing else
    assert fits(found)


@pytest.mark.parametrize("pack", [True, False])
def test_no_scores_are_left_with_attention_dropout(pack: bool):
    """Split over rows and heads; with XLA's attention, the arrays of scores are there."""
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    model = MINI | {"intermediate_size": 768}  # no device has as many columns as positions
    sizes = {"model": model, "mesh": mesh, "rows": 32, "length": 512, "pack": pack}
    found, plain = (compiled("v5e:2x4", **sizes, run={"attention": kernel}) for kernel in ("auto", "xla"))
    layers = MINI["num_hidden_layers"]
    assert found["kernels"] == {"fused_attention_forward": layers, "fused_attention_backward": layers}
    assert "all-to-all" not in found["collectives"]
    assert not scores(found, 8, 2, 512) and scores(plain, 8, 2, 512) and plain["kernels"] == {}
    assert found["bytes"] < plain["bytes"]


def test_packed_rows_run_splash_split_over_batch_and_heads():
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    found = compiled("v5e:2x4", model=MINI | NO_DROPOUT, mesh=mesh, rows=32, length=512, pack=True)
    assert sorted(name.split("_")[2] for name in found["kernels"]) == ["dkv", "fwd"]  # one fused backward kernel
    assert set(found["kernels"].values()) == {MINI["num_hidden_layers"]}
    assert found["collectives"]["reduce-scatter"] >= 1
    assert "all-to-all" not in found["collectives"]
    assert fits(found)


def test_micro_batches_on_a_pod():
    found = compiled(
        "v5e:16x16", model=MINI | NO_DROPOUT, mesh={"fsdp": 16}, rows=1024, length=128, grad_accum=2,
    )  # fmt: skip
    assert set(found["kernels"].values()) == {2 * MINI["num_hidden_layers"]}
    assert "all-to-all" not in found["collectives"]
    assert fits(found)


@pytest.mark.parametrize("mesh", [{"fsdp": 4}, {"fsdp": 2, "tensor": 2}, {}], ids=str)
def test_micro_batches_on_eight_chips(mesh: dict):
    """Reduce-scatters in a loop, in whose sums the compiler failed (see `accumulate_gradients`)."""
    found = compiled("v5e:2x4", model=MINI, mesh=mesh, rows=64, length=128, grad_accum=2)
    assert "all-to-all" not in found["collectives"] and fits(found)


def test_heads_that_the_mesh_does_not_divide_stay_whole():
    odd = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768}
    found = compiled("v5e:2x4", model=odd | NO_DROPOUT, mesh={"data": 4, "tensor": 2}, rows=32, length=128)
    assert set(found["kernels"].values()) == {2}


def test_t5_base_trains_on_v5e():
    """The paper's batch of 128 x 512 on eight chips, as its configuration says: plain data parallelism, and it fits."""
    config = load(ROOT / "configs" / "t5" / "pretrain_base.yaml")
    found = made(config, "v5e:2x4")
    assert set(found["collectives"]) == {"all-reduce"}
    # encoder, decoder and cross attention; 114 targets are padded to 128
    assert found["kernels"] == {"fused_attention_forward": 36, "fused_attention_backward": 36}
    assert not scores(found, 16, 12, 512)
    assert fits(found)


def test_t5_small_is_split_over_fsdp_and_tensor():
    config = load(ROOT / "configs" / "t5" / "pretrain_small.yaml", ["mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2"])
    found = made(config, "v5e:2x4")
    assert {"all-gather", "all-reduce"} <= set(found["collectives"]) and fits(found)


@pytest.mark.parametrize(
    "topology, devices", [("v3:2x2", 8), ("v4-8", 4), ("v5p-8", 4), ("v6e:2x4", 8), ("v5e:1x1", 1)]
)
def test_topologies_the_compiler_knows(topology: str, devices: int):
    parsed = topologies.parse(topology)
    found = topologies.devices(parsed)
    assert len(found) == parsed.size == devices
    assert topologies.parse(topology).chip == find_chip(found[0].device_kind)


def test_slices_are_numbered():
    found = topologies.devices(topologies.parse("v5e:4x4", 2))
    assert len(found) == 32 and {device.slice_index for device in found} == {0, 1}


def test_a_shape_the_compiler_does_not_know_is_bad_input():
    with pytest.raises(UserError, match="the compiler does not know it"):
        topologies.devices(topologies.parse("v5e:3x3"))


PLANNED = ["stages.pretrain.steps=100", "model.num_hidden_layers=2", "--topology", "v5e:2x4", "--stage", "pretrain"]


def test_the_command_plans_for_a_tpu(capfd):
    assert (
        main(["plan", str(ROOT / "configs/debug/cpu.yaml"), *PLANNED, "stages.pretrain.batch_size=64", "--json"]) == 0
    )
    plan = json.loads(capfd.readouterr().out)
    (stage,) = plan["stages"]
    assert plan["device_kind"] == "TPU v5 lite" and plan["verdict"] == "fits" and stage["fits"]
    assert 0 < stage["roofline"]["best"] <= stage["roofline"]["step"] < 1
    assert stage["attention"]["kernel"] == "fused" and "attention_probs_dropout_prob" in stage["attention"]["why"]


def test_what_does_not_fit_a_tpu_ends_with_1(capfd):
    rows = "stages.pretrain.batch_size=262144"
    assert main(["plan", str(ROOT / "configs/debug/cpu.yaml"), *PLANNED, rows]) == 1
    out = capfd.readouterr().out
    assert "DOES NOT FIT: needs " in out and out.endswith("does not fit: stage pretrain\n")


def test_a_single_device_has_no_collectives():
    config = load(ROOT / "configs" / "debug" / "cpu.yaml")
    assert made(config, "v5e:1x1")["collectives"] == {}
