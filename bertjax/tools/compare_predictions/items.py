"""Pairs two predictions for each question or text and scores both."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.config.schema.sources import JsonLines, Parquet, SquadFiles
from bertjax.data.sources.record_files import read_by_suffix
from bertjax.data.sources.squad import Example, is_version_2, read_squad
from bertjax.errors import UserError, escape_unprintable
from bertjax.evaluation.metrics import squad
from bertjax.storage.files import content_suffix
from bertjax.tools.compare_predictions.groups import question_groups
from bertjax.tools.compare_predictions.read import LABEL_FIELD, Answers

_SOURCES = {".json": SquadFiles, ".jsonl": JsonLines, ".parquet": Parquet}


@dataclass(frozen=True)
class Item:
    """A question, or a text, with both predictions. Scores are from 0 to 1 by name, of A and of B."""

    id: str
    text: str
    context: str
    gold: Sequence[str]  # empty: no answer
    predictions: tuple[str, str]
    scores: Mapping[str, tuple[float, float]]  # the first one decides who is right, the last one who is better
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Pairs:
    """What is compared, the official scores of both sides, and what could not be compared."""

    items: list[Item]
    scores: tuple[dict[str, Any], dict[str, Any]]
    notes: list[str]
    source: str


def pair_answers(data: Path, sides: tuple[Answers, Answers]) -> Pairs:
    """Answers to the questions of a SQuAD file, or of question records (.jsonl, .parquet).

    Scores are those of `bertjax score squad`; questions that only one side has are in its scores, but not compared.
    Raises UserError for a side without any question of the data.
    """
    examples, version_2 = _read_gold(data)
    ids = {example.id for example in examples}
    notes: list[str] = []
    scores = []
    for letter, side in zip("AB", sides, strict=True):
        missing = [example.id for example in examples if example.id not in side.texts]
        if len(missing) == len(examples):
            raise UserError(
                f"{side.path}: has an answer to no question of {data}; check that the files belong together"
            )
        if missing:
            effect = "are left out of its scores" if version_2 else "count 0 in its scores"
            notes.append(f"{letter} has no answer to {_share(missing, len(examples))}, which {effect}")
        if extra := [key for key in side.texts if key not in ids]:
            what = "1 question that is" if len(extra) == 1 else f"{len(extra):,} questions that are"
            notes.append(f"{letter} has answers to {what} not in the data {_first(extra)}")
        scores.append(dict(squad.score(examples, side.texts, version_2=version_2)))
    a, b = (side.texts for side in sides)
    both = [example for example in examples if example.id in a and example.id in b]
    if not both:
        raise UserError(f"{sides[0].path}, {sides[1].path}: they answer no question in common")
    items = [_answer_item(example, (a[example.id], b[example.id]), version_2) for example in both]
    return Pairs(items, (scores[0], scores[1]), notes, str(data))


def _read_gold(data: Path) -> tuple[list[Example], bool]:
    kind = _SOURCES.get(content_suffix(data))
    if kind is None:
        raise UserError(f"{data}: unknown kind of file; the name must end with {', '.join(_SOURCES)}")
    source = kind(files=[str(data.absolute())])
    examples = read_squad(source, data.parent)
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise UserError(f"{data}: question '{escape_unprintable(example.id)[:60]}' is there twice; remove one")
        seen.add(example.id)
    unanswerable = any(example.is_impossible for example in examples)
    return examples, unanswerable or (kind is SquadFiles and is_version_2(data))


def _answer_item(example: Example, predictions: tuple[str, str], version_2: bool) -> Item:
    judged = [squad.score([example], {example.id: text}, version_2=version_2) for text in predictions]
    scores = {name: (judged[0][name] / 100, judged[1][name] / 100) for name in ("exact", "f1")}
    gold = list(dict.fromkeys(text for text, _ in example.answers))
    groups = question_groups(example, version_2)
    return Item(example.id, example.question, example.context, gold, predictions, scores, groups)


def pair_labels(paths: tuple[Path, Path], label: str) -> Pairs:
    """Labels of the same texts in two files of `bertjax predict classify`, whose field `label` has the true ones.

    Lines belong together by `id` if both files have one, else by their order, and then all other fields must agree.
    Texts without a true label are counted and left out. Raises UserError.
    """
    first, second = (_label_records(path, label) for path in paths)
    notes: list[str] = []
    if all("id" in record for _, record in first + second):
        pairs = _by_id(paths, first, second, notes)
    else:
        pairs = _by_order(paths, first, second)
    unlabelled = sum(_text(a.get(label)) == "" for a, _ in pairs)
    if unlabelled:
        notes.append(f"{unlabelled:,} of {len(pairs):,} texts have no true label and are left out")
    items = [_label_item(str(n), a, b, label) for n, (a, b) in enumerate(pairs, 1) if _text(a.get(label)) != ""]
    if not items:
        raise UserError(f"{paths[0]}: no text has a true label in the field '{label}'; name the field with --label")
    names = {text for item in items for text in item.predictions}
    if not any(item.gold[0] in names for item in items):
        shown = f"'{items[0].gold[0][:40]}', predictions are {', '.join(sorted(names)[:4])}"
        raise UserError(f"{paths[0]}: no true label is a label that was predicted (true ones are {shown})"[:300])
    accuracy = [100 * sum(item.scores["accuracy"][side] for item in items) / len(items) for side in (0, 1)]
    scores = tuple({"accuracy": value, "total": len(items)} for value in accuracy)
    return Pairs(items, (scores[0], scores[1]), notes, f"the field '{label}' of {paths[0]}")


def _label_records(path: Path, label: str) -> list[tuple[str, dict[str, Any]]]:
    located = read_by_suffix(path)
    assert located is not None
    records = list(located)
    for where, record in records:
        for field in (LABEL_FIELD, label):
            if field not in record:
                names = escape_unprintable(", ".join(map(str, record))[:120])
                hint = "; name the true labels with --label" if field == label else ""
                raise UserError(f"{where}: no field '{field}'; the fields are: {names}{hint}")
    return records


def _by_id(paths: Any, first: Any, second: Any, notes: list[str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    sides = []
    for records in (first, second):
        side: dict[str, dict[str, Any]] = {}
        for where, record in records:
            if str(record["id"]) in side:
                raise UserError(f"{where}: id '{str(record['id'])[:60]}' is there twice; remove one of the two")
            side[str(record["id"])] = record
        sides.append(side)
    a, b = sides
    for letter, one, other in (("A", a, b), ("B", b, a)):
        if extra := [key for key in one if key not in other]:
            what = "1 text" if len(extra) == 1 else f"{len(extra):,} texts"
            notes.append(f"{letter} has {what} that the other has not {_first(extra)}; not compared")
    shared = [(record, b[key]) for key, record in a.items() if key in b]
    if not shared:
        raise UserError(f"{paths[0]}, {paths[1]}: they have no id in common")
    return shared


def _by_order(paths: Any, first: Any, second: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    if len(first) != len(second):
        raise UserError(
            f"{paths[1]}: has {len(second):,} lines and {paths[0]} {len(first):,}; without a field id the files must "
            "have the same lines"
        )
    made = {LABEL_FIELD, "probability", "probabilities"}
    for (_, a), (where, b) in zip(first, second, strict=True):
        for field in a.keys() & b.keys() - made:
            if a[field] != b[field]:
                raise UserError(f"{where}: '{escape_unprintable(field)[:60]}' differs from that line of {paths[0]}")
    return [(a, b) for (_, a), (_, b) in zip(first, second, strict=True)]


def _label_item(number: str, a: dict[str, Any], b: dict[str, Any], label: str) -> Item:
    gold = _text(a[label])
    predictions = (_text(a[LABEL_FIELD]), _text(b[LABEL_FIELD]))
    right = (float(predictions[0] == gold), float(predictions[1] == gold))
    made = {LABEL_FIELD, "probability", "probabilities", "id", label}
    text = " / ".join(value for key, value in a.items() if key not in made and isinstance(value, str))
    return Item(str(a.get("id", number)), text, "", [gold], predictions, {"accuracy": right}, {"label": gold})


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _share(missing: Sequence[str], total: int) -> str:
    return f"{len(missing):,} of {total:,} questions {_first(missing)}"


def _first(keys: Sequence[str]) -> str:
    return f"(first: {escape_unprintable(keys[0])[:60]})"


def groups_of(items: Sequence[Item]) -> Iterator[str]:
    """The kinds of groups that the items have, in order."""
    yield from dict.fromkeys(kind for item in items for kind in item.groups)
