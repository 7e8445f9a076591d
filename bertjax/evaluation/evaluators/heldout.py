"""Held-out data of an evaluation, and the files it writes."""

import hashlib
import sys
from typing import Any

import numpy as np

from bertjax.data.jobs import text_counts
from bertjax.data.pipeline.loader import Batches, is_decoder_only, open_task
from bertjax.data.sources.class_names import ClassSpec
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.evaluation.records import EvaluationRecord
from bertjax.parallel.multihost import primary
from bertjax.storage import atomic
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext

NUM_SAMPLES = 12  # samples saved by an evaluation


def open_heldout(ctx: RunContext, program: TrainProgram, config: Any, classes: ClassSpec | None = None) -> Batches:
    """Opens the data of an evaluation; reports truncated texts and unknown characters on stderr."""
    batches = open_task(
        config.data,
        config.name,
        ctx.tokenizer,
        batch_size=round_up_batch(config.batch_size, program),
        seed=ctx.config.run.seed,
        base=ctx.base,
        cache=ctx.prepared_dir,
        classes=classes,
        decoder_only=is_decoder_only(ctx.config),
        fingerprint=ctx.fingerprint,
    )
    for store in batches.stores.values():
        report_truncation(f"evaluation '{config.name}'", store.meta.get(text_counts.META_KEY), config.data.preprocess)
    return batches


def report_truncation(name: str, counts: text_counts.TextCounts | None, options: Any) -> None:
    """Reports truncated texts and unknown characters on stderr, on one process."""
    for line in text_counts.report_lines(name, counts, options) if primary.is_primary() else ():
        print(line, file=sys.stderr, flush=True)


def save_json(record: EvaluationRecord, name: str, content: Any) -> None:
    """Writes one file of an evaluation; `name` is its name, possibly with a suffix such as .predictions."""
    if primary.is_primary():
        path = record.file_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = record.with_provenance(content) if name == record.name else content
        atomic.write_json_atomic(path, content)


def provenance(ctx: RunContext, program: TrainProgram, config: Any) -> dict[str, Any]:
    """The provenance of scores: section, content hash of the data, platform and dtype."""
    found = "".join(map(ctx.fingerprint, config.data.source))
    compute = program.compute
    return {
        "evaluation": config.model_dump(mode="json"),
        "data": hashlib.sha256(found.encode()).hexdigest()[:16],
        "computed": f"{compute.platform} {np.dtype(compute.dtype).name}",
    }
