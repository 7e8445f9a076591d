"""Losses of the same pre-training in the compute dtype and with dense layers in FP8.

    python benchmarks/accelerator/parity.py SHAPE ROWS [STEPS]

Both trainings have the same first weights, batches and dropout; a third one, in the compute dtype with other dropout,
shows how far apart two trainings are without FP8. Rows repeat one of 16 phrases: masked words can be learned from
position and row. Prints one line of JSON; run by gpu.py and tpu.py.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from step_worker import SHAPES, VOCAB, batch, build  # noqa: E402
from turns import provenance  # noqa: E402

MASK, PHRASES, PHRASE_LENGTH = 103, 16, 16
WINDOW = 50  # steps that are averaged


def phrase_batch(shape: tuple[int, ...], rows: int, number: int) -> dict[str, np.ndarray]:
    """Batch `number` of the training, in the layout of `batch`."""
    made, S = batch(shape, rows, number), shape[4]
    phrases = np.random.default_rng(0).integers(1000, VOCAB, (PHRASES, PHRASE_LENGTH), np.int32)
    rng = np.random.default_rng((1, number))
    phrase = rng.integers(0, PHRASES, (rows, 1))
    words = phrases[phrase, np.arange(S) % PHRASE_LENGTH]
    made["masked_ids"] = np.take_along_axis(words, made["masked_positions"], axis=1)
    np.put_along_axis(words, made["masked_positions"], MASK, axis=1)
    made["nsp_labels"] = (phrase % 2).astype(np.int32)
    return made | {"input_ids": words}


def train(shape: tuple[int, ...], rows: int, steps: int, seed: int = 1, **options: Any) -> list[float]:
    """The loss of each step of the shipped program; `seed` is that of dropout."""
    import jax

    from bertjax.config.schema.optimizers import AdamW
    from bertjax.training import freezing
    from bertjax.training.step import jit_train_step

    rate = 1e-3 * 128 / shape[1]
    optimizer = AdamW(learning_rate=rate, warmup_steps=max(1, steps // 10))
    program = replace(build(shape, **options), optimizer=optimizer, steps=steps)
    params = program.initialize(jax.random.key(0))
    state = program.init_state(params, freezing.param_groups(params), jax.random.key(seed))
    step, losses = jit_train_step(program, state), []
    for number in range(steps):
        rows_on_device = jax.device_put(phrase_batch(shape, rows, number), program.batch_sharding())
        state, metrics = step(state, rows_on_device)
        losses.append(metrics["loss"])
        if number % 20 == 0:
            losses[-1].block_until_ready()  # do not run far ahead with batches in memory
    return [float(loss) for loss in losses]


def compare(shape: tuple[int, ...], rows: int, steps: int, **options: Any) -> dict[str, Any]:
    """Averages of windows of both trainings, and how far apart they are."""
    curves = {dtype: train(shape, rows, steps, dense_dtype=dtype, **options) for dtype in ("compute", "fp8")}
    curves["other_dropout"] = train(shape, rows, steps, seed=2, **options)
    means = {
        dtype: [float(np.mean(losses[i : i + WINDOW])) for i in range(0, steps, WINDOW)]
        for dtype, losses in curves.items()
    }
    apart = {name: np.abs(np.subtract(means[name], means["compute"])) for name in ("fp8", "other_dropout")}
    return {
        "steps": steps,
        "rows": rows,
        "window": WINDOW,
        "means": {dtype: [round(x, 4) for x in found] for dtype, found in means.items()},
        "last": {dtype: round(found[-1], 4) for dtype, found in means.items()},
        "last_difference": round(means["fp8"][-1] - means["compute"][-1], 4),
        "mean_difference": {name: round(float(x.mean()), 4) for name, x in apart.items()},
        "largest_difference": {name: round(float(x.max()), 4) for name, x in apart.items()},
        "finite": bool(np.isfinite(np.asarray(list(curves.values()))).all()),
    }


def main() -> None:
    name, rows, *more = sys.argv[1:]
    steps = int(more[0]) if more else 500
    found = compare(SHAPES[name], int(rows) or SHAPES[name][3], steps)
    print(json.dumps({"shape": name} | found | provenance()), flush=True)


if __name__ == "__main__":
    main()
