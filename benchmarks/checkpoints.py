"""Saving, restoring and logging: two checkouts in turns on a disk, and the requests and round trips in a bucket.

    git worktree add /tmp/before b21a28f
    python benchmarks/checkpoints.py --before /tmp/before --output benchmarks/results/checkpoints.json

The state is that of a small BERT with AdamW (three float32 arrays per parameter); two steps are kept. Each checkout has
a process of its own, which waits while the other measures; both save, restore and append to metrics.jsonl once a round,
after one round to warm up. Ratios are those of medians, of wall and of CPU seconds (of the process, with its threads).

The bucket is the server of the tests, which waits `--delay` ms before each answer: the time of a save less that without
a delay, divided by the delay, is the number of round trips one after another. Prints one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LAYERS, HIDDEN, VOCABULARY, POSITIONS = 4, 256, 30_522, 512  # BERT-mini
LINES = 1000  # appended to metrics.jsonl
METRICS = {"loss": 2.345678, "mlm_loss": 2.0, "nsp_loss": 0.345678, "lr": 1e-4, "grad_norm": 1.23, "step_seconds": 0.1}


def state() -> dict[str, Any]:
    """{name: {path: float32 array}} of parameters and the two moments of AdamW."""
    import jax.numpy as jnp
    import numpy as np

    shapes: dict[str, tuple[int, ...]] = {
        "embeddings/words": (VOCABULARY, HIDDEN), "embeddings/positions": (POSITIONS, HIDDEN),
        "embeddings/types": (2, HIDDEN), "heads/mlm/bias": (VOCABULARY,), "heads/pooler/kernel": (HIDDEN, HIDDEN),
    }  # fmt: skip
    for layer in range(LAYERS):
        for name in ("query", "key", "value", "output"):
            shapes |= {f"layers/{layer}/{name}/kernel": (HIDDEN, HIDDEN), f"layers/{layer}/{name}/bias": (HIDDEN,)}
        shapes |= {f"layers/{layer}/in/kernel": (HIDDEN, 4 * HIDDEN), f"layers/{layer}/in/bias": (4 * HIDDEN,)}
        shapes |= {f"layers/{layer}/out/kernel": (4 * HIDDEN, HIDDEN), f"layers/{layer}/out/bias": (HIDDEN,)}
        for norm in ("attention_norm", "norm"):
            shapes |= {f"layers/{layer}/{norm}/{part}": (HIDDEN,) for part in ("scale", "bias")}
    rng = np.random.default_rng(0)
    made = {path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
    return {name: {path: jnp.asarray(x * k) for path, x in made.items()} for k, name in enumerate(("p", "m", "v"), 1)}


class Run:
    """A run folder: what a training run does between two steps, without the steps."""

    def __init__(self, folder: str) -> None:
        import jax

        from bertjax.config.schema.run import CheckpointPolicy
        from bertjax.storage import remote
        from bertjax.training.checkpoint.manager import CheckpointManager

        self.folder, self.step = folder, 0
        self.tree: Any = state()
        self.like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.tree)
        place = remote.as_path(f"{folder}/checkpoints/00-a")
        self.steps = CheckpointManager(place, CheckpointPolicy(keep_last=2))

    def save(self) -> None:
        self.step += 1
        self.steps.save(self.step, self.tree, {"step": self.step, "config": {}})
        self.steps.wait()

    def restore(self) -> None:
        assert self.steps.restore(self.like)[0] == self.step

    def log(self) -> None:
        from bertjax.progress.reporter import Reporter
        from bertjax.training.monitor.tracking import Tracker

        Path(self.folder).mkdir(exist_ok=True)
        with open(os.devnull, "w") as nowhere:
            reporter = Reporter(results=nowhere, lines=nowhere)
            with Tracker(Path(self.folder), stages={"a": LINES}, reporter=reporter) as tracker:
                for step in range(LINES):
                    tracker.train("a", step, METRICS)
        Path(self.folder, "metrics.jsonl").unlink()


def timed(what: Any) -> tuple[float, float]:
    """-> (wall seconds, CPU seconds)."""
    began, used = time.perf_counter(), time.process_time()
    what()
    return time.perf_counter() - began, time.process_time() - used


def work() -> None:
    """Measure once for each line of standard input: a process of `on_a_disk`."""
    import bertjax

    assert Path(bertjax.__file__).is_relative_to(os.environ["PYTHONPATH"]), "another bertjax is installed"
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        for _ in sys.stdin:
            print(json.dumps({name: timed(getattr(run, name)) for name in ("save", "restore", "log")}), flush=True)
        run.steps.close()


def on_a_disk(before: Path, rounds: int) -> dict[str, Any]:
    """{part: {before, after: {wall_s, cpu_s: samples}, wall_ratio, cpu_ratio}}; ratios are those of the medians."""
    command = [sys.executable, __file__, "--work"]
    sides = {"before": before, "after": ROOT}
    workers = {
        name: subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(place)}, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name, place in sides.items()
    }  # fmt: skip
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            worker = workers[name]
            assert worker.stdin and worker.stdout
            worker.stdin.write("\n")
            worker.stdin.flush()
            found = json.loads(worker.stdout.readline())
            found["sum"] = [sum(seconds) for seconds in zip(*found.values(), strict=True)]
            for part, seconds in found.items() if number else ():
                samples.setdefault((part, name), []).append(seconds)
    for worker in workers.values():
        worker.communicate()
    parts: dict[str, Any] = {}
    for part in dict.fromkeys(part for part, _ in samples):
        parts[part] = {name: {} for name in sides}
        for index, kind in enumerate(("wall", "cpu")):
            taken = {name: [seconds[index] for seconds in samples[part, name]] for name in sides}
            for name in sides:
                parts[part][name][f"{kind}_s"] = [round(seconds, 4) for seconds in taken[name]]
            ratio = statistics.median(taken["after"]) / statistics.median(taken["before"])
            parts[part][f"{kind}_ratio"] = round(ratio, 3)
    return parts


def in_a_bucket(delay: float, rounds: int) -> dict[str, Any]:
    """{part: {requests, seconds without and with a delay of each answer, round trips one after another}}."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kit")]
    import gcs_server
    import pytest

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, gcs_server.serve() as server, pytest.MonkeyPatch.context() as patch:
        gcs_server.install(server, Path(folder), patch)
        run = Run("gs://bucket/run")
        for _ in range(3):  # from here on each save removes a step
            run.save()
        for part in ("save", "restore"):
            seconds = {}
            for wait in (0.0, delay):
                server.delay, taken = wait, []
                for _ in range(rounds):
                    server.requests = []
                    taken.append(round(timed(getattr(run, part))[0], 4))
                seconds[wait] = taken
            server.delay = 0.0
            fast, slow = (statistics.median(taken) for taken in seconds.values())
            found[part] = {
                "requests": dict(Counter(method for method, _ in server.requests)),
                "seconds": seconds[0.0],
                f"seconds_{1000 * delay:.0f}_ms": seconds[delay],
                "round_trips": round((slow - fast) / delay, 1),
            }
        run.steps.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout (default: the bucket only)")
    parser.add_argument("--rounds", type=int, default=30, help="on a disk")
    parser.add_argument("--delay", type=float, default=50.0, help="of the bucket's answers, in ms")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    found: dict[str, Any] = {}
    if arguments.before:
        found["disk"] = on_a_disk(arguments.before.resolve(), arguments.rounds)
    found["bucket"] = in_a_bucket(arguments.delay / 1000, 5)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from importlib import metadata

    from turns import provenance

    about = provenance() | {"load": os.getloadavg()[0]}
    about["versions"] |= {name: metadata.version(name) for name in ("orbax-checkpoint", "tensorstore")}
    text = json.dumps(found | {"provenance": about}, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
