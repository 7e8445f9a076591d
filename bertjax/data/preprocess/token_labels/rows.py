"""The kind `token_labels`: rows `[CLS] pieces [SEP]` with a label at the first piece of each word."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bertjax.config.schema.data import Task, TokenLabels
from bertjax.data.jobs import job_plan
from bertjax.data.jobs.job_plan import CountedBlocks, JobPlan, PrepareContext
from bertjax.data.preprocess.label_survey import LabelKey
from bertjax.data.preprocess.labels import LabelEncoder, build_label_encoder, label_metadata
from bertjax.data.preprocess.registry import PreprocessKind, Preview
from bertjax.data.preprocess.token_labels.sentences import (
    IGNORED,
    Sentence,
    TagSurvey,
    read_sentences,
    survey_tags,
    to_sentences,
)
from bertjax.data.preprocess.token_labels.words import cut_long_words, encode_texts, encode_words, windows
from bertjax.data.sources.class_names import UNLABELED, ClassSpec, names_from_source
from bertjax.data.sources.records import read_located
from bertjax.data.store.row_format import row_dtype
from bertjax.errors import UserError, escape_unprintable

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer

SENTENCES = 10_000  # of each source, whose labels are checked before anything is prepared
Names = Mapping[int, Sequence[str] | None]  # of the ids in each source, by its number


class TagContext(NamedTuple):
    tokenizer: "Tokenizer"
    options: TokenLabels
    ids: Mapping[LabelKey, int]  # of every label in the data
    dtype: np.dtype


def tag_dtype(options: TokenLabels) -> np.dtype:
    """One unpacked row. S = sequence_length.

    token_labels int32 [S]: ids, IGNORED where there is none; word_ids int32 [S]: the number of the word that begins
    there and is predicted in this row, -1 elsewhere; example_ids int32 [1]: the number of the sentence.
    """
    base = row_dtype(options.sequence_length, cls_positions="i4", example_ids="i4")
    more = [(name, "<i4", (options.sequence_length,)) for name in ("token_labels", "word_ids")]
    return np.dtype([*base.descr, *more])


def tag_blocks(context: TagContext, numbered: Sequence[tuple[int, Sentence]]) -> CountedBlocks:
    """The rows of sentences, those of a long one side by side; each word is labelled in one row."""
    options, tokenizer = context.options, context.tokenizer
    room = options.sequence_length - tokenizer.layout.num_special(False)
    encoded = _encode([sentence for _, sentence in numbered], tokenizer, options)
    counts: dict[str, int] = {}
    rows: list[np.ndarray] = []
    for (number, sentence), whole in zip(numbered, encoded, strict=True):
        pieces = cut_long_words(whole, room)
        per_word = np.bincount(whole.words[whole.words >= 0], minlength=len(sentence.words))
        cut = {"cut": int((per_word > room).sum()), "tokens_cut": pieces.lost}
        more = {"texts": len(sentence.words), "tokens": len(whole.ids), "unknown": whole.ids.count(tokenizer.unk_id)}
        counts = {key: counts.get(key, 0) + value for key, value in (more | cut).items()}
        labels = np.array([*(context.ids.get(tag, UNLABELED) for tag in sentence.tags), IGNORED], np.int32)
        labels[labels == UNLABELED] = IGNORED
        for window in windows(pieces, room, options.overlap):
            part = slice(window.start, window.stop)
            words, first = pieces.words[part], pieces.first[part]
            row = np.zeros((), context.dtype)
            row["input_ids"] = tokenizer.pad_id
            row["token_labels"], row["word_ids"] = IGNORED, -1
            ids, _ = tokenizer.layout.row(pieces.ids[part])
            end = len(ids)
            row["input_ids"][:end] = ids
            row["segment_ids"][:end], row["positions"][:end] = 1, np.arange(end)
            labelled = window.own & (words >= 0) & (first | options.label_all_tokens)
            row["token_labels"][1 : end - 1] = np.where(labelled, labels[words], IGNORED)
            row["word_ids"][1 : end - 1] = np.where(window.own & first, words, -1)
            row["example_ids"] = number
            rows.append(row)
    yield np.stack(rows) if rows else np.zeros(0, context.dtype)
    return {"words": counts}


def _encode(sentences: Sequence[Sentence], tokenizer: "Tokenizer", options: TokenLabels) -> list[Any]:
    if options.text is None:
        return encode_words([one.words for one in sentences], tokenizer)
    return encode_texts([one.text or "" for one in sentences], [one.places for one in sentences], tokenizer)


def plan_tags(context: PrepareContext) -> JobPlan:
    options: TokenLabels = context.task.preprocess
    try:
        names, given, given_by = source_names(context.task, context.base)
        survey = survey_tags(read_sentences(context.task, context.base, context.seed, names), options, given, given_by)
        if not survey.sentences:
            raise UserError("its source holds no sentences; check the files")
        labels = label_encoder(survey, context.classes)
    except UserError as error:
        raise UserError(escape_unprintable(f"task '{context.name}': {error}")) from None
    numbered = enumerate(read_sentences(context.task, context.base, context.seed, names))
    jobs = iter(lambda: list(islice(numbered, job_plan.EXAMPLES_PER_JOB)), [])
    dtype = tag_dtype(options)
    facts = {"sentences": survey.sentences, "words": survey.words, "widened": survey.widened}
    facts |= {**label_metadata(labels, survey.labels), "hidden": 0, "unlabeled": labels.unlabeled}
    shared = TagContext(context.tokenizer, options, labels.ids or {}, dtype)
    return JobPlan(
        tag_blocks, shared, jobs, dtype, survey.sentences > job_plan.MIN_POOL_EXAMPLES, facts, row_sums=_window_sums
    )


def label_encoder(survey: TagSurvey, classes: ClassSpec | None) -> LabelEncoder:
    """The ids of labels; words without a label are neither trained on nor scored, whatever the classes say."""
    found = classes or ClassSpec()
    spec = ClassSpec(found.count, found.names, found.required, keep_unlabeled=True)
    return build_label_encoder(survey.labels, spec)


def source_names(task: Task, base: Path) -> tuple[Names, tuple[str, ...] | None, str | None]:
    """(names of the ids by source, all names in order of appearance, who gives them)."""
    options: TokenLabels = task.preprocess
    if options.labels is not None:
        return dict.fromkeys(range(len(task.source)), options.labels), tuple(options.labels), "labels"
    if options.text is not None:
        return {}, None, None
    found = {number: names_from_source(one, base, options.tags) for number, one in enumerate(task.source)}
    names = tuple(dict.fromkeys(name for given in found.values() for name in given or ()))
    return found, names or None, "source" if names else None


def _window_sums(rows: np.ndarray) -> dict[str, int]:
    """Sentences of several windows, and their windows; all windows of a sentence are in one block."""
    _, counts = np.unique(rows["example_ids"], return_counts=True)
    return {"split": int((counts > 1).sum()), "windows": int(counts[counts > 1].sum())}


def _metadata(options: TokenLabels, facts: dict[str, Any], lengths: np.ndarray, sums: Mapping[str, int]) -> dict:
    return {"split": sums.get("split", 0), "windows": sums.get("windows", 0)}


def _report(name: str, options: TokenLabels, meta: dict[str, Any]) -> Iterable[str]:
    if meta.get("split"):
        yield (
            f"{name}: {meta['split']:,} of {meta['sentences']:,} sentences are longer than a row (sequence_length "
            f"{options.sequence_length}): read in {meta['windows']:,} windows, no word is lost"
        )
    if meta.get("unlabeled"):
        yield f"{name}: {meta['unlabeled']:,} of {meta['words']:,} words have no label: neither trained on nor scored"
    if meta.get("widened"):
        yield f"{name}: {meta['widened']:,} entities begin or end inside a word: they were widened to whole words"


def _check(preview: Preview, most: int) -> None:
    """Raises UserError if one of the first records has no words with labels."""
    options: TokenLabels = preview.task.preprocess
    (source,) = preview.task.source
    if not sum(1 for _ in islice(to_sentences(read_located(source, preview.base), options), most)):
        raise UserError("holds no sentences; check the files")


def _check_classes(preview: Preview) -> ClassSpec | None:
    """The labels by the first SENTENCES of each source, if these are all or their names are known."""
    task, options = preview.task, preview.task.preprocess
    classes = preview.classes or ClassSpec()
    names, given, given_by = source_names(task, preview.base)
    complete = task.limit is None

    def first() -> Iterator[Sentence]:
        nonlocal complete
        for number, source in enumerate(task.source):
            found = to_sentences(read_located(source, preview.base), options, names.get(number))
            yield from islice(found, SENTENCES)
            complete = complete and next(found, None) is None

    survey = survey_tags(first(), options, given, given_by)
    survey.labels.complete = complete
    labels = label_encoder(survey, classes)
    if not complete and labels.decided_by not in ("labels", "source"):
        return None
    return ClassSpec(classes.count, labels.names, required=True, keep_unlabeled=True)


def _texts(task: Task, source: Any, base: Path) -> Iterator[str]:
    """The words of each sentence, joined by spaces."""
    options: TokenLabels = task.preprocess
    for sentence in to_sentences(read_located(source, base), options):
        yield sentence.text if sentence.text is not None else " ".join(sentence.words)


TOKEN_LABELS = PreprocessKind(
    version=1,
    reads="records",
    layout="encoder",
    plan=plan_tags,
    dtype=lambda options, classes: tag_dtype(options),
    uses_classes=True,
    metadata=_metadata,
    report=_report,
    check=_check,
    check_classes=_check_classes,
    texts=_texts,
)
