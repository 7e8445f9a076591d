"""The kind `text_to_text`: records as inputs and targets, and these as rows for an encoder and a decoder."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bertjax.config.schema.data import Task, TextToText
from bertjax.data.jobs import job_plan, text_counts
from bertjax.data.jobs.job_plan import JobPlan, PrepareContext
from bertjax.data.preprocess.prompts.registry import PROMPTS, get_prompt
from bertjax.data.preprocess.prompts.t5_prompts import UNKNOWN_TARGET, PromptFn, TextExample, answer_texts
from bertjax.data.preprocess.registry import PreprocessKind, Preview
from bertjax.data.preprocess.sampling import sample_items
from bertjax.data.sources.class_names import UNLABELED, find_class_id, names_from_source, parse_class_id
from bertjax.data.sources.official_files import read_official_records, rename_columns
from bertjax.data.sources.record_files import LocatedRecords
from bertjax.data.sources.record_values import Record, get_field, record_id, text_field, to_text
from bertjax.data.sources.squad import read_records_or_questions
from bertjax.errors import UserError, escape_unprintable

if TYPE_CHECKING:
    from bertjax.data.jobs.job_plan import CountedBlocks
    from bertjax.data.tokenizers.sentencepiece import SentencePieceTokenizer

__all__ = ["TextExample", "class_names", "read_examples", "row_dtype", "text_to_text_blocks"]


def read_examples(
    task: Task, base: Path, *, training: bool = False, seed: int = 0, counts: text_counts.TextCounts | None = None,
    most: int | None = None,
) -> Iterator[TextExample]:  # fmt: skip
    """The examples of a `text_to_text` task in the order of its records; `task.limit` keeps a sample, by `seed`.

    The numbers of a ClassLabel become its names where these are the prompt's classes, or a template's targets without
    `labels`. For training a record with several answers gives one example (its first answer), or one for each in
    ReCoRD; WSC and WNLI give only correct referents. For evaluation each record gives one example with every reference.
    `counts` is filled, while the stream is read, with the records and those left out. `most`: the records to read.
    Raises UserError, naming the record and the field, for anything that cannot be read.
    """
    options: TextToText = task.preprocess
    make = template_prompt(options) if options.prompt is None else _with_label_texts(get_prompt(options), options)
    read = (_named(read_records_or_questions(source, base), source, base, options) for source in task.source)
    found = read_official_records(options.prompt or "", islice(chain.from_iterable(read), most))
    tally = (text_counts.TextCounts() if counts is None else counts).setdefault("records", {"texts": 0, "left_out": 0})
    for where, record in sample_items(found, task.limit, seed):
        try:
            record = record | {ours: get_field(record, theirs) for ours, theirs in options.fields.items()}
            made = make(rename_columns(options.prompt or "", record, training))
            for example in made:
                f"{example.inputs}{example.targets}".encode()
        except UserError as error:
            raise UserError(escape_unprintable(f"{where}: {error}")) from None
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no tokenizer takes it
            raise UserError(f"{where}: holds a lone surrogate, not a character; correct the record") from None
        except RecursionError:
            raise UserError(f"{where}: nested too deeply; correct the record") from None
        if training and any(map(_is_hidden, made)):
            raise UserError(f"{where}: its label or answer is hidden; train on records that have one")
        if not training:
            made = made[:1]
        elif options.prompt and PROMPTS[options.prompt].correct_referents_only:
            made = [example for example in made if example.extra["label"] == 1 and example.targets]
        tally["texts"] += 1
        tally["left_out"] += not made
        yield from made


def _is_hidden(example: TextExample) -> bool:
    unknown = example.targets == UNKNOWN_TARGET and not example.references
    return unknown or example.extra.get("label") == UNLABELED


def class_names(options: TextToText) -> tuple[str, ...] | None:
    """The targets of a classification, by number; None where the answers are free text."""
    if options.prompt is not None:
        return PROMPTS[options.prompt].classes
    if options.labels is None:
        return None
    return tuple(dict.fromkeys(options.labels if isinstance(options.labels, list) else options.labels.values()))


def _named(found: LocatedRecords, source: Any, base: Path, options: TextToText) -> LocatedRecords:
    """Records whose labels are names where the source has ClassLabel names that fit."""
    fields, classes = _label_fields(options)
    by_field = {field: names_from_source(source, base, field) for field in fields}
    known = {field: names for field, names in by_field.items() if names and _fit(names, classes)}
    if not known:
        return found
    return ((where, {**record, **_names_of(record, known, where)}) for where, record in found)


def _label_fields(options: TextToText) -> tuple[list[str], tuple[str, ...] | None]:
    """(fields whose numbers may have names, the classes that the names must be)."""
    if options.prompt is not None and (classes := PROMPTS[options.prompt].classes):
        return [options.fields.get("label", "label")], classes
    if options.prompt is not None or options.labels is not None:
        return [], None
    return [options.fields.get(field, field) for field in _parse(options.targets or "", "targets").fields], None


def _fit(names: Sequence[str], classes: Sequence[str] | None) -> bool:
    return classes is None or {find_class_id(name, classes) for name in names} == set(range(len(classes)))


def _names_of(record: dict[str, Any], known: Mapping[str, Sequence[str]], where: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for field, names in known.items():
        number = record.get(field)
        if not isinstance(number, int) or number == UNLABELED:
            continue
        if not 0 <= number < len(names):
            raise UserError(f"{where}: label {number} is not one of the {len(names)} names of the data set; correct it")
        made[field] = names[number]
    return made


def _with_label_texts(make: PromptFn, options: TextToText) -> PromptFn:
    """`make` after the record's `label` has been looked up in `options.labels`."""
    if options.labels is None:
        return make
    return lambda record: make({**record, "label": _label(get_field(record, "label"), options)})


def _label(value: Any, options: TextToText) -> str:
    """The text for a label, by its value, its number or, in a list, its name; UNKNOWN_TARGET where it is hidden."""
    labels = options.labels or {}
    names = {str(n): name for n, name in enumerate(labels)} if isinstance(labels, list) else labels
    spelt = "" if value is None else to_text(value).strip()
    number = parse_class_id(spelt) if spelt else UNLABELED
    for key in (spelt, spelt.lower(), str(number)):  # YAML writes truth values in lower case
        if key in names:
            return names[key]
    found = find_class_id(spelt, labels) if isinstance(labels, list) else None
    if found is not None and found != UNLABELED:
        return list(labels)[found]
    if number == UNLABELED:
        return UNKNOWN_TARGET
    known = ", ".join(names)[:100]
    raise UserError(f"label '{to_text(value)[:40]}' is not in 'labels', which has: {known}; add it there")


_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


class _Template(NamedTuple):
    """`fields`, and the `texts` around them: one more."""

    texts: list[str]
    fields: list[str]

    def fill(self, values: Sequence[str]) -> str:
        return "".join(chain.from_iterable(zip(self.texts, [*values, ""], strict=True)))


def _parse(template: str, key: str) -> _Template:
    texts, fields, end = [""], [], 0
    for piece in _PIECE.finditer(template):
        texts[-1] += template[end : piece.start()]
        end = piece.end()
        if piece[1]:
            fields.append(piece[1])
            texts.append("")
        elif piece[0] in ("{{", "}}"):
            texts[-1] += piece[0][0]
        else:
            raise UserError(
                f"preprocess.{key}: '{template[:60]}' has a lone '{piece[0]}'; write '{piece[0] * 2}' for it"
            )
    texts[-1] += template[end:]
    return _Template(texts, fields)


def template_prompt(options: TextToText) -> PromptFn:
    """The function of the templates `options.inputs` and `options.targets`, in which {field} is a field's text.

    Numbers become text. A list in the inputs is joined by spaces. A list in the targets holds answers: the first is
    the target and each is a reference; where there is none, the target is empty. `labels` translates the first field of
    the targets. {{ and }} are braces, {a/b} is field b inside of a.
    """
    inputs, targets = _parse(options.inputs or "", "inputs"), _parse(options.targets or "", "targets")
    if options.labels is not None and not targets.fields:
        raise UserError("preprocess.targets: 'labels' need a {field} in the targets to translate; add one")
    classes = class_names(options)

    def make(record: Record) -> list[TextExample]:
        extra: dict[str, Any] = record_id(record) if "id" in record else {}
        values = [get_field(record, field) for field in targets.fields]
        if classes is not None and values[0] is None:
            values[0] = UNLABELED
        answers = [answer_texts(value) for value in values]
        if classes is not None:
            answers[0] = [_label(value, options) for value in answers[0]]
            if UNKNOWN_TARGET in answers[0]:
                extra["label"], answers[0] = UNLABELED, []
            elif answers[0]:
                extra["label"] = classes.index(answers[0][0])
        asked = inputs.fill([text_field(record, field) for field in inputs.fields])
        many = next((n for n, texts in enumerate(answers) if len(texts) != 1), 0)
        count = len(answers[many]) if answers and all(answers) else len(answers) == 0
        said = tuple(
            targets.fill([texts[k if n == many else 0] for n, texts in enumerate(answers)]) for k in range(count)
        )
        return [TextExample(asked, said[0] if said else "", tuple(dict.fromkeys(said)), extra)]

    return make


def row_dtype(sequence_length: int, target_length: int) -> np.dtype:
    """One row for an encoder and a decoder; padding is zero everywhere."""
    inputs = [(name, "<i4", (sequence_length,)) for name in ("input_ids", "segment_ids", "positions")]
    targets = [(name, "<i4", (target_length,)) for name in ("target_ids", "target_segment_ids", "target_positions")]
    return np.dtype([*inputs, *targets, ("target_weights", "<f4", (target_length,))])


def text_to_text_blocks(
    context: tuple["SentencePieceTokenizer", np.dtype], examples: Sequence[tuple[str, str]]
) -> "CountedBlocks":
    """One block of rows [n], one for each (inputs, targets), cut to their length before EOS is appended
    (seqio.preprocessors.append_eos_after_trim).
    """
    tokenizer, dtype = context
    rows, counts = np.zeros(len(examples), dtype), text_counts.TextCounts()
    sides = (("input_ids", "segment_ids", "positions"), ("target_ids", "target_segment_ids", "target_positions"))
    for texts, (ids, segments, positions) in zip(zip(*examples, strict=True), sides, strict=True):
        length = dtype[ids].shape[0]
        encoded = tokenizer.encode_batch(list(texts))
        counts[ids.removesuffix("_ids") + "s"] = text_counts.count(encoded, length - 1, tokenizer.unk_id)
        cut = [[*tokens[: length - 1], tokenizer.eos_id] for tokens in encoded]
        real = np.arange(length) < np.array([len(tokens) for tokens in cut])[:, None]
        rows[ids][real] = np.concatenate(cut)
        rows[segments] = real
        rows[positions] = np.where(real, np.arange(length), 0)
    rows["target_weights"] = rows["target_segment_ids"]
    yield rows
    return counts


def plan_text_to_text(context: PrepareContext) -> JobPlan:
    options: TextToText = context.task.preprocess
    counts = text_counts.TextCounts()  # complete when the stream is read, which is before the facts are
    read = read_examples(context.task, context.base, training=True, seed=context.seed, counts=counts)
    stream = ((example.inputs, example.targets) for example in read)
    first = list(islice(stream, job_plan.MIN_POOL_EXAMPLES + 1))
    examples = chain(first, stream)
    jobs = iter(lambda: list(islice(examples, job_plan.EXAMPLES_PER_JOB)), [])
    dtype = row_dtype(options.sequence_length, options.target_length)
    pool = len(first) > job_plan.MIN_POOL_EXAMPLES
    return JobPlan(text_to_text_blocks, (context.tokenizer, dtype), jobs, dtype, pool, {text_counts.META_KEY: counts})


def check_records(preview: Preview, most: int) -> None:
    """Raises UserError if one of the first records lacks a field of the prompt, a label or an answer."""
    task = preview.task.model_copy(update={"limit": None})
    counts = text_counts.TextCounts()
    for _ in read_examples(task, preview.base, training=preview.training, counts=counts, most=most):
        pass
    if not counts["records"]["texts"]:
        raise UserError("holds no records; check the files")


def _texts(task: Task, source: Any, base: Path) -> Iterator[str]:
    one = task.model_copy(update={"source": [source], "limit": None})
    for example in read_examples(one, base, training=True):
        yield example.inputs
        yield example.targets


TEXT_TO_TEXT = PreprocessKind(
    version=1,
    reads="records",
    layout="encoder_decoder",
    plan=plan_text_to_text,
    dtype=lambda options, classes: row_dtype(options.sequence_length, options.target_length),
    check=check_records,
    texts=_texts,
)
