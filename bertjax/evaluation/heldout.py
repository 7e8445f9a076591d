"""The held-out data of an evaluation in batches on the devices, and the files an evaluation keeps."""

import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bertjax.data import text_counts
from bertjax.data.labels import Classes
from bertjax.data.loader import Batches, is_decoder_only, open_task
from bertjax.data.sources import fingerprint
from bertjax.evaluation.records import Record
from bertjax.parallel import distributed
from bertjax.training import setup, stopping
from bertjax.training.setup import Job
from bertjax.training.step import Program

SAMPLES = 12  # that an evaluation keeps to show


def open_heldout(job: Job, program: Program, config: Any, classes: Classes | None = None) -> Batches:
    """The data of an evaluation; what is cut of its texts, or unknown, is said on stderr."""
    batches = open_task(
        config.data,
        config.name,
        job.tokenizer,
        batch_size=whole(config.batch_size, program),
        seed=job.config.run.seed,
        base=job.base,
        cache=job.cache,
        classes=classes,
        decoder_only=is_decoder_only(job.config),
    )
    for store in batches.stores.values():
        report_losses(f"evaluation '{config.name}'", store.meta.get(text_counts.KEY), config.data.preprocess)
    return batches


def report_losses(name: str, counts: text_counts.Counts | None, options: Any) -> None:
    """Says on stderr, once for all processes, what is cut of texts or unknown to the tokenizer."""
    for line in text_counts.lines(name, counts, options) if distributed.is_lead() else ():
        print(line, file=sys.stderr, flush=True)


def whole(batch_size: int, program: Program) -> int:
    """`batch_size` rounded up to a multiple of the shards a batch is split over."""
    shards = program.batch_shards
    return -(-batch_size // shards) * shards


def rows_of(program: Program, batches: Batches) -> slice | np.ndarray:
    return distributed.local_rows(program.batch_sharding(), batches.batch_size)


def placed(source: Any, program: Program, batches: Batches) -> Iterator[dict[str, jax.Array]]:
    with source:
        for batch in source:
            stopping.check()
            yield distributed.place(batch, program.batch_sharding(), batches.batch_size)


def keep(record: Record, name: str, content: Any) -> None:
    """Writes one file of an evaluation; `name` is the evaluation's, or that with an ending such as .predictions."""
    if distributed.is_lead():
        path = record.file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = record.described(content) if name == record.name else content
        setup.write(path, json.dumps(content, ensure_ascii=False, indent=1))


def made_from(job: Job, program: Program, config: Any) -> dict[str, Any]:
    """What is kept with the scores of an evaluation: its section, what its data hold, and the arithmetic."""
    found = "".join(fingerprint(source, job.base) for source in config.data.source)
    execution = program.execution
    return {
        "evaluation": config.model_dump(mode="json"),
        "data": hashlib.sha256(found.encode()).hexdigest()[:16],
        "computed": f"{execution.platform} {np.dtype(execution.dtype).name}",
    }
