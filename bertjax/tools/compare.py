"""`bertjax compare`: fine-tune one checkpoint with several methods, each as its own run, and tabulate the results.

The table follows arXiv 1910.10683, Table 10, and adds costs: trained parameters, time and memory of a step, and
optimizer state.
"""

import contextlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bertjax.config.loading import variants
from bertjax.config.schema.run import Config, Variant
from bertjax.errors import DivergedError, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.objectives.base import FEATURES
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter
from bertjax.progress.text import memory, number, seconds
from bertjax.report.pages.variants import variants_page
from bertjax.report.record import StageRecord, is_finite, read_run
from bertjax.storage import atomic
from bertjax.training import freezing, inputs, loop, run_context
from bertjax.training.checkpoint.stage_files import run_stages
from bertjax.training.feature_cache.cache import feature_field
from bertjax.training.monitor.tracking import read_lines
from bertjax.training.program import TrainProgram
from bertjax.training.step import jit_train_step

_NO_OVERRIDES = {  # keys that overrides of a variant cannot have
    "trainable": "give trainable of the variant itself",
    "pretrained": "is not read here; for another start give init_from",
    "run.name": "a run is named after its variant; change the variant's name",
    "stages": "give keys of the last stage",
    "compare": "is not read here; leave it out",
    "ladder": "is not read here; leave it out",
}
MAX_SCORES_SHOWN = 2  # scores per evaluation in the table, unless run.checkpoint.keep_best names some


def compare_command(config: Config, base: Path, as_json: bool) -> str:
    """Train the runs that are not finished, and return the comparison as Markdown or JSON.

    Writes both to run.root as <run.name>-comparison.md and .json, and a page with curves as .html. A variant that
    diverges is a row without scores.
    Raises the errors of `loop.train`, and UserError when there is nothing to compare or to start from.
    """
    start, runs = build_runs(config)
    if not all(inputs.has_begun(run) for run in runs):
        inputs.check_comparison(config, base, start is not None)
    rows = []
    with contextlib.redirect_stdout(sys.stderr):  # standard output is only for the table
        if start is not None:
            loop.train(start, base, build_evaluators)
        for variant, run in zip(config.compare, runs, strict=True):
            diverged = None
            try:
                loop.train(run, base, build_evaluators)
            except DivergedError as error:
                diverged = str(error)
            about: dict[str, Any] = {"method": variant.name, "kind": variant.trainable.kind, "run": str(run.run_place)}
            about |= {"start": run.stages[0].init_from} | ({"curve": variant.curve} if variant.curve else {})
            with reporter.task(f"{run.run.name}: measuring a step", finish=False):
                measured = measure_run(run, base)
            rows.append(about | measured | ({"diverged": diverged} if diverged else {}))
    starts = {row["start"] for row in rows}
    found = {"name": config.run.name, "start": starts.pop() if len(starts) == 1 else None, "methods": rows}
    scores = table_scores(config, rows)
    texts = {"json": json.dumps(found, indent=2, ensure_ascii=False), "md": format_markdown(rows, scores)}
    texts["html"] = variants_page(config.run.name, *table_cells(rows, scores), rows, scores)
    if primary.is_primary():
        for ending, text in texts.items():
            atomic.write_text_atomic(config.run_place.with_name(f"{config.run.name}-comparison.{ending}"), text + "\n")
    return texts["json" if as_json else "md"]


def build_runs(config: Config) -> tuple[Config | None, list[Config]]:
    """-> (the run of the stages before the last, if variants start from it; a run of the last stage per variant).

    All variants start from the same weights, with the same data and seed, unless their overrides say otherwise.
    """
    *before, last = config.stages
    if not config.compare:
        raise UserError("compare: names no ways to fine-tune; give compare: [{name: full, trainable: all}, ...]")
    overrides = {entry.name: _full_keys(entry, config) for entry in config.compare}
    start, source, tokenizer = None, last.init_from, config.tokenizer
    if any(f"stages.{last.name}.init_from" not in keys for keys in overrides.values()):
        if source is None and not before:
            raise UserError(
                f"stages.{last.name}.init_from: all variants start from one checkpoint: name it (scratch: random "
                "weights), or give a stage before it, or init_from in the overrides of each variant"
            )
        if source == "best":
            raise UserError(
                f"stages.{last.name}.init_from: best: variants start from the last checkpoint; use previous"
            )
        if source in (None, "previous"):
            start = _run_config(config, "base", {"stages": before})
            source = str(start.run_place)
            tokenizer = tokenizer.model_copy(update={"path": str(start.run_place / "tokenizer")})
    source = "scratch" if source in (None, "previous", "best") else source  # replaced by overrides

    def make(entry: Variant) -> Config:
        changes = {"trainable": entry.trainable, "init_from": source, "optimizer": entry.optimizer or last.optimizer}
        stages = {"stages": [last.model_copy(update=changes)], "tokenizer": tokenizer}
        return _run_config(config, entry.name, stages, overrides[entry.name])

    return start, [make(entry) for entry in config.compare]


def _full_keys(entry: Variant, config: Config) -> dict[str, Any]:
    """The overrides with the keys of the stage as keys of the configuration.

    Raises UserError for keys that a variant cannot change, and for two of which one contains the other.
    """
    where, last = f"compare.{entry.name}.overrides", config.stages[-1].name
    scope = f"variants are of the last stage, '{last}', only; the stages before it are shared"
    place = {"where": where, "scope": scope}
    found = variants.full_keys(entry.overrides, config, len(config.stages) - 1, **place, refused=_NO_OVERRIDES)
    if found.get(key := f"stages.{last}.init_from", "scratch") in (None, "previous", "best"):
        short = next(one for one in entry.overrides if key.endswith(f".{one}") or key == one)
        problem = "leave it out to start from the stage before, or name a checkpoint or scratch"
        raise UserError(f"{where}: {short}: {problem}")
    return found


def _run_config(
    config: Config, name: str, changes: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> Config:
    """A validated configuration of a run under the same root."""
    return variants.run_config(config, name, changes, {f"compare.{name}.overrides": overrides or {}})


def measure_run(config: Config, base: Path) -> dict[str, Any]:
    """Scores and costs of a finished run of one stage; memory in bytes per device, of the most expensive episode.

    Shares are relative to the model without what was added, as in arXiv 1902.00751. `cache_seconds`: the time that
    features, or outputs of frozen layers, took in all episodes, where the run kept them; its steps read these.
    """
    (stage,) = config.stages
    (files,) = run_stages(config, base)
    opened = loop.open_stage(run_context.open_run_context(config, base), files, None)
    program, episodes = opened.program, opened.episodes
    sizes = freezing.group_sizes(program.abstract_params())
    trained = [sum(sizes[group] for group in episode.groups) for episode in episodes]
    mean = sum(n * (e.stop - e.start) for n, e in zip(trained, episodes, strict=True)) / episodes[-1].stop
    total = sum(n for group, n in sizes.items() if not group.endswith(("/adapter", "/lora")))
    like = program.abstract_state(episodes[-1].groups, jax.random.key(0))
    slots = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(like.opt_state))
    record = next(s for s in read_run(config.run_dir).stages if s.name == stage.name)
    scores = {f"{e.name}/{key}": value for e in record.evaluations for key, value in e.scores.items()}
    cached = [line for line in read_lines(config.run_dir / "metrics.jsonl") if line.get("event") == "features"]
    took = {line.get("episode"): line["seconds"] for line in cached}  # a run that was resumed has done some again
    fields = opened.batches.fields
    if cached and stage.trainable.kind == "features":
        fields = fields | {FEATURES: feature_field(program, fields)}
    return {
        "parameters": sum(sizes.values()),
        "trained": trained[-1],
        "trained_mean": mean,
        "share": trained[-1] / total,
        "share_mean": mean / total,
        "examples": sum(opened.batches.example_counts.values()),
        "episodes": len(episodes),
        "steps": episodes[-1].stop,
        "scores": {name: value for name, value in scores.items() if is_finite(value)},
        "step_seconds": _step_seconds(record),
        "step_bytes": step_memory_bytes(program, like, fields, stage.batch_size),
        **({"cache_seconds": sum(took.values())} if took else {}),
        "optimizer_bytes": slots,
    }


def step_memory_bytes(program: TrainProgram, like: Any, fields: Mapping[str, Any], rows: int) -> int | None:
    """Arguments and temporaries of the compiled step; None if the compiler does not report them."""
    sharding = program.batch_sharding()
    batch = {k: jax.ShapeDtypeStruct((rows, *shape), kind, sharding=sharding) for k, (shape, kind) in fields.items()}
    step: Any = jit_train_step(program, like)
    found = step.lower(like, batch).compile().memory_analysis()
    return found.argument_size_in_bytes + found.temp_size_in_bytes if found else None


def _step_seconds(record: StageRecord) -> float | None:
    """Mean over the log lines of the stage, without compilation, evaluation and saving."""
    found = [line["step_seconds"] for line in record.train if is_finite(line.get("step_seconds"))]
    return sum(found) / len(found) if found else None


# ---- the table ------------------------------------------------------------------------------------------------------


def table_scores(config: Config, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scores of the table: those of keep_best, else the first ones of each evaluation."""
    there = dict.fromkeys(name for row in rows for name in row["scores"])
    if named := [name for name in config.run.checkpoint.best_metrics if name in there]:
        return named
    of = {e.name: [n for n in there if n.startswith(f"{e.name}/")] for e in config.stages[-1].evaluate}
    return [name for names in of.values() for name in names[:MAX_SCORES_SHOWN]]


def format_markdown(rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> str:
    head, cells = table_cells(rows, scores)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_cells(rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The head, and one line per method; of gradual unfreezing the parameters of the last episode and their mean.

    Examples are shown where methods differ in them.
    """
    differ = len({row.get("examples") for row in rows}) > 1
    head = ["method", *(["examples"] if differ else []), "trained parameters", "share", *scores]
    head += ["step time", "step memory", "optimizer state"]
    lines = []
    for row in rows:
        count, share = f"{row['trained']:,}", f"{row['share']:.2%}"
        if row["episodes"] > 1:
            count += f" (mean {row['trained_mean']:,.0f})"
            share += f" (mean {row['share_mean']:.2%})"
        missing = "diverged" if "diverged" in row else "-"
        found = [number(row["scores"][name]) if name in row["scores"] else missing for name in scores]
        took = seconds(row["step_seconds"]) if row["step_seconds"] else "-"
        size = row["optimizer_bytes"]
        slots = f"{size / 1024:.0f} KiB" if size < 2**20 else memory(size)
        examples = [f"{row['examples']:,}"] if differ else []
        lines.append([row["method"], *examples, count, share, *found, took, memory(row["step_bytes"]), slots])
    return head, lines
