"""The kind `classify`: rows of one or two texts and a label."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bertjax.config.schema.data import Classify, Task
from bertjax.data.jobs import job_plan, text_counts
from bertjax.data.jobs.job_plan import CountedBlocks, JobPlan, PrepareContext
from bertjax.data.preprocess.label_survey import (
    holds_several,
    label_field,
    survey_labels,
    with_label_lists,
    with_label_names,
)
from bertjax.data.preprocess.labels import LabelEncoder, build_label_encoder, label_metadata
from bertjax.data.preprocess.registry import PreprocessKind, Preview
from bertjax.data.preprocess.sampling import sample_items
from bertjax.data.sources.class_names import ClassSpec, names_from_source
from bertjax.data.sources.record_files import LocatedRecords
from bertjax.data.sources.records import read_located
from bertjax.data.store.row_format import row_dtype
from bertjax.errors import UserError, escape_unprintable

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer


LABELED_RECORDS = 10_000  # of each source, whose labels are checked before anything is prepared


class ClassifyContext(NamedTuple):
    tokenizer: "Tokenizer"
    classify: Classify
    labels: LabelEncoder
    dtype: np.dtype


def classify_blocks(context: ClassifyContext, records: Sequence[dict[str, Any]]) -> CountedBlocks:
    """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`: run_classifier.py's convert_single_example (google-research/bert),
    with the special tokens of the tokenizer's layout.

    A single text is cut at its end; of a pair the longer text loses tokens from its end (B when equal).
    """
    options, tokenizer, field = context.classify, context.tokenizer, label_field(context.classify)
    texts_a = tokenizer.encode_batch([record[options.text_a] for record in records])
    texts_b: Sequence[list[int]] = [[]] * len(records)
    if options.text_b is not None:
        texts_b = tokenizer.encode_batch([record[options.text_b] for record in records])
    rows = np.zeros(len(records), context.dtype)
    rows["input_ids"] = tokenizer.pad_id
    pair = options.text_b is not None
    room = options.sequence_length - tokenizer.layout.num_special(pair)
    for row, record, a, b in zip(rows, records, texts_a, texts_b, strict=True):
        a, b = truncate_pair(a, b, room)
        ids, types = tokenizer.layout.row(a, b if pair else None)
        row["input_ids"][: len(ids)] = ids
        row["token_type_ids"][: len(ids)] = types
        row["segment_ids"][: len(ids)] = 1
        row["positions"][: len(ids)] = np.arange(len(ids))
        row["labels"], row["label_weights"] = context.labels.encode(record[field])
    yield rows
    both = [[*a, *b] for a, b in zip(texts_a, texts_b, strict=True)]
    return {"texts": text_counts.count(both, room, tokenizer.unk_id)}


def truncate_pair(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """_truncate_seq_pair of run_classifier.py."""
    if len(a) + len(b) <= room:
        return a, b
    keep_a = min(len(a), max(room - len(b), room - room // 2))
    return a[:keep_a], b[: room - keep_a]


def classify_dtype(options: Classify, classes: ClassSpec) -> np.dtype:
    """labels: int32 [1] ids, float32 [1] numbers of a regression, or uint8 [1, C] with 1 for each label of the text."""
    if classes.multi_label:
        fields = row_dtype(options.sequence_length, cls_positions="i4", label_weights="f4").descr
        return np.dtype([*fields, ("labels", "u1", (1, classes.count or 2))])
    labels = "f4" if classes.count == 1 else "i4"
    return row_dtype(options.sequence_length, cls_positions="i4", labels=labels, label_weights="f4")


def plan_classify(context: PrepareContext) -> JobPlan:
    options: Classify = context.task.preprocess
    classes = context.classes or ClassSpec()
    try:
        given, given_by = _all_label_names(context)
        found = survey_labels(_records(context, given), options, given, given_by, several=classes.multi_label)
        if not found.records:
            raise UserError("its source holds no records; check the files")
        labels = build_label_encoder(found, classes)
    except UserError as error:
        raise UserError(escape_unprintable(f"task '{context.name}': {error}")) from None
    records = (record for _, record in _records(context, given))
    jobs = iter(lambda: list(islice(records, job_plan.EXAMPLES_PER_JOB)), [])
    rows_for = ClassSpec(1 if labels.ids is None else labels.several, multi_label=labels.several is not None)
    dtype = classify_dtype(options, rows_for)
    shared = ClassifyContext(context.tokenizer, options, labels, dtype)
    about = {"records": found.records, **label_metadata(labels, found)}
    return JobPlan(classify_blocks, shared, jobs, dtype, found.records > job_plan.MIN_POOL_EXAMPLES, about)


def _all_label_names(context: PrepareContext | Preview) -> tuple[tuple[str, ...] | None, str | None]:
    """(names, who gives them): the sources' own names of their ids, in order of appearance."""
    found = [_label_names_of(context, source) for source in context.task.source]
    names = tuple(dict.fromkeys(name for given, _ in found for name in given or ()))
    return (names, found[0][1] or "source") if names else (None, None)


def _label_names_of(context: PrepareContext | Preview, source: Any) -> tuple[tuple[str, ...] | None, str | None]:
    """(names of a source's ids, where they come from): `labels` of the configuration, else the data set's own."""
    options: Classify = context.task.preprocess
    if own := options.labels or options.label_columns:
        return tuple(own), "labels"
    if context.classes is not None and context.classes.count == 1:
        return None, None  # in a regression the ids of a ClassLabel are numbers like any others
    names = names_from_source(source, context.base, options.label)
    return names, "source" if names else None


def _records(context: PrepareContext, given: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of the records that `limit` keeps, with names for labels that are ids in their source."""

    located = chain.from_iterable(_named_records(context, source, given) for source in context.task.source)
    return sample_items(located, context.task.limit, context.seed)


def _named_records(context: PrepareContext | Preview, source: Any, given: Sequence[str] | None) -> LocatedRecords:
    own, _ = _label_names_of(context, source) if given else (None, None)
    options: Classify = context.task.preprocess
    located = read_located(source, context.base)
    if context.classes is not None and context.classes.multi_label:
        located = with_label_lists(located, options)
    return with_label_names(located, own, label_field(options)) if own else located


def check_records(preview: Preview, most: int) -> None:
    """Raises UserError if one of the first records lacks a text or a label."""
    options: Classify = preview.task.preprocess
    (source,) = preview.task.source
    preview = _with_several(preview)
    several = preview.classes is not None and preview.classes.multi_label
    located = islice(_named_records(preview, source, None), most)
    if not survey_labels(located, options, None, None, several=several).records:
        raise UserError("holds no records; check the files")


def _with_several(preview: Preview) -> Preview:
    """With `multi_label` by the options and the first record, where the classes are not known."""
    classes = preview.classes or ClassSpec()
    if classes.count is None:
        _, first = next(iter(read_located(preview.task.source[0], preview.base)), ("", None))
        classes = replace(classes, multi_label=holds_several(preview.task.preprocess, first))
    return replace(preview, classes=classes)


def check_classes(preview: Preview) -> ClassSpec | None:
    """The classes by the first LABELED_RECORDS of each source, if these are all or their names are known."""
    options: Classify = preview.task.preprocess
    preview = _with_several(preview)
    classes = preview.classes or ClassSpec()
    given, given_by = _all_label_names(preview)
    complete = preview.task.limit is None

    def first_records() -> Iterator[tuple[str, dict[str, Any]]]:
        nonlocal complete
        for source in preview.task.source:
            records = _named_records(preview, source, given)
            yield from islice(records, LABELED_RECORDS)
            complete = complete and next(records, None) is None

    found = survey_labels(first_records(), options, given, given_by, several=classes.multi_label)
    found.complete = complete
    labels = build_label_encoder(found, classes)
    if not complete and labels.decided_by not in ("labels", "source"):
        return None
    return replace(classes, names=labels.names, required=True, keep_unlabeled=True)


def _texts(task: Task, source: Any, base: Path) -> Iterator[str]:
    options: Classify = task.preprocess
    for _, record in read_located(source, base):
        for name in (options.text_a, options.text_b):
            text = record.get(name) if name is not None else None
            if isinstance(text, str):  # others are reported when the task is prepared
                yield text


CLASSIFY = PreprocessKind(
    version=1,
    reads="records",
    layout="encoder",
    plan=plan_classify,
    dtype=classify_dtype,
    uses_classes=True,
    check=check_records,
    check_classes=check_classes,
    texts=_texts,
)
