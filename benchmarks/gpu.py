"""Training steps of BERT-base and BERT-large on one GPU: time and MFU, beside transformers' torch, in one run.

    python benchmarks/gpu.py                                    # all shapes, about ten minutes
    python benchmarks/gpu.py --shapes base512,large512 --rounds 5
    python benchmarks/gpu.py --device cpu --shapes tiny128      # the same code without a GPU: checks it only

Every side is a process of its own that keeps its model; they take turns, `--steps` steps at a time, in an order that is
reversed every round, so that clocks and heat are the same for all. The sides with `nodrop` (and cuDNN, which has none)
run without dropout on attention probabilities, all others with 0.1; hidden dropout is 0.1 everywhere. torch: bfloat16
autocast, SDPA attention, fused AdamW. MFU: the FLOPs of bertjax.models.bert.flops over the dense peak of the chip,
the same count for every side. Prints one JSON line per shape and rewrites the file after each. The parent process
never uses the GPU. Needs jax[cuda], flax, optax, pydantic and, for the other side, torch and transformers (a side
that cannot run is reported and left out): pip install pydantic transformers torch.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from step_worker import SHAPES, model_config

WORKER = Path(__file__).with_name("step_worker.py")
RESULTS = Path(__file__).with_name("results") / "gpu.json"
ROWS = {"base128": 128, "base512": 32, "large128": 64, "large512": 16}
CUDNN = {"attention": "cudnn", "attention_dropout": 0.0}
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "xla": ("ours", {"attention": "xla"}),
    "xla_nodrop": ("ours", {"attention": "xla", "attention_dropout": 0.0}),
    "cudnn": ("ours", CUDNN),
    "cudnn_scan": ("ours", CUDNN | {"segments": "scan"}),
    "cudnn_threefry": ("ours", CUDNN | {"dropout_rng": "threefry"}),
    "torch_eager": ("torch", {}),
    "torch_eager_nodrop": ("torch", {"attention_dropout": 0.0}),
    "torch_compile": ("torch", {"compiled": True}),
    "torch_compile_nodrop": ("torch", {"compiled": True, "attention_dropout": 0.0}),
}
RATIOS = (  # name: slower over faster if the claim holds
    ("torch_eager_over_xla", "torch_eager", "xla"),
    ("torch_compile_over_xla", "torch_compile", "xla"),
    ("torch_eager_over_cudnn", "torch_eager_nodrop", "cudnn"),
    ("torch_compile_over_cudnn", "torch_compile_nodrop", "cudnn"),
    ("xla_over_cudnn", "xla_nodrop", "cudnn"),
    ("scan_over_list", "cudnn_scan", "cudnn"),
    ("threefry_over_hash", "cudnn_threefry", "cudnn"),
)


class Side:
    """A worker process and its samples; `failed` says why there are none."""

    def __init__(self, name: str, shape: str, rows: int, device: str):
        kind, options = SIDES[name]
        options = options | {"rows": rows}
        if kind == "torch":
            options["device"] = {"gpu": "cuda"}.get(device, device)
        elif device == "cpu" and options.get("attention") == "cudnn":
            options["attention"] = "xla"
        env = os.environ | {
            "JAX_PLATFORMS": {"gpu": "cuda"}.get(device, device),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.name, self.samples, self.failed, self.ready = name, [], "", {}
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), kind, shape, json.dumps(options)],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):  # a library's chatter
            line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait(timeout=60)
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or [f"exit code {self.process.returncode}"]
        self.failed = lines[-1][:300]
        return {}

    def wait_ready(self) -> None:
        self.ready = self.read()

    def step(self, steps: int) -> None:
        if self.failed:
            return
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        if sample := self.read():
            self.samples.append(sample["seconds"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=120)
        self.errors.close()

    def summary(self, flops: int) -> dict[str, Any]:
        from bertjax.parallel.hardware import utilization

        if self.failed or not self.samples:
            return {"failed": self.failed or "no sample"}
        ms = sorted(1000 * seconds for seconds in self.samples)
        median = statistics.median(ms)
        mfu = utilization(flops, median / 1000, self.ready["device"], 1)
        return {
            "median_ms": round(median, 3),
            "min_ms": round(ms[0], 3),
            "max_ms": round(ms[-1], 3),
            "samples": len(ms),
            "mfu": None if mfu is None else round(mfu, 4),
            "first_loss": round(self.ready["losses"][0], 4),
        }


def measure(shape: str, names: list[str], rows: int, rounds: int, steps: int, device: str) -> dict[str, Any]:
    from bertjax.models.bert.flops import train_flops

    sides = [Side(name, shape, rows, device) for name in names]  # they compile at the same time
    for side in sides:
        side.wait_ready()
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            side.step(steps)
    for side in sides:
        side.close()
    length, predictions = SHAPES[shape][4:]
    flops = rows * train_flops(model_config(SHAPES[shape]), length, predictions)
    found = {side.name: side.summary(flops) for side in sides}
    ms = {name: x["median_ms"] for name, x in found.items() if "median_ms" in x}
    ratios = {name: round(ms[a] / ms[b], 3) for name, a, b in RATIOS if a in ms and b in ms}
    rates = {name: round(1000 * rows / x) for name, x in ms.items()}
    return {
        "shape": shape,
        "rows": rows,
        "steps_per_sample": steps,
        "ratios": ratios,
        "sequences_per_second": rates,
        "sides": found,
        "device": next((s.ready["device"] for s in sides if s.ready), None),
        "versions": {k: v for s in sides if s.ready for k, v in s.ready["versions"].items()},
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def refuse_without_gpu() -> None:
    check = [sys.executable, "-c", "import jax; assert jax.devices()[0].platform == 'gpu'"]
    env = os.environ | {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if subprocess.run(check, env=env, capture_output=True, check=False).returncode:
        print("benchmarks/gpu.py: jax finds no GPU here; --device cpu --shapes tiny128 tries the code", file=sys.stderr)
        sys.exit(2)


def write(path: Path, results: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(ROWS), help="of step_worker.py's SHAPES")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="steps between two looks at the clock")
    parser.add_argument("--scale", type=int, default=1, help="multiplies the rows of a batch")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--output", type=Path, help=f"default on a GPU: {RESULTS.name} in results/")
    arguments = parser.parse_args()
    if arguments.device == "gpu":
        refuse_without_gpu()
    output, results = arguments.output or (RESULTS if arguments.device == "gpu" else None), []
    for shape in arguments.shapes.split(","):
        rows = ROWS.get(shape, SHAPES[shape][3]) * arguments.scale
        sides = arguments.sides.split(",")
        results.append(measure(shape, sides, rows, arguments.rounds, arguments.steps, arguments.device))
        print(json.dumps(results[-1]), flush=True)
        if output:
            write(output, results)


if __name__ == "__main__":
    main()
