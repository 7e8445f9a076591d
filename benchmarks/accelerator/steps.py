"""Training steps of several sides in turns: milliseconds, sequences a second and MFU of each, and their ratios."""

import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from step_worker import SHAPES, model_config
from t5_sides import SHAPES as T5_SHAPES
from t5_sides import VOCAB

from accelerator.budget import Budget
from accelerator.cases import RATIOS, SIDES, Part
from accelerator.processes import FOLDER, OUT_OF_TIME, PLATFORMS, Worker, environment

WORKER = FOLDER / "step_worker.py"


class Side:
    """A worker, its answer when it was ready, and its samples."""

    def __init__(self, name: str, part: Part, platform: str, env: Mapping[str, str]):
        kind, options = SIDES[name]
        options = options | {"rows": part.row_count} | ({"packed": part.packed} if part.packed > 1 else {})
        if kind == "torch":
            options["device"] = PLATFORMS[platform]
        if part.is_t5:
            options.pop("attention_dropout", None)
        self.name, self.ready, self.samples = name, {}, []  # type: ignore[var-annotated]
        self.worker = Worker([str(WORKER), kind, part.shape, json.dumps(options)], environment(platform, env))

    def wait_ready(self, seconds: float) -> None:
        self.ready = self.worker.read(seconds)

    def step(self, steps: int, seconds: float) -> None:
        if self.worker.failed:
            return
        self.worker.write(str(steps))
        if sample := self.worker.read(seconds):
            self.samples.append(sample["seconds"])

    def summary(self, row_flops: int, rows: int) -> dict[str, Any]:
        """`rows`: of each device."""
        from bertjax.parallel.hardware import utilization

        if not self.samples or not self.ready:
            return {"failed": self.worker.failed or "no sample"}
        ms, devices = sorted(1000 * seconds for seconds in self.samples), self.ready["devices"]
        median = statistics.median(ms)
        mfu = utilization(rows * devices * row_flops, median / 1000, self.ready["device"], devices)
        return {
            "median_ms": round(median, 3),
            "min_ms": round(ms[0], 3),
            "max_ms": round(ms[-1], 3),
            "samples": len(ms),
            "sequences_per_second": round(1000 * rows * devices / median, 1),
            "mfu": None if mfu is None else round(mfu, 4),
            "first_loss": round(self.ready["losses"][0], 4),
            "last_warm_up_loss": round(self.ready["losses"][-1], 4),
            **({"peak_gib": self.ready["peak_gib"]} if "peak_gib" in self.ready else {}),
            **({"stopped": self.worker.failed} if self.worker.failed else {}),
        }


def row_flops(part: Part) -> int:
    """Model FLOPs of a training step for one row, by the formulas of the package."""
    if part.is_t5:
        from bertjax.config.schema.model import T5Config
        from bertjax.models.t5.flops import train_flops as t5_flops

        layers, d_model, heads, d_kv, d_ff, _, S, T = T5_SHAPES[part.shape]
        model = T5Config(
            vocab_size=VOCAB, d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_layers=layers, num_heads=heads
        )  # fmt: skip
        return t5_flops(model, S, T)
    from bertjax.models.bert.flops import train_flops

    length, predictions = SHAPES[part.shape][4:]
    squared = part.packed * (length // part.packed) ** 2
    return train_flops(model_config(SHAPES[part.shape]), length, predictions, squared_lengths=squared)


def measure(
    part: Part, names: list[str], *, rounds: int, steps: int, platform: str, together: bool, budget: Budget,
    environments: Mapping[str, Mapping[str, str]] | None = None, side_of: Callable[[str], str] = lambda name: name,
) -> dict[str, Any]:  # fmt: skip
    """Measure the sides of a part.

    `together`: all processes are started first and take turns, else one runs after another (a TPU belongs to one
    process). `environments`: more variables of a side. `side_of`: the side of `SIDES` that a name stands for.
    """
    sides: dict[str, Side] = {}
    batches = [names] if together else [[name] for name in names]
    try:
        for batch in batches:
            for name in batch:
                if budget.left() > 0:
                    sides[name] = Side(side_of(name), part, platform, (environments or {}).get(name, {}))
            turns = [sides[name] for name in batch if name in sides]
            for side in turns:
                side.wait_ready(budget.left())
            for number in range(rounds):
                for side in turns if number % 2 == 0 else turns[::-1]:
                    side.step(steps, budget.left())
            for side in turns:
                side.worker.close()
    finally:
        for side in sides.values():
            side.worker.close()
    flops = row_flops(part)
    found = {
        name: sides[name].summary(flops, part.row_count) if name in sides else {"failed": OUT_OF_TIME} for name in names
    }
    ms = {name: one["median_ms"] for name, one in found.items() if "median_ms" in one}
    ready = [side.ready for side in sides.values() if side.ready]
    return {
        "shape": part.shape,
        "rows": part.row_count,
        "examples_per_row": part.packed,
        "steps_per_sample": steps,
        "ratios": {name: round(ms[a] / ms[b], 3) for name, a, b in RATIOS if a in ms and b in ms},
        "sides": found,
        "device": next((one["device"] for one in ready), None),
        "devices": next((one["devices"] for one in ready), None),
        "versions": {k: v for one in ready for k, v in one["versions"].items()},
    }
