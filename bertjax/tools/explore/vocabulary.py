"""The words among the pieces of a tokenizer, and the words in a row of pieces."""

from collections.abc import Sequence
from dataclasses import dataclass

from bertjax.data.tokenizers.load import AnyTokenizer
from bertjax.tools.compare_mlm.texts import is_letters
from bertjax.tools.show.rows import BYTE_SPACE, METASPACE, special_ids, text_pieces


@dataclass(frozen=True)
class Word:
    """A word of a row: `text` as the tokenizer has it, and its pieces, positions [start, stop)."""

    text: str
    start: int
    stop: int


def word_ids(tokenizer: AnyTokenizer) -> dict[str, int]:
    """{word: id} of the pieces that are words of letters alone, in the order of the ids.

    A piece is a word if it begins one: without WordPiece's ##, with ▁ (SentencePiece) or Ġ (byte-level BPE), which are
    left out of the word; every piece of a vocabulary of words.
    """
    continues, special = getattr(tokenizer, "is_continuation", None), special_ids(tokenizer)
    in_bytes = any(piece.startswith(BYTE_SPACE) for piece in tokenizer.pieces)
    found: dict[str, int] = {}
    for number, piece in enumerate(tokenizer.pieces):
        text = piece.removeprefix(METASPACE).removeprefix(BYTE_SPACE)
        begins = len(text) < len(piece) or (continues is not None and not continues[number])
        if number in special or not begins:
            continue
        if in_bytes and not text.isascii():
            text = tokenizer.decode([number]).strip()
        if text and is_letters(text):
            found.setdefault(text, number)
    return found


def normalize(word: str, tokenizer: AnyTokenizer) -> str:
    """A word as the tokenizer's pieces write it: in lower case, or without accents, where these are."""
    return str(tokenizer.normalize(word)) if hasattr(tokenizer, "normalize") else word


def words_in(ids: Sequence[int], tokenizer: AnyTokenizer) -> list[Word]:
    """The words of letters alone in a row of ids: pieces side by side, from one that begins a word to the next."""
    found: list[Word] = []
    in_word = False
    for place, piece in enumerate(text_pieces(ids, tokenizer)):
        later = piece.joined and not piece.text  # of the pieces of one character
        letters = piece.role == "text" and (in_word if later else bool(piece.text) and is_letters(piece.text))
        if letters and in_word and piece.joined:
            last = found[-1]
            found[-1] = Word(last.text + piece.text, last.start, place + 1)
        elif letters:
            found.append(Word(piece.text, place, place + 1))
        in_word = letters
    return found
