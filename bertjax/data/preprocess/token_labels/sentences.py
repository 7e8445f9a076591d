"""Sentences with a label for each word, from records of words and labels or of texts and entities."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.config.schema.data import Task, TokenLabels
from bertjax.data.preprocess.label_survey import LabelKey, LabelSurvey
from bertjax.data.preprocess.sampling import sample_items
from bertjax.data.preprocess.token_labels.words import Span, split_words
from bertjax.data.sources.class_names import find_class_id, format_names
from bertjax.data.sources.record_files import LocatedRecords
from bertjax.data.sources.record_values import describe_value
from bertjax.data.sources.records import read_located
from bertjax.errors import UserError, escape_unprintable

IGNORED = -100  # the label of words that are neither trained on nor scored, as in torch; also -1 and null
OUTSIDE = "O"


class Entity(NamedTuple):
    """Characters start..end (exclusive) of a text."""

    start: int
    end: int
    label: str


class Sentence(NamedTuple):
    """Words with labels (names or ids; None: no label). Words of a `text` are at `places` in it."""

    where: str
    words: Sequence[str]
    tags: Sequence[LabelKey]
    text: str | None = None
    places: Sequence[Span] = ()
    types: frozenset[str] = frozenset()  # of the entities of a text
    widened: int = 0  # entities that began or ended inside a word


def read_sentences(
    task: Task, base: Path, seed: int, names_of: Mapping[int, Sequence[str] | None] | None = None
) -> Iterator[Sentence]:
    """The sentences of all sources that `limit` keeps, in order.

    names_of: the names of the ids in the source of this number, by which they are replaced. Raises UserError.
    """
    found = (one for number in range(len(task.source)) for one in _source_sentences(task, base, number, names_of or {}))
    return sample_items(found, task.limit, seed)


def _source_sentences(
    task: Task, base: Path, number: int, names_of: Mapping[int, Sequence[str] | None]
) -> Iterator[Sentence]:
    located = read_located(task.source[number], base)
    return to_sentences(located, task.preprocess, names_of.get(number))


def to_sentences(
    located: LocatedRecords, options: TokenLabels, names: Sequence[str] | None = None
) -> Iterator[Sentence]:
    """A sentence of each record. Raises UserError, which names the record and the word."""
    known: dict[LabelKey, LabelKey] = {}
    for where, record in located:
        if options.text is not None:
            yield _from_text(where, record, options.text, options.spans)
            continue
        words, tags = _list(where, record, options.tokens), _list(where, record, options.tags)
        if len(words) != len(tags):
            counts = f"{len(words)} in '{options.tokens}' and {len(tags)} in '{options.tags}'"
            raise UserError(f"{where}: a label is needed for each word, there are {counts}; correct the record")
        for place, word in enumerate(words, 1):
            if not isinstance(word, str) or not word:
                said = "empty" if word == "" else f"{describe_value(word)}, not a text"
                raise UserError(f"{where}: word {place} of '{options.tokens}' is {said}; correct the record")
        yield Sentence(where, words, [_tag(where, options.tags, i, tag, names, known) for i, tag in enumerate(tags, 1)])


def _list(where: str, record: Mapping[str, Any], name: str) -> Sequence[Any]:
    if name not in record:
        there = escape_unprintable(", ".join(map(str, record)))[:120]
        raise UserError(f"{where}: '{name}' is missing; it has: {there}; name the right field")
    value = record[name]
    if not isinstance(value, list | tuple):
        hint = "; for running text with entities set preprocess.text" if isinstance(value, str) else ""
        raise UserError(f"{where}: '{name}' is not a list but {describe_value(value)}{hint}; correct the record")
    return value


def _tag(
    where: str, name: str, place: int, tag: Any, names: Sequence[str] | None, known: dict[LabelKey, LabelKey]
) -> LabelKey:
    """A label as a name or an id; None where the data hide it."""
    if isinstance(tag, str):
        key: LabelKey = tag.strip() or None
    elif tag is None or (isinstance(tag, int) and not isinstance(tag, bool)):
        key = None if tag in (IGNORED, -1) else tag
    else:
        said = f"word {place} of '{name}' has {describe_value(tag)}"
        raise UserError(f"{where}: {said}, a label is a name or an id; correct the record")
    if names is None or key is None:
        return key
    if key not in known:
        number = find_class_id(key, names)
        if number is None:
            listed = format_names(names)
            raise UserError(f"{where}: label '{str(key)[:60]}' of word {place} is not one of those: {listed}")
        known[key] = names[number]
    return known[key]


def _from_text(where: str, record: Mapping[str, Any], text_field: str, spans_field: str) -> Sentence:
    """Words of a text with B-, I- and O, by its entities; an end inside a word moves outwards."""
    text = record.get(text_field)
    if not isinstance(text, str):
        said = f"is {describe_value(text)}" if text_field in record else "is missing"
        there = escape_unprintable(", ".join(map(str, record)))[:120]
        raise UserError(f"{where}: '{text_field}' {said}, a text is needed; it has: {there}; name the right field")
    entities = [_entity(where, text, spans_field, one) for one in _list(where, record, spans_field)]
    entities.sort()
    places = split_words(text)
    tags = [OUTSIDE] * len(places)
    widened = 0
    owner: dict[int, Entity] = {}
    for entity in entities:
        covered = [i for i, (start, end) in enumerate(places) if start < entity.end and end > entity.start]
        if taken := [i for i in covered if i in owner]:
            start, end = places[taken[0]]
            pair = f"{owner[taken[0]].label} and {entity.label}"
            raise UserError(
                f"{where}: two entities of '{spans_field}' ({escape_unprintable(pair)[:60]}) share the word at "
                f"characters {start} to {end}; a word has one label: keep one of them"
            )
        if not covered:
            raise UserError(
                f"{where}: the entity at characters {entity.start} to {entity.end} holds no word; remove it"
            )
        widened += (places[covered[0]][0], places[covered[-1]][1]) != _trimmed(text, entity)
        for i in covered:
            owner[i], tags[i] = entity, f"{'I' if i != covered[0] else 'B'}-{entity.label}"
    words = [text[start:end] for start, end in places]
    return Sentence(where, words, tags, text, places, frozenset(entity.label for entity in entities), widened)


def _trimmed(text: str, entity: Entity) -> Span:
    inside = text[entity.start : entity.end]
    return entity.end - len(inside.lstrip()), entity.start + len(inside.rstrip())


def _entity(where: str, text: str, field: str, value: Any) -> Entity:
    """An entity as {start, end, label}, or as its variants: Label Studio, doccano, Prodigy, spaCy."""
    if isinstance(value, Mapping):
        label = next((value[name] for name in ("label", "entity_group", "entity", "labels") if name in value), None)
        label = label[0] if isinstance(label, list) and len(label) == 1 else label
        bounds = [value.get(name, value.get(f"{name}_offset")) for name in ("start", "end")]
    elif isinstance(value, list | tuple) and len(value) == 3:
        bounds, label = list(value[:2]), value[2]
    else:
        raise UserError(f"{where}: '{field}' holds {describe_value(value)}; an entity is {{start, end, label}}")
    if not isinstance(label, str) or not label.strip():
        raise UserError(f"{where}: an entity of '{field}' has no label that is a text; correct the record")
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in bounds):
        raise UserError(f"{where}: an entity of '{field}' has no start and end that are integers; correct the record")
    start, end = bounds
    if not 0 <= start < end <= len(text):
        raise UserError(
            f"{where}: an entity of '{field}' is at characters {start} to {end} of a text of {len(text)}; start counts "
            f"from 0 and end is exclusive{_utf16_hint(text)}; correct the record"
        )
    said = value.get("text") if isinstance(value, Mapping) else None
    if isinstance(said, str) and said.strip() != text[start:end].strip():
        held = escape_unprintable(f"'{said[:40]}', the text has '{text[start:end][:40]}'")
        raise UserError(
            f"{where}: an entity of '{field}' says {held} at characters {start} to {end}"
            f"{_utf16_hint(text)}; correct the record"
        )
    return Entity(start, end, label.strip())


def _utf16_hint(text: str) -> str:
    """What may be wrong with offsets into a text with characters of two UTF-16 units, such as emoji."""
    return (
        " (characters are code points: an emoji is one, not two as in JavaScript)"
        if max(text, default="") > "\uffff"
        else ""
    )


class TagSurvey(NamedTuple):
    """The labels of all words, and numbers for the report."""

    labels: LabelSurvey
    sentences: int
    words: int
    widened: int


def survey_tags(
    sentences: Iterator[Sentence], options: TokenLabels, given: Sequence[str] | None, given_by: str | None
) -> TagSurvey:
    """One pass over sentences. The labels of a text's entities are O, and B- and I- of each type."""
    name = options.tags if options.text is None else options.spans
    found = LabelSurvey(name, tuple(given) if given else None, given_by)
    count = widened = 0
    types: dict[str, str] = {}
    for sentence in sentences:
        count += 1
        widened += sentence.widened
        for place, tag in enumerate(sentence.tags, 1):
            entry = found.occurrences.get(tag)
            if entry is None:
                found.occurrences[tag] = [1, f"{sentence.where}: word {place}"]
            else:
                entry[0] += 1
            found.records += 1
        types |= {one: sentence.where for one in sentence.types if one not in types}
    if options.text is not None:
        for label in (OUTSIDE, *(f"{prefix}-{one}" for one in types for prefix in "BI")):
            found.occurrences.setdefault(label, [0, next(iter(types.values()), "")])
    return TagSurvey(found, count, found.records, widened)
