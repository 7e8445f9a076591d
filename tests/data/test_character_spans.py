"""Pieces' characters widened to whole characters and words, by hand-made cases and a property of any text."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.tokenizers.character_spans import expand_to_words


def texts(text: str, *pieces: tuple[int, int]) -> list[str]:
    return [text[start:stop] for start, stop in expand_to_words(text, np.array(pieces))]


@pytest.mark.parametrize(
    ("text", "pieces", "want"),
    [
        ("New Zealander", [(0, 3), (4, 11), (11, 13)], ["New", "Zealander", "Zealander"]),
        ("the 1990s", [(0, 3), (4, 8), (8, 9)], ["the", "1990", "s"]),
        ("1817", [(0, 2), (2, 4)], ["1817", "1817"]),
        ("€27,814", [(0, 1), (1, 3), (3, 4), (4, 7)], ["€", "27", ",", "814"]),
        ("Москва́ x", [(0, 3), (3, 6), (8, 9)], ["Москва́", "Москва́", "x"]),
        ("six-year-old", [(0, 3), (3, 4), (4, 8)], ["six", "-", "year"]),
        # marks that a normalizer dropped, between the pieces or behind them
        ("cafe\u0301 x", [(0, 4), (6, 7)], ["cafe\u0301", "x"]),
        ("नमस्ते", [(0, 1), (1, 2), (2, 3), (4, 5)], ["न", "म", "स्", "ते"]),
        ("क्\u200dष", [(0, 1), (3, 4)], ["क्\u200d", "ष"]),
        # one character out of several
        ("👍🏽!", [(0, 1), (1, 2), (2, 3)], ["👍🏽", "👍🏽", "!"]),
        ("👩\u200d💻 a", [(0, 1), (2, 3), (4, 5)], ["👩\u200d💻", "👩\u200d💻", "a"]),
        ("北京大学", [(0, 1), (1, 3), (3, 4)], ["北", "京大", "学"]),
        ("서울은", [(0, 2), (2, 3)], ["서울", "은"]),
        ("กินข้าว", [(0, 3), (3, 7)], ["กิน", "ข้าว"]),
        # white space: led by it (byte-level, SentencePiece), nothing else, no-break, zero-width
        ("a dog", [(0, 1), (1, 5)], ["a", "dog"]),
        ("a  dog", [(0, 1), (1, 2), (2, 6)], ["a", "", "dog"]),
        ("a\u00a0dog\u200b", [(0, 1), (1, 6)], ["a", "dog"]),
        ("  ", [(0, 2)], [""]),
        ("", [], []),
    ],
)
def test_characters_of_pieces(text, pieces, want):
    assert texts(text, *pieces) == want if pieces else len(expand_to_words(text, np.zeros((0, 2), int))) == 0


SPACES = " \u00a0\u200b\t"
ALPHABET = SPACES + "ab7é\u0301\u200d北👩🏽स्ि-€"


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(ALPHABET), max_size=20), st.data())
def test_any_pieces_of_any_text(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = np.array([*zip(cuts, cuts[1:], strict=False)], np.int64).reshape(-1, 2)
    found = expand_to_words(text, pieces)
    assert found.dtype == np.int32 and (found[:, 0] <= found[:, 1]).all()
    assert (np.diff(found[found[:, 0] < found[:, 1]], axis=0) >= 0).all()
    for (start, stop), (first, last) in zip(found.tolist(), pieces.tolist(), strict=True):
        own, widened = text[first:last].strip(SPACES), text[start:stop]
        assert own in widened and bool(own) == bool(widened)
        if not widened:
            continue
        assert widened == widened.strip(SPACES)
        if stop < len(text):
            assert unicodedata.category(text[stop])[0] != "M"
            assert not (widened[-1] in "abé" and text[stop] in "abé")
