"""The call of benchmarks/gpu.py and tpu.py: its time budget, what it leaves out, its processes and its report."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import step_worker  # noqa: E402
from accelerator import steps  # noqa: E402
from accelerator.budget import Budget  # noqa: E402
from accelerator.cases import OURS, RATIOS, ROWS, SIDES, Part, list_parts  # noqa: E402
from accelerator.processes import OUT_OF_TIME, Worker, environment, run_script  # noqa: E402


def call(script: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / script), "--device", "cpu", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_budget_learns_from_the_parts_so_far() -> None:
    now = [0.0]
    budget = Budget(10, clock=lambda: now[0])
    assert budget.fits(600) and not budget.fits(601)
    now[0] = 100.0
    budget.finished(estimate=50, seconds=100)
    assert (budget.left(), budget.used()) == (500, 100)
    assert budget.fits(250) and not budget.fits(251)  # twice as slow as estimated
    budget.finished(estimate=1000, seconds=0)
    assert budget.expect(100) == 50  # never less than half


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_shape_has_its_parts_and_the_wanted_ones_are_first(platform: str) -> None:
    parts = list_parts(platform)
    names = [part.name for part in parts]
    assert len(set(names)) == len(names) and names[:3] == ["base512", "kernels", "t5_base"]
    assert {part.shape for part in parts if part.kind == "steps"} == set(ROWS[platform])
    assert {"base512_packed", "large512_packed", "fp8", "fp8_parity", "decode"} <= set(names)
    assert "base128_packed" not in names
    assert {side for part in parts for side in part.sides} <= set(SIDES)
    assert {side for _, *both in RATIOS for side in both} <= set(SIDES)
    with_dropout = [side for side in OURS[platform] if "attention_dropout" not in SIDES[side][1]]
    assert with_dropout == ["xla", "fused"]


def test_the_parts_of_a_gpu_fit_into_nine_minutes_by_their_estimates() -> None:
    wanted = [part for part in list_parts("gpu") if part.name not in ("base128", "large128", "t5_large")]
    assert sum(part.seconds for part in wanted) <= 9 * 60


def test_packed_rows_hold_whole_examples_and_cost_less_attention() -> None:
    shape = step_worker.SHAPES["tiny512"]
    rows = step_worker.batch(shape, 2, 0, packed=4)
    assert rows["segment_ids"].max() == 4 and (np.bincount(rows["segment_ids"][0])[1:] == 128).all()
    np.testing.assert_array_equal(rows["positions"][0], np.tile(np.arange(128), 4))
    np.testing.assert_array_equal(rows["cls_positions"], [[0, 128, 256, 384]] * 2)
    assert rows["nsp_labels"].shape == rows["nsp_weights"].shape == (2, 4)
    with pytest.raises(ValueError, match="3 examples"):
        step_worker.batch(shape, 2, 0, packed=3)
    plain, packed = (steps.row_flops(Part("x", "steps", "tiny512", packed=n)) for n in (1, 4))
    layers, hidden, S = shape[0], shape[1], shape[4]
    assert plain - packed == 3 * 4 * layers * hidden * (S * S - 4 * 128 * 128)


def test_without_time_everything_is_left_out_and_said(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "found.json"
    done = call("gpu.py", "--minutes", "0", "--shapes", "tiny512,t5_tiny", "--output", str(output))
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["parts"] == [] and report["device"] is None and report["minutes"] == 0
    left_out = {one["part"]: one["reason"] for one in report["left_out"]}
    expected = {"tiny512", "tiny512_packed", "t5_tiny", "kernels", "fp8", "fp8_parity", "decode"}
    assert set(left_out) == expected
    assert all("are left" in reason for reason in left_out.values())
    assert [json.loads(line)["left_out"] for line in done.stdout.splitlines()] == list(left_out)


@pytest.mark.parametrize(
    "words, named",
    [
        (["--shapes", "base513"], "base513"), (["--parts", "stesp"], "stesp"), (["--sides", "flash"], "flash"),
        (["--rounds", "0"], "--rounds"), (["--minutes", "-1"], "--minutes"), (["--minutes", "nan"], "--minutes"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_one_line(words: list[str], named: str) -> None:
    done = call("gpu.py", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("benchmarks/gpu.py: ")
    assert named in done.stderr


def test_a_process_that_hangs_or_fails_ends_with_a_reason() -> None:
    env = environment("cpu")
    began = time.monotonic()
    hanging = Worker(["-c", "import time; time.sleep(100)"], env)
    assert hanging.read(0.3) == {} and hanging.failed == OUT_OF_TIME
    assert hanging.process.poll() is not None and time.monotonic() - began < 20
    failing = Worker(["-c", "raise ValueError('no such kernel')"], env)
    assert failing.read(30) == {} and failing.failed == "ValueError: no such kernel"
    failing.write("1")  # as for a side that ended between two turns
    found, failed = run_script(["-c", "print('chatter'); print('{\"a\": 1}'); raise SystemExit('half')"], env, 30)
    assert found == [{"a": 1}] and failed == "half"
    assert run_script(["-c", "print('{\"a\": 2}')"], env, 30) == ([{"a": 2}], "")


def test_no_gpu_is_one_line() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / "tpu.py")], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("there is a TPU here")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("benchmarks/tpu.py: ")


@pytest.mark.slow
def test_one_call_measures_all_parts(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    words = ["--shapes", "tiny128", "--rounds", "1", "--steps", "1", "--parity-steps", "2", "--ablate-flags"]
    done = call("gpu.py", *words, "--sides", "xla,xla_nodrop,fused,cudnn", "--output", str(output))
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(output.read_text())
    assert report["device"] == "cpu" and report["left_out"] == [] and "jax" in report["versions"]
    parts = {part.pop("part"): part for part in report["parts"]}
    assert set(parts) == {"tiny128", "tiny128_packed", "kernels", "fp8", "fp8_parity", "flags"}
    assert parts["tiny128"]["sides"]["cudnn"] == {"failed": "cudnn does not run on cpu"}
    for name, sides in (("tiny128", ("xla", "xla_nodrop", "fused")), ("fp8", ("xla", "xla_fp8"))):
        losses = [parts[name]["sides"][side]["first_loss"] for side in sides]
        assert losses == pytest.approx([np.log(30522) + np.log(2)] * len(sides), abs=0.3)
        assert all(parts[name]["sides"][side]["median_ms"] > 0 for side in sides)
    same = [parts["tiny128"]["sides"][side]["first_loss"] for side in ("xla", "fused")]
    assert same[0] == pytest.approx(same[1], abs=2e-3)  # the same dropout bits
    assert parts["fp8"]["sides"]["xla"]["first_loss"] != parts["fp8"]["sides"]["xla_fp8"]["first_loss"]
    cases = {one["case"]: one["kernels"] for one in parts["kernels"]["results"]}
    assert set(cases) == {"plain", "dropout", "packed", "packed_dropout", "bias_dropout"}
    for kernels in cases.values():
        for name, error in kernels["fused"]["errors"].items():
            assert error["max_rel"] < 0.02, (name, error)
    assert parts["fp8_parity"]["results"][0]["finite"]
    assert len(parts["flags"]["ratios"]) == len(parts["flags"]["sides"]) - 1 > 2
