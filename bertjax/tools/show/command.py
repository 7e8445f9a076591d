"""`bertjax show` and `bertjax tokenize`."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertjax.config.schema.run import Config, Stage
from bertjax.data.pipeline.loader import Batches
from bertjax.data.tokenizers.load import AnyTokenizer
from bertjax.errors import UserError
from bertjax.progress import reporter
from bertjax.tools.show.rows import Piece, Row, decode_row
from bertjax.training import inputs
from bertjax.training.checkpoint.stage_files import run_stages
from bertjax.training.run_context import load_tokenizer, prepared_dir, source_fingerprints
from bertjax.training.stage.plan import open_data

MAX_STEPS = 10_000  # read to find rows of a rare task


def show_rows(
    config: Config, *, stage: str | None = None, task: str | None = None, step: int = 0, count: int = 5
) -> list[Row]:
    """The first rows of the batch of `step` (counted within the stage) and of those after it, decoded.

    Data that are not prepared are prepared first, as by `bertjax prepare`. `task`: only rows of this task.
    Raises UserError for an unknown stage or task, and a step after the last.
    """
    wanted, base = _stage(config, stage), Path.cwd()
    inputs.check_data(config.model_copy(update={"stages": [wanted]}), base)
    fingerprint = source_fingerprints(base)
    tokenizer = load_tokenizer(config, base, fingerprint)
    files = next(files for files in run_stages(config, base) if files.stage.name == wanted.name)
    batches, _ = open_data(
        files, tokenizer, None, cache=prepared_dir(config), report=reporter.say, fetch=False, fingerprint=fingerprint
    )
    return list(_rows(batches, wanted, tokenizer, task, step, count))


def _stage(config: Config, name: str | None) -> Stage:
    if name is None:
        return config.stages[0]
    if (found := next((stage for stage in config.stages if stage.name == name), None)) is None:
        known = ", ".join(stage.name for stage in config.stages)
        raise UserError(f"--stage: there is no stage '{name}'; there are: {known}")
    return found


def _rows(
    batches: Batches, stage: Stage, tokenizer: AnyTokenizer, task: str | None, step: int, count: int
) -> Iterator[Row]:
    names, steps = batches.task_names, batches.steps(stage)
    if task is not None and task not in names:
        raise UserError(f"--task: stage '{stage.name}' has no task '{task}'; it has: {', '.join(names)}")
    if step >= steps:
        raise UserError(f"--step: stage '{stage.name}' has {steps:,} steps, 0 to {steps - 1:,} (got {step:,})")
    left = count
    for k in range(step, min(steps, step + MAX_STEPS)):
        batch = batches.batch(k)
        for number in range(batches.batch_size):
            fields = {name: values[number] for name, values in batch.items()}
            name = names[int(fields["task_ids"])] if "task_ids" in fields else names[0]
            if left and task in (None, name):
                left -= 1
                yield decode_row(fields, tokenizer, batches.labels, task=name, step=k, number=number)
        if not left:
            return
    if task is not None and left:
        reporter.say(f"{count - left} rows of task '{task}' in steps {step:,} to {min(steps, step + MAX_STEPS) - 1:,}")


def rows_json(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as JSON, without default values."""
    return [asdict(row) | {"examples": [_example(example) for example in row.examples]} for row in rows]


def _example(example: Any) -> dict[str, Any]:
    sequences = {name: [_piece(piece) for piece in pieces] for name, pieces in example.sequences.items()}
    return {**sequences, **({"facts": dict(example.facts)} if example.facts else {})}


def _piece(piece: Piece) -> dict[str, Any]:
    default = Piece("")
    return {name: value for name, value in asdict(piece).items() if name == "text" or value != getattr(default, name)}


def tokenize_texts(tokenizer: AnyTokenizer, texts: list[str]) -> list[dict[str, Any]]:
    """{"text", "ids", "pieces", "decoded", "unknown"} of each text, without what a row adds.

    unknown: the number of unknown pieces; decoded: the ids back as text.
    """
    found = []
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        unknown = sum(i == getattr(tokenizer, "unk_id", None) for i in ids)
        pieces = [tokenizer.pieces[i] for i in ids]
        found.append(
            {"text": text, "ids": list(ids), "pieces": pieces, "decoded": tokenizer.decode(ids), "unknown": unknown}
        )
    return found
