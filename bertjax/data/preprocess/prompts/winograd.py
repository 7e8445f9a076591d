"""Pronoun resolution in T5's form, 'wsc: .. *it* ..', with the proposed referent, right or wrong by `label`, as target.

From wsc_simple, wnli_simple and definite_pronoun_resolution_simple of t5/data/preprocessors.py.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from bertjax.data.preprocess.prompts.t5_prompts import TextExample, answer_texts, class_id
from bertjax.data.sources.record_values import Record, get_field, record_id, text_field
from bertjax.errors import UserError

_LABELS = ("False", "True")
_ENTAILS = ("not_entailment", "entailment")
_PRONOUNS = ("he", "she", "they", "it", "her", "his", "their", "them", "him")
_ENDS = (".", ",", "?", "!")
# Two texts of SuperGLUE with a wrong index or spelling of the pronoun, and the text in the reference.
_SPECIAL = {
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. "
    '"Good for him," he said. ':
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. "
    '"Good for X ," he said.',
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron safe "
    ". Some day they might want to use it , but really for now, what more could they wish for?":
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron safe "
    ". Some day they might want to use X , but really for now, what more could they wish for?",
}  # fmt: skip


def wsc(record: Record) -> list[TextExample]:
    """SuperGLUE's WSC; `span2_index` counts words from 0. Raises UserError where that word is not `span2_text`."""
    if isinstance(record.get("target"), Mapping):  # the file itself, as SuperGLUE publishes it
        record = {**record, **record["target"]}
    text, pronoun = text_field(record, "text"), text_field(record, "span2_text")
    blanked = _SPECIAL.get(text)
    if blanked is None:
        words, place = text.split(" "), text_field(record, "span2_index")
        # The reference takes no pronoun that is the first word.
        index = int(place) if place.isdecimal() and len(place) < 10 else 0
        if not 0 < index < len(words) or words[index] != pronoun:
            raise UserError(f"span2_text '{pronoun[:40]}' is not word {place[:10]} of the text; correct the record")
        blanked = " ".join([*words[:index], "X", *words[index + 1 :]])
    return _example(blanked.replace(" X ", f" *{pronoun}* "), text_field(record, "span1_text"), record, _LABELS)


def definite_pronoun_resolution(record: Record) -> list[TextExample]:
    """The first place of the pronoun that a space, '.' or ',' follows is marked; the target is the right candidate."""
    sentence, pronoun = text_field(record, "sentence"), text_field(record, "pronoun")
    candidates = answer_texts(get_field(record, "candidates"))
    label = class_id(get_field(record, "label"), tuple(candidates))
    if label < 0:
        raise UserError("the label is hidden; leave the record out")
    marked = re.sub(f" ({re.escape(pronoun)})( |\\.|,)", r" *\1*\2", sentence, count=1)
    referent = candidates[label]
    return [TextExample(f"wsc: {marked}", referent, (referent,), record_id(record) | {"label": label})]


def _example(marked: str, referent: str, record: Record, classes: tuple[str, ...]) -> list[TextExample]:
    label = class_id(record.get("label", 0), classes)
    return [TextExample(f"wsc: {marked}", referent, (referent,), record_id(record) | {"label": label})]


class _Match(NamedTuple):
    score: int  # words around the pronoun that the hypothesis repeats
    place: int  # of the pronoun in the premise
    candidate: str  # what the hypothesis has in its place


def wnli(record: Record) -> list[TextExample]:
    """GLUE's WNLI: the pronoun is the one whose neighbours the hypothesis repeats, the referent what replaced it.

    Raises UserError where the premise has no pronoun or the hypothesis repeats nothing of it.
    """
    premise, hypothesis = text_field(record, "sentence1"), text_field(record, "sentence2")
    words, said = _clean(premise), _clean(hypothesis)
    matches = [_match(words, said, index) for index, word in enumerate(words) if word in _PRONOUNS]
    best = max(matches, key=lambda match: match.score, default=None)
    referent = _referent(best.candidate, hypothesis) if best else None
    if best is None or referent is None:
        raise UserError("sentence1 has no pronoun that sentence2 replaces; leave the record out")
    return _example(_mark(premise, best.place), referent, record, _ENTAILS)


def _clean(sentence: str) -> list[str]:
    words = [re.sub(r"[.,?!]$", "", word) for word in sentence.strip().lower().split(" ")]
    return [word for word in words if word]


def _matching_prefix(said: list[str], words: list[str]) -> int:
    """How many of the first words are in the hypothesis, consecutively."""
    text = " ".join(said)
    return next((n for n in range(len(words)) if " ".join(words[: n + 1]) not in text), len(words))


def _match(words: list[str], said: list[str], index: int) -> _Match:
    before, after = words[:index], words[index + 1 :]
    size_before, size_after = _matching_prefix(said[::-1], before[::-1]), _matching_prefix(said, after)
    score, candidate = size_before + size_after, ""
    if score:
        left, right = map(re.escape, before[len(before) - size_before :]), map(re.escape, after[:size_after])
        left_text, right_text, text = list(left), list(right), " ".join(said)
        found = re.search(" ".join([*left_text, "(.+)", *right_text]), text)
        found = found or re.search(" ".join(["^(.+)", *right_text]), text)
        found = found or re.search(" ".join([*left_text, "(.+)$"]), text)
        candidate = found.group(1) if found else ""
    return _Match(score, index, candidate)


def _mark(sentence: str, index: int) -> str:
    words = sentence.split(" ")
    word = words[index]
    words[index] = f"*{word[:-1]}* {word[-1]}" if word[-1:] in _ENDS else f"*{word}*"
    return " ".join(words)


def _referent(candidate: str, hypothesis: str) -> str | None:
    """The candidate as written in the hypothesis, from its last article on, without punctuation and possessive."""
    words = candidate.split(" ")
    words = words[max(words.index(article) if article in words else 0 for article in ("a", "an", "the")) :]
    found = re.search(" ".join(rf"{re.escape(word)}(?:\.|,|\?|\!)?" for word in words), hypothesis, re.IGNORECASE)
    if found is None:
        return None
    text = found.group()
    text = text[:-1] if text.endswith(_ENDS) else text
    return text[:-1] if text.endswith("'") else text.removesuffix("'s")
