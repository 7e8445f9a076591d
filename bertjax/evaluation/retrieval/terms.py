"""The terms of a text that BM25 counts, in every script.

Words are runs of letters, digits and combining marks, compared after NFKC and case folding, without stemming or stop
words, as in Lucene's standard analyzer. Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese) give each character and each pair of neighboring characters (Nie, Gao, Zhang and Zhou 2000, "On the Use of
Words and N-grams for Chinese Information Retrieval").
"""

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

# blocks of scripts without spaces between words, as ranges of a character class
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9fe\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_JOINERS = str.maketrans("", "", "\u200c\u200d")  # inside Persian and Indic words, without meaning for a comparison
_MAX_WORD = 64  # letters; a longer run is data and no word, and is cut


class Unit(NamedTuple):
    """A word, or one character of a script without spaces: characters [start, end) of the text."""

    start: int
    end: int
    term: str
    unspaced: bool


def units(text: str) -> Iterator[Unit]:
    """The words of the text, and the characters of scripts without spaces, in order."""
    for found in unit_pattern().finditer(text):
        yield Unit(*found.span(), fold(found.group()), found.lastindex is not None)


def terms(text: str) -> list[str]:
    """The terms of a question, with repetitions."""
    found = list(units(text))
    return [one.term for one in found] + [a.term + b.term for a, b in zip(found, found[1:], strict=False) if pair(a, b)]


def pair(first: Unit, second: Unit) -> bool:
    """Whether two units in a row are neighboring characters of scripts without spaces."""
    return first.unspaced and second.unspaced and first.end == second.start


@functools.lru_cache(maxsize=1 << 16)
def fold(word: str) -> str:
    """The term of a word."""
    return unicodedata.normalize("NFKC", word).casefold().translate(_JOINERS)


def is_spaced(text: str) -> bool:
    """Whether the text has no character of a script without spaces, so that each unit is a word."""
    return text.isascii() or _unspaced().search(text) is None


@functools.cache
def unit_pattern() -> re.Pattern[str]:
    """A unit; group 1 is a character of a script without spaces, with its combining marks."""
    marks = "".join(f"{chr(first)}-{chr(last)}" for first, last in _mark_ranges())
    letters = rf"[^\W_{_UNSPACED}]"
    return re.compile(
        rf"{letters}{{1,{_MAX_WORD}}}(?:[{marks}\u200c\u200d]+{letters}{{0,{_MAX_WORD}}}){{0,{_MAX_WORD}}}|([{_UNSPACED}][{marks}]*)"
    )


@functools.cache
def _unspaced() -> re.Pattern[str]:
    return re.compile(f"[{_UNSPACED}]")


def _mark_ranges() -> Iterator[tuple[int, int]]:
    """Code points of combining marks, which `\\w` leaves out: first and last of each range."""
    marks = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)).startswith("M")]
    first = previous = marks[0]
    for code in marks[1:]:
        if code != previous + 1:
            yield first, previous
            first = code
        previous = code
    yield first, previous
