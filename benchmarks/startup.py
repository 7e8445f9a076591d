"""From the command to the first step of `bertjax train`: a first start, and starts that continue from a checkpoint.

    python benchmarks/startup.py --output benchmarks/results/startup.json
    python benchmarks/startup.py --shapes mini --rounds 3

The text is Python's own documentation. For each shape a run starts with prepared data and an empty compilation cache
(`cold`) and stops after a step. Then it continues, stops a step later, and so on (`warm`, medians): each life is a
process of its own, which restores the checkpoint of the one before. A plugin notes the moments that end these parts:

    opening     Python and all modules are loaded, everything is checked, tokenizer and data are open
    state       the parameters are made or restored, and their digests compared
    first_step  the program is compiled or read from the cache, and the step has run

CPU seconds (of all threads) depend less on other work on the machine. `imports` is the part of `opening` that loading
modules takes, by `python -X importtime` in a life of its own. Prints one JSON line a shape.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]
from turns import provenance  # noqa: E402

MOMENTS = ("opening", "state", "first_step")
SHAPES = {  # layers, hidden size, heads
    "tiny": (2, 128, 2), "mini": (4, 256, 4), "base": (12, 768, 12),
}  # fmt: skip
PLUGIN = """
import json, os, time

import bertjax


@bertjax.callback
class Moments:
    def __init__(self):
        self.found, self.stop = {}, None

    def note(self, name):
        self.found.setdefault(name, [time.time(), time.process_time()])

    def on_train_begin(self, run):
        self.note("opening")
        self.stop = run.stop

    def on_stage_begin(self, *about):
        self.note("state")

    def on_step_end(self, step, metrics):
        float(metrics["loss"])
        self.note("first_step")
        with open("moments.jsonl", "a") as file:
            file.write(json.dumps(self.found) + "\\n")
        self.stop()
"""
CONFIG = """
plugins: [note_moments.py]
model:
  vocab_size: 8192
  num_hidden_layers: {layers}
  hidden_size: {hidden}
  num_attention_heads: {heads}
  intermediate_size: {inner}
  max_position_embeddings: 128
run: {{name: start, root: runs, log_every: 1, compilation_cache_dir: compiled}}
tasks:
  docs:
    source: {{kind: stdlib_docs, split: train}}
    preprocess: {{kind: bert_pairs, sequence_length: 128}}
stages:
  - name: pretrain
    data: docs
    steps: 1000
    batch_size: 8
    optimizer: {{kind: adamw, learning_rate: 1e-4}}
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def life(project: Path, *python: str) -> tuple[dict[str, float], str]:
    """Start the command once -> (wall and CPU seconds of each part and in total, what it wrote to standard error)."""
    words = [sys.executable, *python, "-m", "bertjax", "train", "start.yaml"]
    began = time.time()
    done = subprocess.run(words, cwd=project, env=environment(), capture_output=True, text=True)
    if done.returncode != 75:  # stopped by the plugin
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    found = json.loads((project / "moments.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    times = [began, *(found[name][0] for name in MOMENTS)]
    cpu = [0.0, *(found[name][1] for name in MOMENTS)]
    spent = {"total": times[-1] - began, "cpu": cpu[-1]}
    for at, name in enumerate(MOMENTS):
        spent |= {name: times[at + 1] - times[at], f"{name}_cpu": cpu[at + 1] - cpu[at]}
    return spent, done.stderr


def import_seconds(project: Path) -> float:
    """The seconds that loading modules takes, each without the modules that it loads."""
    lines = [line.split("|") for line in life(project, "-X", "importtime")[1].splitlines() if "import time:" in line]
    return sum(int(line[0].split(":")[1]) for line in lines[1:]) / 1e6


def measure(name: str, rounds: int) -> dict[str, Any]:
    layers, hidden, heads = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        text = CONFIG.format(layers=layers, hidden=hidden, heads=heads, inner=4 * hidden)
        (project / "start.yaml").write_text(text, encoding="utf-8")
        (project / "note_moments.py").write_text(PLUGIN, encoding="utf-8")
        prepare = [sys.executable, "-m", "bertjax", "prepare", "start.yaml"]
        subprocess.run(
            prepare, cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True
        )
        cold, _ = life(project)
        life(project)  # whatever a restored state compiles
        warm = [life(project)[0] for _ in range(rounds)]
        imports = import_seconds(project)
    medians = {key: round(statistics.median(one[key] for one in warm), 2) for key in warm[0]}
    return {
        "shape": name, "cold": {key: round(x, 2) for key, x in cold.items()}, "warm": medians,
        "warm_samples": {key: [round(one[key], 2) for one in warm] for key in ("total", "cpu")},
        "imports": round(imports, 2), **provenance(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="mini,base", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = []
    for name in arguments.shapes.split(","):
        results.append(measure(name, arguments.rounds))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
