"""Words, analogy questions and sentences of `bertjax explore`, from files and options."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bertjax.errors import UserError
from bertjax.storage.files import read_lines
from bertjax.tools.explore.analogies import Question

WORDS = "words"  # the group of words without a heading
_HEADING = ":"


def parse_words(text: str) -> dict[str, tuple[str, ...]]:
    """Words separated by commas, as one group. Raises UserError without one."""
    return _groups({WORDS: [word.strip() for word in text.split(",")]}, "--words")


def read_words(path: Path) -> dict[str, tuple[str, ...]]:
    """{group: its words} of a file with a word in each line; a line `: name` begins a group. Raises UserError."""
    groups: dict[str, list[str]] = {}
    name = WORDS
    for _, line in read_lines(path):
        text = line.strip()
        if text.startswith(_HEADING):
            name = text.removeprefix(_HEADING).strip() or WORDS
        else:
            groups.setdefault(name, []).append(text)
    return _groups(groups, str(path))


def _groups(groups: Mapping[str, Sequence[str]], where: str) -> dict[str, tuple[str, ...]]:
    """Groups without blanks and without words that occurred before."""
    seen: set[str] = set()
    found = {}
    for name, words in groups.items():
        fresh = tuple(word for word in dict.fromkeys(words) if word and word not in seen)
        seen.update(fresh)
        if fresh:
            found[name] = fresh
    if not found:
        raise UserError(f"{where}: holds no word; write one in each line, or a list with commas")
    return found


def read_questions(path: Path) -> list[Question]:
    """Lines of four words, `a b c d`; a line `: name` begins a section, as in questions-words.txt of word2vec.

    Raises UserError, which names the line, for another number of words, and for a file without a question.
    """
    section, found = "", []
    for number, line in read_lines(path):
        words = line.split()
        if line.lstrip().startswith(_HEADING):
            section = line.strip().removeprefix(_HEADING).strip()
        elif words and len(words) != 4:
            raise UserError(f"{path}: line {number} has {len(words)} words; write four, or ': name' for a section")
        elif words:
            found.append(Question(section or "questions", *words))
    if not found:
        raise UserError(f"{path}: holds no question; a line is four words, a b c d: a is to b as c is to d")
    return found
