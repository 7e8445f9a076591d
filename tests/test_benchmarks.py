"""The benchmarks' own arithmetic, and that the GPU benchmark runs where only jax, flax and optax are installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import ahead  # noqa: E402
import step_worker  # noqa: E402
from turns import take_turns  # noqa: E402

# A loop of four around one gather and one reduction; the gather is spread over two fusions, as TPU programs are.
HLO = """HloModule jit_step

%start (p: bf16[2,8]) -> bf16[8,8] {
  %p = bf16[2,8]{1,0} parameter(0)
  %all-gather.1 = bf16[8,8]{1,0} all-gather(%p), channel_id=1, frontend_attributes={chain_id="0"}
}

%done (p: bf16[2,8]) -> bf16[8,8] {
  %p = bf16[2,8]{1,0} parameter(0)
  %all-gather.2 = bf16[8,8]{1,0} all-gather(%p), channel_id=1, frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.1 (p: f32[8,8]) -> f32[2,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %all-reduce.7 = f32[8,8]{1,0} all-reduce(%p), to_apply=%add
}

%body (s: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %f.1 = bf16[8,8]{1,0} fusion(%s), kind=kCustom, calls=%start
  %f.2 = bf16[8,8]{1,0} fusion(%f.1), kind=kCustom, calls=%done
  %f.3 = f32[2,8]{1,0} fusion(%f.2), kind=kCustom, calls=%all-reduce-scatter.1
  %c.1 = bf16[8,8]{1,0} custom-call(%f.2), custom_call_target="tpu_custom_call", metadata={op_name="splash_mha_fwd"}
}

%condition (s: (s32[], bf16[2,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[2,8]) -> f32[] {
  %while.1 = (s32[], bf16[2,8]{1,0}) while(%t), condition=%condition, body=%body
  %all-reduce.9 = (f32[4]{0}, f32[]) all-reduce(%x, %y), to_apply=%add
}
"""


def test_collectives_and_kernels_are_counted_as_often_as_they_run():
    kib = 2**-10
    assert ahead.kernels(HLO) == {"splash_mha_fwd": 4}
    counts = {kind: found["count"] for kind, found in ahead.collectives(HLO).items()}
    assert counts == {"all-gather": 4, "reduce-scatter": 4, "all-reduce": 1}
    large = HLO.replace("8,8]", "8192,8]")
    mib = {kind: found["mib"] for kind, found in ahead.collectives(large).items()}
    assert mib["all-gather"] == pytest.approx(4 * 8192 * 8 * 2 * kib**2)
    assert mib["reduce-scatter"] == pytest.approx(4 * 8192 * 8 * 4 * kib**2)


def test_full_head_is_the_same_task():
    """The masked positions keep their ids and weights wherever they stand."""
    rows = step_worker.batch(step_worker.SHAPES["tiny128"], 3, 0)
    every = step_worker.full_head(rows)
    for b in range(3):
        real = np.flatnonzero(every["masked_weights"][b])
        np.testing.assert_array_equal(real, rows["masked_positions"][b])
        np.testing.assert_array_equal(every["masked_ids"][b][real], rows["masked_ids"][b])


def test_turns_reverse_and_the_first_round_does_not_count():
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name) or 0.0) for name in "ab"}
    found = take_turns(steps, rounds=2)
    assert "".join(order) == "ab" + "ba" + "ab"
    assert [found[name]["samples"] for name in "ab"] == [2, 2]


def test_worker_needs_no_data_libraries():
    """On a machine made for measuring, grain, array_record and datasets may be missing."""
    hidden = "array_record datasets grain tensorflow tensorflow_datasets orbax transformers"
    code = f"""
import sys
for name in {hidden!r}.split():
    sys.modules[name] = None
sys.path.insert(0, {str(BENCHMARKS)!r})
import step_worker
run = step_worker.ours((1, 32, 2, 2, 16, 2), 2, attention="xla")
print(float(run()))
"""
    env = {"JAX_PLATFORMS": "cpu", "PATH": "", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) == pytest.approx(np.log(30522) + np.log(2), abs=0.3)  # untrained: uniform guesses


@pytest.mark.slow
@pytest.mark.parametrize("script", ["ablate.py", "unfreeze.py"])
def test_scripts_run(script: str) -> None:
    command = [sys.executable, str(BENCHMARKS / script), "--shapes", "tiny128", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    if script == "ablate.py":
        first = {name: variant["first_loss"] for name, variant in found["variants"].items()}
        assert first["full_head"] == pytest.approx(first["shipped"], abs=2e-2)
    else:
        flops = [row["flops_ratio"] for row in found["table"]]
        assert flops[0] == 1 and flops[1] > flops[2] >= 1  # fewer layers trained, fewer FLOPs


@pytest.mark.slow
def test_decoding_benchmark_draws_the_tokens_torch_draws() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    options = ["--shapes", "t5_mini", "--inputs", "16", "--tokens", "4", "--rounds", "1"]
    command = [sys.executable, str(BENCHMARKS / "decode.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["way"], one["same_tokens"]) for one in found] == [("greedy", 1.0), ("beam4", 1.0)]


def test_gpu_benchmark_refuses_without_a_gpu() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("there is a GPU here")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("benchmarks/gpu.py: ")
