"""A preprocess kind of the tests' own: the first tokens of each text. `SECTION` and `RECORD` are all that it needs."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from bertjax.config.schema.base import Positive, Section
from bertjax.data.jobs.job_plan import Blocks, JobPlan, PrepareContext
from bertjax.data.preprocess.registry import PreprocessKind
from bertjax.data.preprocess.sampling import sample_items
from bertjax.data.sources.text import read_texts
from bertjax.data.store.row_format import row_dtype


class ToyPreprocess(Section):
    implementation: ClassVar[str] = "toy_preprocess:RECORD"
    kind: Literal["toy"] = "toy"
    sequence_length: Positive = 8
    pack: bool = False
    max_segments: Positive = 4


def toy_blocks(shared: tuple[Any, ToyPreprocess], texts: Sequence[str]) -> Blocks:
    tokenizer, options = shared
    rows = np.zeros(len(texts), dtype(options, False))
    for row, ids in zip(rows, tokenizer.encode_batch(list(texts)), strict=True):
        kept = ids[: options.sequence_length]
        row["input_ids"][: len(kept)] = kept
        row["segment_ids"][: len(kept)] = 1
        row["positions"][: len(kept)] = np.arange(len(kept))
    yield rows


def plan(context: PrepareContext) -> JobPlan:
    options = context.task.preprocess
    read = (text for source in context.task.source for text in read_texts(source, context.base))
    texts = list(sample_items(read, context.task.limit, context.seed))
    facts = {"texts": len(texts)}
    return JobPlan(
        toy_blocks, (context.tokenizer, options), [texts], dtype(options, False), use_pool=False, facts=facts
    )


def dtype(options: ToyPreprocess, regression: bool) -> np.dtype:
    return row_dtype(options.sequence_length)


def reverse_odd_epochs(
    rows: Mapping[str, np.ndarray], *, seed: int, epoch: np.ndarray, indices: np.ndarray
) -> dict[str, np.ndarray]:
    made = {name: x.copy() for name, x in rows.items()}
    made["input_ids"][epoch % 2 == 1] = made["input_ids"][epoch % 2 == 1, ::-1]
    return made


SECTION = ToyPreprocess
RECORD = PreprocessKind(
    version=1,
    reads="texts",
    layout="encoder",
    plan=plan,
    dtype=dtype,
    transform=lambda options, tokenizer: reverse_odd_epochs,
    report=lambda name, options, meta: [f"{name}: {meta['texts']} toy texts"],
)
