"""`bertjax init tag`: words with labels, or texts with entities."""

from collections.abc import Iterator, Sequence
from typing import Any

from bertjax.config.schema.data import Task, TokenLabels
from bertjax.data.preprocess.token_labels.rows import label_encoder, source_names
from bertjax.data.preprocess.token_labels.sentences import read_sentences, survey_tags
from bertjax.data.sources.records import read_located
from bertjax.errors import UserError, escape_unprintable
from bertjax.tools.init import columns, recipe
from bertjax.tools.init.columns import Records
from bertjax.tools.init.request import BASE, Request, Result, evaluations, record_sides
from bertjax.tools.init.source import Data, sample_records
from bertjax.tools.init.survey import Survey
from bertjax.tools.init.write import Recipe

WORDS = ("tokens", "words", "token", "word", "sentence")
TAGS = ("ner_tags", "tags", "labels", "ner", "upos_tags", "pos_tags", "tag", "label")
SPANS = ("spans", "entities", "entity", "annotations", "labels", "label")
SHOWN = 8  # labels with their numbers


def tag(request: Request) -> Result:
    """Look at the data -> what to write. Raises UserError."""
    data, machine = request.open(), request.machine
    if data.holds != "records":
        raise UserError(f"{data.described}: labels of words need a CoNLL file or records; name one of those")
    sample = sample_records(data, BASE)
    fields = _choose_fields(sample, request.text, request.label)
    _check_sample(data, sample, fields)
    options = TokenLabels(**fields)
    task = Task(source=[data.section], preprocess=options)
    names_of, given, given_by = source_names(task, BASE)
    lengths = Survey()

    def counted() -> Iterator[Any]:
        for sentence in read_sentences(task, BASE, 0, names_of):
            lengths.add(len(" ".join(sentence.words) if sentence.text is None else sentence.text))
            yield sentence

    survey = survey_tags(counted(), options, given, given_by)
    labels = label_encoder(survey, None)
    names = labels.names
    count = len(names) if names else max((i for i in (labels.ids or {}).values()), default=0) + 1
    if count < 2:
        raise UserError(f"{data.described}: '{survey.labels.name}' has one label; name another column with --label")
    scratch = request.pretrained is None
    sides = record_sides(request, data, lambda: _examples(data, options))
    most = lengths.length_at(0.95)
    length = machine.sequence_length(most)
    preprocess: dict[str, Any] = {"kind": "token_labels", "sequence_length": length, **fields}
    if names is not None:
        preprocess["labels"] = list(names)
    tuned = {} if scratch else {"learning_rate": 5e-5}
    stage = {
        "name": "tag",
        "data": {"source": sides.train, "preprocess": preprocess},
        "objective": {"kind": "token_classification", "num_labels": count},
        "epochs": recipe.fine_tuning_epochs(machine, survey.sentences),
        "batch_size": machine.batch_size(length),
        "optimizer": recipe.fine_tuning_optimizer(machine) | tuned,
        **evaluations("token_classification", sides, preprocess),
    }
    counts = _counts(survey.labels, names)
    found = [f"{data.described}: {survey.sentences:,} sentences, {survey.words:,} words, {counts}"]
    if survey.widened:
        found.append(f"{survey.widened:,} entities begin or end inside a word: they are widened to whole words")
    notes = [f"95% of the sentences have at most {most:,} characters; longer ones are read in windows."]
    if names is None:
        notes.append("The labels are ids without names: preprocess.labels: [...] can name them (O, B-PER, ...).")
    size = int(sum(lengths.lengths) / max(len(lengths.lengths), 1) * survey.sentences)
    return Result(
        Recipe(
            title=f"Labels of words: {survey.sentences:,} sentences of {data.described}, {count} labels.",
            commands=[f"bertjax predict tag {request.run_dir} 'a text'"],
            notes=notes,
            name=request.name,
            pretrained=request.pretrained,
            model=recipe.bert_sizes(machine, size, length) if scratch else None,
            stage=stage,
        ),
        sides,
        found,
    )


def _check_sample(data: Data, sample: Records, fields: dict[str, str]) -> None:
    """Raise UserError for words that are numbers of words, and for examples that an annotator did not accept."""
    words = [record[fields["tokens"]] for record in sample] if "tokens" in fields else []
    if data.keys["kind"] == "conll" and any(len(one) > 1 for one in words) and all(map(_is_numbered, words)):
        raise UserError(
            f"{data.described}: the first column has the numbers of words; name all columns: --fields id,tokens,..."
        )
    if refused := sum(record.get("answer") in ("reject", "ignore") for record in sample):
        raise UserError(
            f"{data.described}: {refused:,} of the first {len(sample):,} records have the answer 'reject' or 'ignore'; "
            "remove those that were not accepted"
        )


def _is_numbered(words: Any) -> bool:
    return list(words) in ([str(i) for i in range(start, start + len(words))] for start in (0, 1))


def _examples(data: Data, options: TokenLabels) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(record, its text, "") to split by."""
    for _, record in read_located(data.section, BASE):
        text = record[options.text] if options.text is not None else " ".join(record[options.tokens])
        yield record, text, ""


def _choose_fields(sample: Records, text: str | None, label: str | None) -> dict[str, str]:
    """Options that name the fields: `tokens` and `tags`, or `text` and `spans`. Raises UserError."""
    text, label = columns.find_column(sample, "--text", text), columns.find_column(sample, "--label", label)
    names = columns.column_names(sample)
    words = [name for name in names if _has_lists(sample, name, str)]
    if text is None or text in words:
        chosen = text or next((name for name in WORDS if name in words), None)
        tags = [name for name in names if name != chosen and chosen and _fits(sample, chosen, name)]
        own = label or next((name for name in TAGS if name in tags), tags[0] if len(tags) == 1 else None)
        if chosen and own:
            return {"tokens": chosen, "tags": own}
    texts = [name for name in columns.text_columns(sample)] if text is None else [text]
    spans = [name for name in names if _has_lists(sample, name, dict | list) and name not in words]
    own = label or next((name for name in SPANS if name in spans), spans[0] if len(spans) == 1 else None)
    if own and texts:
        return {"text": "text" if "text" in texts else texts[0], "spans": own}
    shown = escape_unprintable(", ".join(names))[:200]
    raise UserError(
        "--text, --label: name the columns of the words and of their labels (lists of one length), or of a text and "
        f"its entities; the columns are: {shown}"
    )


def _has_lists(sample: Records, name: str, of: Any) -> bool:
    lists = [record[name] for record in sample if isinstance(record.get(name), list)]
    return len(lists) >= len(sample) / 2 and all(isinstance(item, of) for one in lists for item in one)


def _fits(sample: Records, words: str, name: str) -> bool:
    """Whether a column has a label for each word."""
    pairs = [(record.get(words), record.get(name)) for record in sample]
    return all(isinstance(a, list) and isinstance(b, list) and len(a) == len(b) for a, b in pairs)


def _counts(found: Any, names: Sequence[str] | None) -> str:
    """`9 labels: O (1,234), B-PER (56), ...`, the most frequent ones."""
    by_count = sorted(found.occurrences.items(), key=lambda one: -one[1][0])
    shown = [
        f"{escape_unprintable('no label' if key is None else str(key))[:30]} ({count:,})"
        for key, (count, _) in by_count[:SHOWN]
    ]
    more = ", ..." if len(by_count) > SHOWN else ""
    return f"{len(names) if names else len(by_count)} labels: {', '.join(shown)}{more}"
