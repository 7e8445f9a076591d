"""Long documents in pieces, so that memory holds one of them: texts, lines and sentences that go on in the next."""

from collections.abc import Iterable, Iterator
from typing import Any

from bertjax.data.sources.sentences import lacks_capitals, split_sentences

MAX_CHARACTERS = 4_000_000  # of a piece; a document of so many is read as one


class UnfinishedText(str):
    """A piece of a text that goes on in the next one."""


class UnfinishedDocument(list[Any]):
    """Sentences, or lines, of a document that goes on in the next list."""


def is_last(piece: Any) -> bool:
    """Whether a piece is the last, or only, one of its document."""
    return not isinstance(piece, UnfinishedText | UnfinishedDocument)


def cut_text(chunks: Iterable[str]) -> Iterator[str]:
    """A text, given in chunks, in pieces of at most MAX_CHARACTERS; joined they are the text. No piece is blank; a
    blank text is one empty piece.

    A piece ends at a blank line if there is one in its second half, else at a line end, else at a space.
    """
    last: str | None = None
    for piece in _cut(chunks):
        if not piece.isspace():
            if last is not None:
                yield UnfinishedText(last)
            last = piece
    yield last or ""


def _cut(chunks: Iterable[str]) -> Iterator[str]:
    held, start = "", 0
    for chunk in chunks:
        held, start = held[start:] + chunk, 0
        while len(held) - start > MAX_CHARACTERS:
            end = _place_to_cut(held, start)
            yield held[start:end]
            start = end
    if start < len(held):
        yield held[start:]


def _place_to_cut(text: str, start: int) -> int:
    half, most = start + MAX_CHARACTERS // 2, start + MAX_CHARACTERS
    for between in ("\n\n", "\n", " "):
        if (found := text.rfind(between, half, most)) >= 0:
            return found + len(between)
    return most


def cut_lines(lines: Iterable[str]) -> Iterator[list[str]]:
    """The lines of a document in lists of about MAX_CHARACTERS."""
    held: list[str] = []
    size = 0
    for line in lines:
        if size >= MAX_CHARACTERS:
            yield UnfinishedDocument(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    yield held


def split_documents(texts: Iterable[str]) -> Iterator[list[str]]:
    """The sentences of each text; those of its pieces are `UnfinishedDocument`s but for the last. Empty ones too."""
    held: list[str] = []
    lower: bool | None = None
    goes_on = False
    for text in texts:
        if not goes_on:
            lower = None if is_last(text) else lacks_capitals(text)
        found = split_sentences(text, lower)
        if held and found:
            yield UnfinishedDocument(held)
        held = found or held
        goes_on = not is_last(text)
        if not goes_on:
            yield held
            held = []
