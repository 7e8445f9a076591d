"""The benchmarks' own arithmetic, and that the GPU benchmark runs where only jax, flax and optax are installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import step_worker  # noqa: E402
from turns import take_turns  # noqa: E402


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_both_sides_of_the_loader_s_benchmark_load_the_same_batches(tmp_path: Path) -> None:
    """The script itself compares them, over the end of an epoch too."""
    options = ["--rows", "2400", "--batches", "2", "--rounds", "1", "--output", str(tmp_path / "found.json")]
    command = [sys.executable, str(BENCHMARKS / "loader.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads(done.stdout) and [found[case]["rows"] for case in ("mlm_128", "mlm_512")] == [2400, 600]
    for case in ("mlm_128", "mlm_512", "t5_568_to_512_114"):
        size = found[case]["bytes_per_row_on_disk"]
        assert size["after"] <= size["before"]  # equal where ArrayRecord fills few rows up to a block


@pytest.mark.slow
def test_the_loader_s_benchmark_notices_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    import loader

    monkeypatch.setattr(loader.RowByRow, "places", lambda self, k: np.zeros((3, self._size), np.int64))
    monkeypatch.setattr(sys, "argv", ["loader.py", "--rows", "600", "--batches", "1", "--rounds", "1"])
    with pytest.raises(AssertionError):
        loader.main()
