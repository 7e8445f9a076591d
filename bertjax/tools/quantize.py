"""`bertjax quantize`: write a model with 8-bit weights, and compare its size and scores with the original's."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bertjax.errors import StorageError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.evaluators.heldout import open_records, with_writable_cache
from bertjax.evaluation.restore import RestoredCheckpoint, restore
from bertjax.interop import hf_folder
from bertjax.interop.int8 import quantize_folder
from bertjax.progress import reporter
from bertjax.progress.text import number
from bertjax.tools import convert_hf
from bertjax.training import inputs


def quantize_command(
    source: str | Path, out: Path, *, best: str | None = None, evaluate: bool = True
) -> dict[str, Any]:
    """Write `source` (a run, a checkpoint or a Hugging Face model) as a folder with int8 weights, atomically.

    With `evaluate`, the evaluations of the stage are run on the original and on the written weights.
    -> {"out", "matrices", "others", "bytes": {"float32", "int8"}, "largest_error", "scores": {"float32", "int8"}}.
    bytes: of the weights' files. largest_error: the largest change of a weight. Raises UserError and StorageError.
    """
    work = out.with_name(f".{out.name}.unfinished")
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a try that was killed
        work.mkdir(parents=True)
        convert_hf.check_family(source)
        restored = restore(source, best=best) if evaluate else None
        if restored and restored.hugging_face is not None and not restored.in_run and restored.step == 0:
            reporter.say(f"{source}: a Hugging Face model has no evaluations of its own; scores are not compared")
            restored = None
        stage = restored.ctx.config.stages[restored.stage] if restored else None
        if restored and stage and stage.evaluate:
            inputs.check_evaluations(stage, restored.ctx.base, None)
        whole, small = work / "float32", work / "int8"
        convert_hf.export_checkpoint(source, whole, name=out.name, best=best)
        counts = quantize_folder(whole, small)
        about = {"out": str(out), **counts, "bytes": {"float32": _bytes(whole), "int8": _bytes(small)}}
        if restored:
            about |= _compare(restored, small)
        os.replace(small, out)
    except OSError as error:
        raise StorageError(f"{out}: could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return about


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _compare(restored: RestoredCheckpoint, folder: Path) -> dict[str, Any]:
    """Scores of the original and of the written weights by the evaluations of the stage, and the largest error."""
    arrays = hf_folder.load_params(folder, restored.ctx.config.model)
    params = {
        path: jax.device_put(arrays[path], value.sharding) if path in arrays else value
        for path, value in restored.params.items()
    }
    errors = [jnp.abs(params[path] - value).max() for path, value in restored.params.items()]
    records = folder.with_name("records")  # the run's own are of the original weights
    kept = open_records(restored, restored.ctx.config.stages[restored.stage].evaluate, records)
    ctx = with_writable_cache(restored.ctx, records)
    if not restored.in_run:  # its own folder for prepared data would stay behind, next to the checkpoint
        run = ctx.config.run.model_copy(update={"prepared_dir": str(records / "prepared")})
        ctx = replace(ctx, config=ctx.config.model_copy(update={"run": run}))
    evaluators = build_evaluators(ctx, restored.stage, restored.program, restored.labels, kept, restored.fitted)
    scores: dict[str, dict[str, Any]] = {"float32": {}, "int8": {}}
    for evaluator in evaluators:
        for kind, of in (("float32", restored.params), ("int8", params)):
            with reporter.task(f"evaluating '{evaluator.config.name}' with {kind} weights"):
                found = evaluator.run(of, restored.step)
            scores[kind] |= {f"{evaluator.config.name}/{name}": value for name, value in found.items()}
    return {"largest_error": float(max(map(float, errors))), "scores": scores}


def quantize_table(found: Mapping[str, Any]) -> str:
    """Size and scores before and after, as Markdown."""
    sizes = {kind: f"{count / 1e6:,.1f} MB" for kind, count in found["bytes"].items()}
    lines = [
        "| | float32 | int8 |",
        "|---|---:|---:|",
        f"| size of the weights | {sizes['float32']} | {sizes['int8']} |",
    ]
    scores = found.get("scores", {"float32": {}})
    for name, value in scores["float32"].items():
        if isinstance(value, int | float):
            lines.append(f"| {name} | {number(value)} | {number(scores['int8'][name])} |")
    text = f"{found['out']}: {found['matrices']} matrices in int8, {found['others']} other tensors in float32\n"
    return text + "\n".join(lines)
