"""GPUs that are not here: slow, and skipped where jax's CUDA compiler is not installed (pip install 'jax[cuda13]')."""

import importlib.util
import json
from pathlib import Path

import pytest

from bertjax.cli.main import main

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
