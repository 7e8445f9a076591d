"""Scores of labelled words: entities by the rules of conlleval and seqeval, or labels word by word."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bertjax.evaluation.metrics.labels import MAX_CONFUSION, MAX_PAIRS

OUTSIDE = "O"
SCORES = ("precision", "recall", "f1", "accuracy")
_CHUNK = re.compile(r"([BIESLUM])-(.*)", re.DOTALL)
_SAME = {"L": "E", "U": "S", "M": "I"}  # BILOU and BMES name the parts of IOBES otherwise
# (what begins an entity, what goes on, what ends it; None: anything) of the strict schemes
_STRICT = {
    "IOB2": ("B", "I", None),
    "IOE2": ("IE", "IE", "E"),
    "IOBES": ("BS", "IE", "ES"),
    "BILOU": ("BS", "IE", "ES"),
}
_PREFIXES = {"IOB2": "BI", "IOE2": "IE", "IOBES": "BIES", "BILOU": "BILU"}
Entity = tuple[str, int, int]  # type, first and last word


def split_tag(tag: str) -> tuple[str, str]:
    """(prefix, type) of a label: `B-PER`; ("O", "") outside. A label without a prefix is I-."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    found = _CHUNK.fullmatch(tag)
    return (_SAME.get(found[1], found[1]), found[2]) if found else ("I", tag)


def has_entities(names: Sequence[str]) -> bool:
    """Whether labels mark entities: `B-PER`, or types beside `O`. Parts of speech do not."""
    return OUTSIDE in names or any(_CHUNK.fullmatch(name) for name in names)


def foreign_prefix(names: Sequence[str], scheme: str) -> str | None:
    """The first label that a strict scheme does not have; None if all fit."""
    fits = [name == OUTSIDE or bool(re.match(f"[{_PREFIXES[scheme]}]-", name)) for name in names]
    return None if all(fits) else names[fits.index(False)]


def find_entities(tags: Sequence[str], scheme: str | None = None) -> list[Entity]:
    """The entities of a sentence (get_entities of seqeval, conlleval.pl); with `scheme` only those that it allows."""
    parts = [split_tag(tag) for tag in tags]
    return _strict(parts, *_STRICT[scheme]) if scheme else _lenient(parts)


def _lenient(parts: Sequence[tuple[str, str]]) -> list[Entity]:
    found: list[Entity] = []
    begin, before = 0, (OUTSIDE, "")
    for place, (prefix, kind) in enumerate([*parts, (OUTSIDE, "")]):
        changed = kind != before[1]
        if before[0] != OUTSIDE and (before[0] in "ES" or prefix in "BSO" or changed):
            found.append((before[1], begin, place - 1))
        if prefix != OUTSIDE and (prefix in "BS" or before[0] in "ESO" or changed):
            begin = place
        before = (prefix, kind)
    return found


def _strict(parts: Sequence[tuple[str, str]], begins: str, inside: str, ends: str | None) -> list[Entity]:
    found: list[Entity] = []
    place = 0
    while place < len(parts):
        (prefix, kind), first = parts[place], place
        place += 1
        if prefix == OUTSIDE or prefix not in begins:
            continue
        closing = (ends or "").replace("I", "")
        while place < len(parts) and prefix not in closing and parts[place][1] == kind and parts[place][0] in inside:
            prefix, place = parts[place][0], place + 1
        if ends is None or prefix in ends:
            found.append((kind, first, place - 1))
    return found


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Labels of N sentences -> (SCORES in percent, details); a score with denominator 0 is 0.

    Micro averages, as seqeval's. details: {"classes": {"names": types, "support", "predicted", "correct"}} counts
    entities by type; {"words": {"names": [O, types], "confusion"}} counts words (rows: labels, columns: predictions).
    """
    there, said, right = Counter[str](), Counter[str](), Counter[str]()
    words, hits, pairs = 0, 0, Counter[tuple[str, str]]()
    for true, guess in zip(gold, predicted, strict=True):
        one, other = set(find_entities(true, scheme)), set(find_entities(guess, scheme))
        there.update(kind for kind, _, _ in one)
        said.update(kind for kind, _, _ in other)
        right.update(kind for kind, _, _ in one & other)
        words += len(true)
        hits += sum(map(str.__eq__, true, guess))
        pairs.update((split_tag(a)[1], split_tag(b)[1]) for a, b in zip(true, guess, strict=True))
    found, total = sum(said.values()), sum(there.values())
    both = sum(right.values())
    scores = {"precision": both / max(found, 1), "recall": both / max(total, 1), "f1": 2 * both / max(found + total, 1)}
    scores["accuracy"] = hits / max(words, 1)
    types = sorted({*there, *said, *(kind for pair in pairs for kind in pair if kind)})
    counts = {"support": there, "predicted": said, "correct": right}
    details: dict[str, Any] = {
        "classes": {"names": types, **{name: [count[one] for one in types] for name, count in counts.items()}}
    }
    if len(types) < MAX_CONFUSION:
        rows = [[pairs[a, b] for b in ("", *types)] for a in ("", *types)]
        details["words"] = {"names": [OUTSIDE, *types], "confusion": rows}
    return {name: 100 * value for name, value in scores.items()}, details


def word_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Accuracy in percent, and the counts of each label as `label_details` gives them; for labels such as NOUN."""
    pairs = Counter(pair for true, guess in zip(gold, predicted, strict=True) for pair in zip(true, guess, strict=True))
    names = sorted({name for pair in pairs for name in pair})
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), int)
    for (true, guess), count in pairs.items():
        counts[place[true], place[guess]] = count
    found: dict[str, Any] = {
        "names": names, "support": counts.sum(1).tolist(), "predicted": counts.sum(0).tolist(),
        "correct": counts.diagonal().tolist(),
    }  # fmt: skip
    if len(names) <= MAX_CONFUSION:
        found["confusion"] = counts.tolist()
    else:
        wrong = [[place[a], place[b], count] for (a, b), count in pairs.most_common() if a != b]
        found["confused"] = wrong[:MAX_PAIRS]
    return {"accuracy": 100 * float(counts.trace()) / max(int(counts.sum()), 1)}, {"classes": found}
