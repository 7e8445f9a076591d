"""Training step of the shipped program against transformers' torch models (BERT, T5), interleaved in one run.

    python benchmarks/step.py --shapes mini128,base128 --rounds 7 --output benchmarks/results/step.json
    python benchmarks/step.py --before CHECKOUT --sides ours,before    # another checkout of this repository

Every side is a process of its own that keeps its model; they take turns, one step at a time, in an order that is
reversed every round, with a pause until the other's threads sleep. torch runs twice: in the environment as it
is, and with glibc set to keep freed memory (what our program does by itself). A sample during which other processes
used more than 10 % of the machine is dropped. Prints one JSON line a shape. Needs: pip install torch transformers.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

WORKER = Path(__file__).with_name("step_worker.py")
TUNED = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "PASSIVE",
}
SIDES = {"ours": ("ours", {}), "before": ("ours", {}), "torch": ("torch", {}), "torch_tuned": ("torch", TUNED)}
PAUSE = 0.4  # seconds; OpenMP threads spin for a while after their work


class Side:
    def __init__(self, name: str, shape: str, before: Path | None = None):
        side, extra = SIDES[name]
        worker = before / "benchmarks" / WORKER.name if name == "before" and before else WORKER
        env = os.environ | extra | {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, str(worker), side, shape]
        self.name, self.samples, self.dropped = name, [], 0
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.ready = self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"benchmarks/step.py: the {self.name} side ended; run its worker by hand to see why")
        return json.loads(line)

    def step(self) -> None:
        time.sleep(PAUSE)
        before = busy_seconds()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        sample = self._read()
        foreign = busy_seconds() - before - sample["cpu"]
        if foreign > 0.1 * sample["seconds"] * os.cpu_count() + 0.02:
            self.dropped += 1
        else:
            self.samples.append(sample["seconds"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def summary(self) -> dict:
        ms = sorted(1000 * s for s in self.samples)
        return {
            "median_ms": round(statistics.median(ms), 1) if ms else None,
            "min_ms": round(ms[0], 1) if ms else None,
            "max_ms": round(ms[-1], 1) if ms else None,
            "samples": len(ms),
            "dropped": self.dropped,
        }


def busy_seconds() -> float:
    """CPU seconds all processes of the machine have used."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def cpu_flags() -> list[str]:
    """The CPU's instructions for low precision: they decide the ratio as much as the programs do."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return sorted(flags & {"amx_bf16", "avx512_bf16", "avx512f", "avx2"})


def measure(shape: str, rounds: int, sides: list[str], before: Path | None) -> dict:
    workers = [Side(name, shape, before) for name in sides]
    for number in range(rounds):
        for worker in workers if number % 2 == 0 else reversed(workers):
            worker.step()
    for worker in workers:
        worker.close()
    found = {w.name: w.summary() for w in workers}
    ours = found["ours"]["median_ms"]
    ratios = {
        f"{name}_over_ours": round(found[name]["median_ms"] / ours, 2)
        for name in sides
        if name != "ours" and ours and found[name]["median_ms"]
    }
    versions = {k: v for w in workers for k, v in w.ready["versions"].items()}
    machine = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cpu": cpu_flags(),
        "date": date.today().isoformat(),
    }
    return {"shape": shape, **ratios, **found, "versions": versions, **machine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="mini128,base128", help="of step_worker.py's and t5_sides.py's SHAPES")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", default="ours,torch,torch_tuned")
    parser.add_argument("--before", type=Path, help="the checkout that the side `before` runs")
    parser.add_argument("--output", type=Path, help="a JSON file to write the results to")
    arguments = parser.parse_args()
    if ("before" in arguments.sides.split(",")) != (arguments.before is not None):
        parser.error("--before CHECKOUT and --sides ours,before belong together")
    results = []
    for shape in arguments.shapes.split(","):
        results.append(measure(shape, arguments.rounds, arguments.sides.split(","), arguments.before))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
