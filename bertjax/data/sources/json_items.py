"""Decodes a JSON list item by item, in memory for some items and not for the file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from bertjax.errors import UserError
from bertjax.storage.files import MAX_LINE

PIECE = 1 << 22  # characters that are decoded at a time
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"[ \t\n\r]*")


class JsonItems:
    """Iterates over the items of a JSON list, and whether each spells a surrogate, from pieces of its text."""

    def __init__(self, path: Path, text: str, pieces: Iterator[str]) -> None:
        self._path, self._text, self._pieces = path, text, pieces
        self._at = self._lines = 0  # in `text`; lines before `text`
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def __iter__(self) -> Iterator[tuple[Any, bool]]:
        self._at += 1  # the bracket
        if self.peek() != "]":
            while True:
                yield self._item()
                if (mark := self.peek()) == "]":
                    break
                if mark != ",":
                    self._fail("Expecting ',' delimiter", self._at)
                self._at += 1
                if self.peek() == "]":
                    self._fail("Illegal trailing comma before end of array", self._at)
        self._at += 1
        if self.peek():
            self._fail("Extra data", self._at)

    def _item(self) -> tuple[Any, bool]:
        self.peek()
        want = PIECE
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MAX_LINE:
                    self._fail(f"no end of the item within {MAX_LINE:,} characters", self._at)
                if not self._more(want):
                    self._fail(error.msg, error.pos)
                want *= 2  # a long item is not decoded again for every piece
                continue
            except (ValueError, RecursionError):
                self._fail_unreadable()
            if end == len(self._text) and self._more():  # a number may go on
                continue
            escaped = ESCAPED_SURROGATE.search(self._text, self._at, end) is not None
            self._at = end
            return value, escaped

    def _more(self, characters: int = 1) -> bool:
        """Reads on, at least `characters`; forgets what has been decoded. False at the end of the file."""
        found: list[str] = []
        size = 0
        while size < characters and (piece := next(self._pieces, None)) is not None:
            found.append(piece)
            size += len(piece)
        if found:
            self._lines += self._text.count("\n", 0, self._at)
            self._text = "".join([self._text[self._at :], *found])
            self._at = 0
        return bool(found)

    def decode_all(self) -> Any:
        """The file as one value that is no list."""
        while self._more(PIECE):
            if len(self._text) > MAX_LINE:
                self._fail(f"not a list, and longer than {MAX_LINE:,} characters", 0)
        try:
            value, end = self._decode(self._text, self._at)
        except json.JSONDecodeError as error:
            self._fail(error.msg, error.pos)
        except (ValueError, RecursionError):
            self._fail_unreadable()
        self._at = end
        if self.peek():
            self._fail("Extra data", self._at)
        return value

    def _fail(self, reason: str, at: int) -> NoReturn:
        line = self._lines + self._text.count("\n", 0, at) + 1
        hint = "for one object a line use kind: jsonl" if reason == "Extra data" else "correct it or write it again"
        raise UserError(f"{self._path}: line {line}: not valid JSON ({reason}); {hint}") from None

    def _fail_unreadable(self) -> NoReturn:
        raise UserError(
            f"{self._path}: not valid JSON (a number too long, or nested too deeply); write it again"
        ) from None
