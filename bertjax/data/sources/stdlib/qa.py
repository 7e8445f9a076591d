"""Makes questions in SQuAD format from the standard library's documentation, by rules.

A context joins entries of a few modules and holds each kind of fact at most once, so that a small model learns fast.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bertjax.data.sources.stdlib.parse import Entry

CONTEXT_WORDS = (28, 60)
ANSWER_WORDS = 9
GROUPINGS = 4  # contexts per question, so that reading helps and memorizing does not


class Fact(NamedTuple):
    """A sentence of a context and what can be asked about it. The answer is found in `sentence` after `cue`."""

    kind: str
    sentence: str
    question: str
    cue: str
    answer: str


@dataclass(eq=False)
class _Group:
    """Entries of a context that is not full yet, the kinds of facts in it and its length in words."""

    items: list[tuple[str, list[Fact]]] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    words: int = 0


def build_squad(modules: Iterable[tuple[str, list[Entry]]], seen: frozenset[str] = frozenset()) -> dict[str, Any]:
    """SQuAD v1.1's format without the questions in `seen`; a context's title is the module of its first entry."""
    described = [(module, facts) for module, entries in modules for e in entries if (facts := list(facts_of(e)))]
    articles: dict[str, list[dict[str, Any]]] = {}
    contexts: set[str] = set()
    for grouping in range(GROUPINGS):
        keys = {id(facts): _digest(str(grouping), module, facts[0].sentence) for module, facts in described}
        described.sort(key=lambda item: keys[id(item[1])])
        used = set(seen)
        for group in _groups(described):
            paragraph = _paragraph([facts for _, facts in group], used)
            if paragraph["qas"] and paragraph["context"] not in contexts:
                contexts.add(paragraph["context"])
                articles.setdefault(group[0][0], []).append(paragraph)
    data = [{"title": title, "paragraphs": paragraphs} for title, paragraphs in sorted(articles.items())]
    return {"version": "1.1", "data": data}


def iter_questions(squad: dict[str, Any]) -> frozenset[str]:
    return frozenset(q["question"] for article in squad["data"] for p in article["paragraphs"] for q in p["qas"])


def facts_of(entry: Entry) -> Iterator[Fact]:
    """List the facts of an entry that a question can ask for; its own description comes first."""
    opening, lead, name, kind = entry.opening(), entry.short_lead(), entry.name, entry.kind
    if not 2 <= len(lead.split()) <= ANSWER_WORDS or len(opening.split()) > 2 * ANSWER_WORDS:
        return
    start = opening.index(f" {entry.lead}")
    subject = opening[:start] + " "
    if kind == "constant":
        value = entry.lead.removeprefix("has the value ")
        yield Fact("value", opening, f"What is the value of {name}?", "has the value ", value)
    elif kind == "class" and lead.startswith(("is a ", "is an ", "is the ")):
        yield Fact("class", opening, f"What is the class {name}?", subject + "is ", lead[3:])
    elif lead.startswith("returns "):
        yield Fact("returns", opening, f"What does the {kind} {name} return?", subject + "returns ", lead[8:])
    else:
        yield Fact("does", opening, f"What does the {kind} {name} do?", subject, lead)
    if entry.owner:
        yield Fact("owner", opening, f"Which class has the {kind} {name}?", f"{name} of ", entry.owner)
    said = iter(entry.facts())
    if entry.base:
        yield Fact("base", next(said), f"Which class is {name} derived from?", "is a subclass of ", entry.base)
    for argument, value in entry.defaults[:1]:
        wanted = f"What is the default value of the argument {argument} of {name}?"
        yield Fact("default", next(said), wanted, f"of {name} is ", value)
    if entry.raises:
        sentence = entry.facts()[-1]
        yield Fact("raises", sentence, f"Which exception can the {kind} {name} raise?", "can raise ", entry.raises)


def _groups(entries: list[tuple[str, list[Fact]]]) -> Iterator[list[tuple[str, list[Fact]]]]:
    """Entries for one context after another, first fit: few words, no two facts of one sort."""
    waiting: list[_Group] = []
    for item in entries:
        facts = item[1]
        kinds, words = {fact.kind for fact in facts}, _words(facts)
        most = CONTEXT_WORDS[1] - words
        group = next((one for one in waiting if one.words <= most and one.kinds.isdisjoint(kinds)), None)
        if group is None:
            group = _Group()
            waiting.append(group)
        group.items.append(item)
        group.kinds |= kinds - {"owner"}  # two owners: then it is not asked for
        group.words += words
        if group.words >= CONTEXT_WORDS[0]:
            waiting.remove(group)
            yield group.items
    yield from (group.items for group in waiting if len(group.items) > 1)


def _words(facts: list[Fact]) -> int:
    return sum(len(sentence.split()) for sentence in _sentences(facts))


def _sentences(facts: list[Fact]) -> list[str]:
    return list(dict.fromkeys(fact.sentence for fact in facts))


def _paragraph(group: list[list[Fact]], used: set[str]) -> dict[str, Any]:
    context = " ".join(sentence for facts in group for sentence in _sentences(facts))
    kinds = [fact.kind for facts in group for fact in facts]
    qas = []
    for fact in (fact for facts in group for fact in facts):
        if fact.question in used or kinds.count(fact.kind) > 1:
            continue
        used.add(fact.question)
        start = context.index(fact.cue + fact.answer, context.index(fact.sentence)) + len(fact.cue)
        answer = {"text": fact.answer, "answer_start": start}
        qas.append({"id": _digest(fact.question, context)[:24], "question": fact.question, "answers": [answer]})
    return {"context": context, "qas": qas}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
