"""Measure each optimization of the step by disabling it: a JSON line per shape with ratios to the shipped step.

    python benchmarks/ablate.py --shapes mini128
    python benchmarks/ablate.py --shapes base128 --variants shipped,full_head --output benchmarks/results/ablate.json

    full_head    every position through the vocabulary instead of the masked ones (the loss is the same)
    threefry     dropout bits from jax.random instead of the counter hash
    no_dropout   none at all: what dropout costs
    scan, list   the layer stack as one loop, or layer by layer (one of them is the platform's default)

Variants take turns in one process. A ratio above one says that the shipped step is faster.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from step_worker import SHAPES, batch, build, full_head, stepper
from turns import provenance, take_turns

VARIANTS: dict[str, dict[str, Any]] = {
    "shipped": {},
    "full_head": {},
    "threefry": {"dropout_rng": "threefry"},
    "no_dropout": {"dropout": False},
    "scan": {"segments": "scan"},
    "list": {"segments": "list"},
}


def measure(shape_name: str, names: list[str], rounds: int) -> dict[str, Any]:
    shape = SHAPES[shape_name]
    rows = batch(shape, shape[3], 0)
    steps, losses, temporaries = {}, {}, {}
    for name in names:
        steps[name], compiled = stepper(
            build(shape, **VARIANTS[name]), full_head(rows) if name == "full_head" else rows
        )
        losses[name] = round(float(steps[name]()), 4)
        temporaries[name] = round(compiled.memory_analysis().temp_size_in_bytes / 2**20)
    times = take_turns(steps, rounds)
    ratios = {
        f"{name}_over_shipped": round(times[name]["median_ms"] / times["shipped"]["median_ms"], 3)
        for name in names
        if name != "shipped"
    }
    sides = {name: times[name] | {"first_loss": losses[name], "temporaries_mib": temporaries[name]} for name in names}
    return {"shape": shape_name, "rows": shape[3], "ratios": ratios, "variants": sides} | provenance()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="mini128")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    names = ["shipped"] + [name for name in arguments.variants.split(",") if name != "shipped"]
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}; there are: {', '.join(VARIANTS)}")
    results = []
    for shape in arguments.shapes.split(","):
        results.append(measure(shape, names, arguments.rounds))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
