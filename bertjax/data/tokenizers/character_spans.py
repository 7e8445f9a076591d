"""Widens the offsets of pieces, which can end inside a grapheme or a word, to complete characters and words."""

import unicodedata

import numpy as np

_OTHER, _SPACE, _LETTER, _DIGIT, _SYMBOL, _EXTEND, _UNKNOWN = range(7)
_kinds = np.full(0x110000, _UNKNOWN, np.uint8)  # by code point, filled as they are met

# Scripts that put spaces between words and rarely anything of another word into them. Not so are Chinese, Japanese,
# Thai (no spaces), Korean, Arabic, Hebrew, Tamil and others (particles joined to the word an answer consists of).
_SPACED_SCRIPTS = ("LATIN ", "GREEK ", "CYRILLIC ")
_ZERO_WIDTH_JOINER = 0x200D


def expand_to_words(text: str, offsets: np.ndarray) -> np.ndarray:
    """Offsets (start, stop) [T, 2] of pieces in `text`, widened to complete characters and words -> int32 [T, 2].

    White space at the ends is removed first; a piece of white space gets start == stop. Then an end that separates a
    character from its marks, two letters of a script with spaces between words, or two digits moves outwards: "er"
    in "New Zealander" becomes "Zealander". Starts and stops of pieces with characters never decrease.
    """
    kinds = _kinds_of(text)
    count = len(kinds)
    spaces, places = kinds == _SPACE, np.arange(count + 1)
    # first character that is no space at or after a place; the end of the last one at or before it
    next_text = np.minimum.accumulate(np.append(np.where(spaces, count, places[:-1]), count)[::-1])[::-1]
    text_stop = np.maximum.accumulate(np.append(0, np.where(spaces, 0, places[1:])))
    starts, stops = next_text[offsets[:, 0]], text_stop[offsets[:, 1]]
    empty = starts >= stops
    cuttable = ~_inside(text, kinds)
    unit_start = np.maximum.accumulate(np.where(cuttable, places, 0))
    unit_stop = np.minimum.accumulate(np.where(cuttable, places, count)[::-1])[::-1]
    widened = np.stack([stops, stops], axis=1).astype(np.int32)
    widened[~empty, 0] = np.maximum.accumulate(unit_start[starts[~empty]])
    widened[~empty, 1] = np.maximum.accumulate(unit_stop[stops[~empty]])
    return widened


def _inside(text: str, kinds: np.ndarray) -> np.ndarray:
    """bool [characters + 1]: whether the place in front of a character is inside a character or a word."""
    inside = np.zeros(len(kinds) + 1, bool)
    if len(kinds) < 2:
        return inside
    extends = kinds == _EXTEND
    bases = kinds
    if extends.any():
        last_base = np.maximum.accumulate(np.where(extends, 0, np.arange(len(kinds))))
        bases = kinds[last_base]  # a mark counts as the letter it is on
    same = (bases[1:] == bases[:-1]) & ((bases[1:] == _LETTER) | (bases[1:] == _DIGIT))
    inside[1:-1] = same | (extends[1:] & (kinds[:-1] != _SPACE))
    if not text.isascii():
        joined = np.frombuffer(text.encode("utf-32-le"), np.uint32)[:-1] == _ZERO_WIDTH_JOINER
        inside[1:-1] |= joined & (kinds[1:] == _SYMBOL)
    return inside


def _kinds_of(text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    found = _kinds[codes]
    unknown = found == _UNKNOWN
    if unknown.any():
        for code in np.unique(codes[unknown]).tolist():
            _kinds[code] = _kind(chr(code))
        found = _kinds[codes]
    return found


def _kind(char: str) -> int:
    category, code = unicodedata.category(char), ord(char)
    joining_jamo = 0x1160 <= code <= 0x11FF  # vowels and final consonants of a decomposed Korean syllable
    emoji_modifier = 0x1F3FB <= code <= 0x1F3FF
    if category[0] == "M" or char in "\u200c\u200d" or joining_jamo or emoji_modifier:
        return _EXTEND
    if char.isspace() or category == "Cc" or char in "\u200b\u2060\ufeff":
        return _SPACE
    if category[0] == "L" and unicodedata.name(char, "").startswith(_SPACED_SCRIPTS):
        return _LETTER
    if category == "Nd":
        return _DIGIT
    return _SYMBOL if category == "So" else _OTHER
