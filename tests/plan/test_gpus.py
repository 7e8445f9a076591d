"""GPUs that are not here: slow, and skipped where jax's CUDA compiler is not installed (pip install 'jax[cuda13]')."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.plan import topologies
from bertjax.plan.compile import build_stage_program

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(importlib.util.find_spec, PLUGINS)), reason="jax's CUDA compiler is not installed"),
]


@pytest.mark.parametrize(
    "topology, devices, name",
    [("h100:8", 8, "H100"), ("h200:2x8", 16, "H200"), ("a100:8", 8, "A100"), ("b200:8", 8, "B200")],
)
def test_the_command_plans_for_gpus(topology: str, devices: int, name: str, capfd):
    words = ["plan", str(ROOT / "configs/debug/gpu.yaml"), "--topology", topology, "--stage", "pretrain", "--json"]
    main([*words, "model.attention_probs_dropout_prob=0", "model.num_hidden_layers=2", "mesh.fsdp=4"])
    plan = json.loads(capfd.readouterr().out)
    (stage,) = plan["stages"]
    assert (plan["devices"], plan["device_kind"]) == (devices, f"NVIDIA {name}")
    assert stage["attention"]["kernel"] == "cudnn" and stage["fits"]
    assert {"all-gather", "all-reduce"} & {row["kind"] for row in stage["collectives"]}
    assert {row["over"] for row in stage["collectives"]} <= {"fsdp", "data", "data+fsdp"}
    assert stage["flops"]["program"] > 0 and 0 < stage["roofline"]["step"] < 1


@pytest.mark.parametrize("triton", [False, True])
def test_products_of_layers_in_fp8(triton: bool):
    """Three products for each of four dense layers have eight-bit operands, by cuBLASLt or in Triton's fusions.

    Without a device the compiler cannot time both and takes Triton where it may.
    """
    config = load(ROOT / "configs/bert/pretrain_base.yaml", [
        "model.num_hidden_layers=2", "run.segments=list", "run.dense_dtype=fp8", "stages.pretrain128.batch_size=32",
    ])  # fmt: skip
    devices = topologies.devices(topologies.parse("h200:1"))
    lowered = build_stage_program(config, config.stages[0], devices).lower()
    text = lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": triton}).as_text()
    if triton:
        dots = re.findall(r"gemm_fusion_dot[^ ]* \([^)]*f8e[45]m[23]\w*\[[^)]*f8e[45]m[23]\w*\[", text)
    else:
        dots = re.findall(r'custom_call_target="__cublas\$lt\$matmul\$f8"', text)
    assert len(dots) == 3 * 4 * 2
