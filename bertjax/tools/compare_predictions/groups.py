"""Kinds of questions, by which a comparison is broken down."""

import re
from collections.abc import Mapping

from bertjax.data.sources.squad import Example

_WORDS = ("what", "who", "when", "where", "why", "how", "which")
_ALIKE = {"whom": "who", "whose": "who", "what's": "what", "who's": "who", "where's": "where"}
_TOKEN = re.compile(r"[a-z]+(?:['’]s)?")
ANSWER_WORDS = ((1, 1), (2, 2), (3, 4), (5, 9), (10, None))  # of the shortest gold answer
CONTEXT_WORDS = ((0, 99), (100, 149), (150, 199), (200, None))


def question_word(question: str) -> str:
    """The first English question word, wherever it is; "how many" also for "how much"; "other" without one."""
    words = [word.replace("’", "'") for word in _TOKEN.findall(question.lower())]
    for place, word in enumerate(words):
        word = _ALIKE.get(word, word)
        if word == "how" and words[place + 1 : place + 2] in (["many"], ["much"]):
            return "how many"
        if word in _WORDS:
            return word
    return "other"


def question_groups(example: Example, version_2: bool) -> Mapping[str, str]:
    """{kind of group: group} of a question."""
    found = {"question": question_word(example.question)}
    if version_2:
        found["answerable"] = "no" if example.is_impossible else "yes"
    if example.answers:
        found["answer_words"] = _range(min(len(text.split()) for text, _ in example.answers), ANSWER_WORDS)
    found["context_words"] = _range(len(example.context.split()), CONTEXT_WORDS)
    if example.title:
        found["title"] = example.title
    return found


def _range(count: int, ranges: tuple[tuple[int, int | None], ...]) -> str:
    for low, high in ranges:
        if high is None or count <= high:
            return f"{low} or more" if high is None else str(low) if low == high else f"{low} to {high}"
    raise AssertionError(count)


def group_order(kind: str, names: list[str], sizes: Mapping[str, int]) -> list[str]:
    """The groups of a kind in the order of a table: ranges ascending, others by size."""
    if kind in ("answer_words", "context_words"):
        return sorted(names, key=lambda name: int(name.split()[0]))
    return sorted(names, key=lambda name: (-sizes[name], name))
