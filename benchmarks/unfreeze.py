"""What gradual unfreezing saves: step time and compiled FLOPs of each episode over those of full fine-tuning.

    python benchmarks/unfreeze.py --shapes mini128
    python benchmarks/unfreeze.py --shapes base128 --rounds 5 --output benchmarks/results/unfreeze.json

The shipped step on span prediction with one episode a layer; episodes and full fine-tuning take turns in one process.
FLOPs are XLA's own count of the compiled program. Prints one JSON line a shape.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from step_worker import SHAPES, batch, build, spans, stepper
from turns import provenance, take_turns


def measure(shape_name: str, rounds: int, embeddings: str) -> dict[str, Any]:
    from bertjax.config.schema.training import Trainable
    from bertjax.training import freezing

    shape = SHAPES[shape_name]
    program = build(shape, objective="span_qa")
    groups = freezing.param_groups(program.abstract_params())
    plan = freezing.episodes(Trainable(kind="gradual", embeddings=embeddings), groups, 1000)
    variants = {"full": groups} | {f"episode_{n}": episode.groups for n, episode in enumerate(plan)}
    rows = spans(batch(shape, shape[3], 0))
    steps, flops = {}, {}
    for name, trained in variants.items():
        steps[name], compiled = stepper(program, rows, trained)
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
    mean = sum(row["median_ms"] for row in table[1:]) / len(plan)
    found = {"shape": shape_name, "rows": shape[3], "speedup_over_all_episodes": round(full / mean, 3), "table": table}
    return found | provenance()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="mini128")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--embeddings", choices=("last", "always", "never"), default="last")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = []
    for shape in arguments.shapes.split(","):
        results.append(measure(shape, arguments.rounds, arguments.embeddings))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
