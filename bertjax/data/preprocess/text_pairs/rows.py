"""The kind `text_pairs`: rows of two or three texts that are encoded one by one, with a weight and maybe a score."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bertjax.config.schema.data import Task, TextPairs
from bertjax.data.jobs import job_plan, text_counts
from bertjax.data.jobs.job_plan import CountedBlocks, JobPlan, PrepareContext
from bertjax.data.preprocess.registry import PreprocessKind, Preview
from bertjax.data.preprocess.sampling import sample_items
from bertjax.data.preprocess.text_pairs.records import LocatedRecord, PairSurvey, TextPair, to_pairs
from bertjax.data.sources.records import read_located
from bertjax.data.store.row_format import row_dtype
from bertjax.errors import UserError, escape_unprintable

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer


class PairContext(NamedTuple):
    tokenizer: "Tokenizer"
    options: TextPairs


def pair_dtype(options: TextPairs) -> np.dtype:
    """One row. S = sequence_length, T = 2 or 3 texts.

    input_ids, token_type_ids, segment_ids, positions int32 [T * S]: text t is at t * S .. t * S + S - 1, with
    segment id t + 1 and positions from 0; text_starts int32 [T]; pair_weights float32 [1]; scores float32 [1], if the
    options name the field of one.
    """
    texts = len(options.fields)
    scores = {} if options.score is None else {"scores": "f4"}
    base = row_dtype(texts * options.sequence_length, pair_weights="f4", **scores)
    return np.dtype([*base.descr, ("text_starts", "<i4", (texts,))])


def pair_blocks(context: PairContext, pairs: Sequence[TextPair]) -> CountedBlocks:
    """Rows of `[CLS] text [SEP]` for each text, cut at its end."""
    options, tokenizer = context.options, context.tokenizer
    length, room = options.sequence_length, options.sequence_length - tokenizer.layout.num_special(False)
    rows = np.zeros(len(pairs), pair_dtype(options))
    rows["input_ids"], rows["pair_weights"] = tokenizer.pad_id, 1
    encoded: list[list[int]] = []
    for number in range(len(options.fields)):
        start = number * length
        rows["text_starts"][:, number] = start
        column = tokenizer.encode_batch([pair.texts[number] for pair in pairs])
        encoded += column
        for row, text in zip(rows, column, strict=True):
            ids, types = tokenizer.layout.row(text[:room])
            own = slice(start, start + len(ids))
            row["input_ids"][own], row["token_type_ids"][own] = ids, types
            row["segment_ids"][own], row["positions"][own] = number + 1, np.arange(len(ids))
    if options.score is not None:
        rows["scores"][:, 0] = [pair.score for pair in pairs]
    yield rows
    return {"texts": text_counts.count(encoded, room, tokenizer.unk_id)}


def plan_pairs(context: PrepareContext) -> JobPlan:
    options: TextPairs = context.task.preprocess
    survey = PairSurvey()
    try:
        for _ in to_pairs(_records(context), options, survey):
            pass
        if not survey.records:
            raise UserError("its source holds no records; check the files")
        if survey.empty == survey.records:
            raise UserError(f"all {survey.records:,} records have an empty text; check preprocess.text_a and text_b")
    except UserError as error:
        raise UserError(escape_unprintable(f"task '{context.name}': {error}")) from None
    pairs = to_pairs(_records(context), options, PairSurvey())
    jobs = iter(lambda: list(islice(pairs, job_plan.EXAMPLES_PER_JOB)), [])
    use_pool = survey.records > job_plan.MIN_POOL_EXAMPLES
    facts = {"records": survey.records, "empty": survey.empty}
    return JobPlan(
        pair_blocks, PairContext(context.tokenizer, options), jobs, pair_dtype(options), use_pool, facts
    )  # fmt: skip


def _records(context: PrepareContext) -> Iterator[LocatedRecord]:
    """The records of all sources that `limit` keeps."""
    located = chain.from_iterable(read_located(source, context.base) for source in context.task.source)
    return sample_items(located, context.task.limit, context.seed)


def _report(name: str, options: TextPairs, meta: dict[str, Any]) -> Iterable[str]:
    if meta.get("empty"):
        yield f"{name}: {meta['empty']:,} of {meta['records']:,} records have an empty text and are left out"


def _check(preview: Preview, most: int) -> None:
    """Raises UserError if one of the first records lacks a text or a score."""
    (source,) = preview.task.source
    survey = PairSurvey()
    for _ in to_pairs(islice(read_located(source, preview.base), most), preview.task.preprocess, survey):
        pass
    if not survey.records:
        raise UserError("holds no records; check the files")


def _texts(task: Task, source: Any, base: Path) -> Iterator[str]:
    options: TextPairs = task.preprocess
    for _, record in read_located(source, base):
        yield from (text for name in options.fields if isinstance(text := record.get(name), str))


TEXT_PAIRS = PreprocessKind(
    version=1,
    reads="records",
    layout="encoder",
    plan=plan_pairs,
    dtype=lambda options, classes: pair_dtype(options),
    report=_report,
    check=_check,
    texts=_texts,
)
