"""Questions in SQuAD form, made by rule from the standard library's documentation.

A context strings together a few unlike entries of one module. Some questions are answered by the only fact of their
kind in the context, others by reading which entry is asked about; every answer is a span of the context.
"""

import collections
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable
from typing import Any

from bertjax.data.stdlib_source import THIRD_PERSON, Entry

CONTEXT_WORDS = (28, 44)  # two to four entries; with a question some 70 word pieces, so that a window of 96 holds most
GROUPINGS = 3  # ways to cut a module's entries into contexts; no question is asked twice
QUESTIONS_PER_CONTEXT = 8
QUESTIONS_PER_ENTRY = 3
CONSTANTS_PER_CONTEXT = 3
# Where a noun phrase ends: at a clause, and for verbs other than "return" at the words that add a place or a purpose.
_CLAUSE = re.compile(
    r"[,;:(]| -|\. | (?:if|when|where|which|that|unless|because|so|without|after|before|until|while|given|by|"
    r"and then|or|is|are|was|can|has|have|as if|containing|holding|representing|describing|using|used|needed|shared|"
    r"based|suitable|corresponding|showing|indicating|stored|passed|returned|found|relative|associated|to be|being|"
    r"and \w+s the|and \w+s an?)\b"
)
_PLACE = re.compile(r" (?:to|from|into|onto|in|on|with|for|at|as|out|through|over|under|against|and|between)\b")
_NOT_OBJECTS = frozenset(
    "to for if when from in on up down out off at by with into as and or that until over through about like back away "
    "only using according where how why not itself between so based again".split()
)

_ODD_QUESTIONS = frozenset("fail turn take try let".split())  # verbs that ask for more than their object


@dataclasses.dataclass(frozen=True)
class Question:
    kind: str  # the kind of fact it asks for; its first word is a key of _WEIGHT
    text: str
    answer: str
    start: int  # of the answer, in characters of the entry's own text


def build(modules: Iterable[tuple[str, list[Entry]]], seen: frozenset[str] = frozenset()) -> dict[str, Any]:
    """{"version", "data": [{"title", "paragraphs": [{"context", "qas"}]}]}, without the questions in `seen`."""
    used = set(seen)
    data = []
    for module, entries in modules:
        paragraphs = []
        for group in (group for skipped in range(GROUPINGS) for group in _groups(entries[skipped:])):
            paragraph = _paragraph(module, group, used)
            if paragraph["qas"]:
                paragraphs.append(paragraph)
        if paragraphs:
            data.append({"title": module, "paragraphs": paragraphs})
    return {"version": "1.1", "data": data}


def questions(squad: dict[str, Any]) -> frozenset[str]:
    return frozenset(q["question"] for article in squad["data"] for p in article["paragraphs"] for q in p["qas"])


def entry_text(entry: Entry) -> str:
    """What a context says about an entry: the opening, one short further sentence, the facts."""
    more = next((s for s in entry.prose if s.startswith("It ") and len(s.split()) <= 20), None)
    more = more or next((s for s in entry.prose[:1] if len(s.split()) <= 16), None)
    return " ".join([entry.opening(), *([more] if more else []), *entry.facts()])


def _groups(entries: list[Entry]) -> list[list[Entry]]:
    """Runs of entries that make contexts of a fitting length, names and descriptions distinct within each."""
    low, high = CONTEXT_WORDS
    groups: list[list[Entry]] = []
    current: list[Entry] = []
    length = 0
    for entry in _interleaved(entries):
        size = len(entry_text(entry).split()) if entry.lead else 0
        if not 5 <= size <= 45 or any(entry.name == e.name or entry.lead == e.lead for e in current):
            continue
        if entry.kind == "constant" and [e.kind for e in current].count("constant") == CONSTANTS_PER_CONTEXT:
            continue
        if length + size > high:
            if length >= low:
                groups.append(current)
            current, length = [], 0
        current.append(entry)
        length += size
    return groups + ([current] if length >= low else [])


def _interleaved(entries: list[Entry]) -> list[Entry]:
    """The entries with unlike ones next to each other, so that a context has few facts of any one kind."""
    unlike: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        likeness = (entry.kind, entry.lead.startswith("returns "), entry.raises != "", entry.defaults != ())
        unlike.setdefault(likeness, []).append(entry)
    rounds = itertools.zip_longest(*unlike.values())
    return [entry for chosen in rounds for entry in chosen if entry is not None]


def _paragraph(module: str, group: list[Entry], used: set[str]) -> dict[str, Any]:
    texts = [entry_text(entry) for entry in group]
    context = " ".join(texts)
    candidates: list[tuple[bytes, int, int, Question]] = []
    offset = 0
    for index, (entry, text) in enumerate(zip(group, texts, strict=True)):
        for question in _ask(entry, text, group):
            order = hashlib.sha256(f"{module}\0{question.text}\0{context}".encode()).digest()
            candidates.append((order, index, offset, question))
        offset += len(text) + 1
    # First what the context says only once: which fact is wanted then follows from question and context without telling
    # two entries apart by name, and a small model learns that much in a minute. A context without such a fact is asked
    # one of the harder questions.
    kinds = collections.Counter(question.kind for _, _, _, question in candidates)
    candidates.sort(key=lambda c: (kinds[c[3].kind] > 1, _rank(c[3].kind, c[0])))
    qas = []
    asked = [0] * len(group)
    for order, index, offset, question in candidates:
        if asked[index] == QUESTIONS_PER_ENTRY or question.text in used:
            continue
        if len(qas) == QUESTIONS_PER_CONTEXT or (qas and kinds[question.kind] > 1):
            break
        start = offset + question.start
        assert context[start : start + len(question.answer)] == question.answer, (question, context)
        asked[index] += 1
        used.add(question.text)
        answer = {"text": question.answer, "answer_start": start}
        qas.append({"id": order.hex()[:24], "question": question.text, "answers": [answer]})
    return {"context": context, "qas": qas}


# The rarer kinds are more likely to be asked where they can be; else half of all questions would ask for a name.
_WEIGHT = {
    "name": 1.0,
    "object": 1.3,
    "returns": 1.6,
    "default": 0.7,
    "raises": 1.6,
    "base": 1.3,
    "value": 0.5,
    "owner": 0.5,
}


def _rank(kind: str, order: bytes) -> float:
    return int.from_bytes(order[:4], "big") / 2**32 / _WEIGHT[kind.split()[0]]


def _ask(entry: Entry, text: str, group: list[Entry]) -> list[Question]:
    """Every question that can be asked about one entry among the others of its context."""
    found = [*_ask_name(entry, group), *_ask_object(entry), *_ask_sentences(entry, text)]
    the = f"the {entry.kind} {entry.name}"
    if entry.kind == "constant":
        value = entry.lead.removeprefix("has the value ")
        return [_question("value", f"What is the value of {entry.name}?", value, text, "has the value ")]
    for argument, value in entry.defaults:
        lead_in = f"The argument {argument} of {entry.name} is "
        wanted = f"What is the default value of the argument {argument} of {entry.name}?"
        found.append(_question("default", wanted, value, text, lead_in))
        if [v for _, v in entry.defaults].count(value) == 1:
            wanted = f"Which argument of {entry.name} is {value} by default?"
            found.append(_question("default name", wanted, argument, text, "The argument ", within=lead_in))
    if entry.raises:
        wanted = f"Which exception can {the} raise?"
        found.append(_question("raises", wanted, entry.raises, text, f"The {entry.kind} {entry.name} can raise "))
    if entry.base:
        wanted = f"Which class is {entry.name} a subclass of?"
        found.append(_question("base", wanted, entry.base, text, f"The class {entry.name} is a subclass of "))
    if entry.owner and len({e.owner for e in group if e.owner}) > 1:
        wanted = f"Which class has the {entry.kind} {entry.name}?"
        found.append(_question("owner", wanted, entry.owner, text, f"{entry.name} of "))
    return found


def _question(kind: str, wanted: str, answer: str, text: str, lead_in: str, within: str = "") -> Question:
    """A question whose answer stands right after `lead_in` (searched from `within`, when given)."""
    start = text.index(lead_in + answer, text.index(within) if within else 0) + len(lead_in)
    return Question(kind, wanted, answer, start)


def _ask_name(entry: Entry, group: list[Entry]) -> list[Question]:
    shown = entry.short_lead()
    words = shown.split()
    known = sum(other.lead.startswith(shown) for other in group)
    if entry.kind == "constant" or known > 1 or not 3 <= len(words) <= 14 or entry.name in words:
        return []
    if words[-1] in _NOT_OBJECTS | {"the", "a", "an", "of"}:
        return []
    wanted = f"Which {entry.kind} {shown}?"
    return [_question(f"name {entry.kind}", wanted, entry.name, entry.opening(), f"The {entry.kind} ")]


def _ask_object(entry: Entry) -> list[Question]:
    """'What does the method close remove?' for 'removes the lock file ...', 'What is the class X?' for 'is a ...'."""
    words = entry.lead.split(" ")
    prefix = f"The{entry.subject[3:]} "
    if entry.kind == "class" and words[0] == "is" and words[1] in ("a", "an", "the"):
        answer = _phrase(entry.lead[3:], place=False) or _phrase(entry.lead[3:], place=True)
        wanted = f"What is the class {entry.name}?"
        return [_question("object", wanted, answer, entry.opening(), prefix + "is ")] if answer else []
    at = 1 if words[0].endswith("ly") else 0
    verb = THIRD_PERSON.get(words[at])
    if entry.kind == "constant" or verb is None or verb in _ODD_QUESTIONS:
        return []
    if len(words) < at + 2 or words[at + 1] in _NOT_OBJECTS:
        return []
    answer = _phrase(" ".join(words[at + 1 :]), place=verb != "return")
    adverb = words[0] + " " if at else ""
    wanted = f"What does the {entry.kind} {entry.name} {adverb}{verb}?"
    kind = "returns" if verb == "return" else "object"
    return [_question(kind, wanted, answer, entry.opening(), f"{prefix}{adverb}{words[at]} ")] if answer else []


def _ask_sentences(entry: Entry, text: str) -> list[Question]:
    """Questions on 'It returns ...' and 'It raises X if ...'."""
    found = []
    the = f"the {entry.kind} {entry.name}"
    returned = re.search(r"\bIt returns ([^.]+)\.", text)
    if returned and not entry.lead.startswith("returns"):
        answer = _phrase(returned[1], place=False)
        if answer:
            found.append(Question("returns", f"What does {the} return?", answer, returned.start(1)))
    raised = re.search(
        r"\bIt raises (?:an? )?(\w+(?:Error|Exception|Exit|Stop\w+)) (if|when|on) ([^.,;()]+)[.,;]", text
    )
    if raised and 2 <= len(raised[3].split()) <= 12:
        wanted = f"Which exception does {the} raise {raised[2]} {raised[3]}?"
        found.append(Question("raises", wanted, raised[1], raised.start(1)))
    return found


def _phrase(text: str, place: bool) -> str:
    """The noun phrase that `text` opens with: up to a clause (and a place); "" when it is too long or not one."""
    end = _CLAUSE.search(text)
    phrase = text[: end.start()] if end else text
    if place and (cut := _PLACE.search(phrase)):
        phrase = phrase[: cut.start()]
    phrase = re.sub(r" \w+ly$", "", phrase.strip())
    words = phrase.split()
    if not 1 <= len(words) <= 9 or words[0].lower() in _NOT_OBJECTS or words[0].endswith("ly"):
        return ""
    if words[-1].lower() in _NOT_OBJECTS | {"the", "a", "an", "of", "all", "any", "its", "this", "each", "more"}:
        return ""
    if words[0] in ("True", "False", "true", "false", "None", "whether") or phrase in ("a class", "the class"):
        return ""
    return phrase
