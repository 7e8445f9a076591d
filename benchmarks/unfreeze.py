"""What gradual unfreezing saves: step time and compiled FLOPs of each episode over those of full fine-tuning.

    python benchmarks/unfreeze.py --shapes mini128
    python benchmarks/unfreeze.py --shapes base128 --rounds 5 --output benchmarks/results/unfreeze.json
    python benchmarks/unfreeze.py --schedule --steps 240 --questions 300

The shipped step on span prediction with one episode a layer; episodes, also with cached outputs of their frozen layers,
and full fine-tuning take turns in one process.
FLOPs are XLA's own count of the compiled program. Prints one JSON line a shape.

`--schedule` trains whole stages instead, from the start to the checkpoint, on questions about the standard library: all
layers, gradually, and gradually with frozen layers without dropout, computed at every step or cached. Each trains with
an empty compilation cache (cold), then with the one that this has filled (warm). `cpu_seconds` are those of all
threads, which other work on the machine changes less.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from step_worker import SHAPES, batch, build, spans, stepper
from turns import provenance, take_turns


def measure(shape_name: str, rounds: int, embeddings: str) -> dict[str, Any]:
    import numpy as np

    from bertjax.config.schema.training import Trainable
    from bertjax.objectives.base import FROZEN_STATES
    from bertjax.training import freezing

    shape = SHAPES[shape_name]
    program = build(shape, objective="span_qa")
    fixed = replace(program, fixed_prefix=True)
    groups = freezing.param_groups(program.abstract_params())
    plan = freezing.episodes(Trainable(kind="gradual", embeddings=embeddings), groups, 1000)
    variants = {"full": groups} | {f"episode_{n}": episode.groups for n, episode in enumerate(plan)}
    kept = {n: e for n, e in enumerate(plan) if fixed.split_segments(e.groups).frozen_layers}
    variants |= {f"episode_{n}_cached": episode.groups for n, episode in kept.items()}
    rows = spans(batch(shape, shape[3], 0))
    states = {FROZEN_STATES: np.ones((*rows["input_ids"].shape, shape[1]), program.compute.dtype)}
    steps, flops = {}, {}
    for name, trained in variants.items():
        cached = name.endswith("_cached")
        steps[name], compiled = stepper(fixed if cached else program, rows | states if cached else rows, trained)
        cost = compiled.cost_analysis() or {}
        flops[name] = cost.get("flops")
    times = take_turns(steps, rounds)
    full = times["full"]["median_ms"]
    table = [
        {
            "episode": name,
            "trains": len(variants[name]),
            **times[name],
            "time_ratio": round(full / times[name]["median_ms"], 3),
            "flops_ratio": round(flops["full"] / flops[name], 3) if flops[name] else None,
        }
        for name in variants
    ]
    plain = [times[f"episode_{n}"]["median_ms"] for n in range(len(plan))]
    cached = [times[f"episode_{n}_cached"]["median_ms"] if n in kept else plain[n] for n in range(len(plan))]
    over = {"speedup_over_all_episodes": plain, "speedup_with_cache": cached}
    found = {"shape": shape_name, "rows": shape[3]}
    found |= {name: round(full * len(plan) / sum(each), 3) for name, each in over.items()} | {"table": table}
    return found | provenance()


WAYS = {
    "full": "all",
    "gradual": "gradual",
    "gradual_without_cache": {"kind": "gradual", "cache_frozen": True, "cache_gib": 1e-9},
    "gradual_with_cache": {"kind": "gradual", "cache_frozen": True},
}


def measure_schedules(shape_name: str, steps: int, questions: int) -> dict[str, Any]:
    """Train the stage in each way, cold and then warm -> seconds, and the ratios of full fine-tuning to each."""
    shape = SHAPES[shape_name]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train(root, shape, "first", "all", 1, questions)  # prepares data and tokenizer, and imports what runs import
        table = []
        for cache in ("cold", "warm"):
            for way, trainable in WAYS.items():
                found = train(root, shape, f"{way}-{cache}", trainable, steps, questions, root / f"xla-{way}")
                table.append({"way": way, "cache": cache} | found)
    full = {row["cache"]: row for row in table if row["way"] == "full"}
    for row in table:
        for unit in ("seconds", "cpu_seconds"):
            row[f"full_over_this_{unit}"] = round(full[row["cache"]][unit] / row[unit], 3)
    about = {"shape": shape_name, "batch_size": shape[3], "steps": steps, "schedules": table}
    return about | provenance()


def train(
    root: Path, shape: tuple[int, ...], name: str, trainable: Any, steps: int, questions: int, xla: Path | None = None
) -> dict[str, Any]:
    """Train one run of the shape with the shipped loop -> its time and that of its caches."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from bertjax.config.loading.load import build
    from bertjax.evaluation.evaluators.build import build_evaluators
    from bertjax.training import loop
    from bertjax.training.monitor.tracking import read_lines

    jax.clear_caches()
    compilation_cache.reset_cache()
    tokenizer = {} if name == "first" else {"tokenizer": {"path": str(root / "first" / "tokenizer")}}
    layers, hidden, heads, batch_size, length, _ = shape
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    run = {"name": name, "root": str(root), "checkpoint": {"save_every": steps}, "log_every": steps}
    stage = {
        "name": "qa", "data": "questions", "objective": {"kind": "span_qa"}, "init_from": "scratch",
        "trainable": trainable, "steps": steps, "batch_size": batch_size,
    }  # fmt: skip
    task = {
        "source": {"kind": "stdlib_qa"}, "preprocess": {"kind": "span_qa", "sequence_length": length},
        "limit": questions,
    }  # fmt: skip
    config = build(
        {
            "model": {"vocab_size": 8192, "intermediate_size": 4 * hidden} | sizes,
            "run": run | {"compilation_cache_dir": str(xla) if xla else None},
            "tasks": {"questions": task},
            "stages": [stage],
        }
        | tokenizer
    )
    began, used = time.perf_counter(), time.process_time()
    loop.train(config, root, build_evaluators)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    lines = read_lines(config.run_dir / "metrics.jsonl")
    caches = [line for line in lines if line.get("event") == "features"]
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "caches": [{key: line[key] for key in ("episode", "rows", "bytes", "seconds")} for line in caches],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="mini128")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--embeddings", choices=("last", "always", "never"), default="last")
    parser.add_argument("--schedule", action="store_true", help="train whole stages instead")
    parser.add_argument("--steps", type=int, default=240, help="of each stage")
    parser.add_argument("--questions", type=int, default=300, help="to train on")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = []
    for shape in arguments.shapes.split(","):
        if arguments.schedule:
            results.append(measure_schedules(shape, arguments.steps, arguments.questions))
        else:
            results.append(measure(shape, arguments.rounds, arguments.embeddings))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
