"""Texts as rows of token ids: checked, framed by special tokens, and cut to a length where that is asked for."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertjax.data.tokenizers.load import AnyTokenizer
from bertjax.errors import UserError


@dataclass(frozen=True)
class TokenRow:
    """One row without padding. `extra`: more int arrays of the row, each with one axis of any length."""

    input_ids: Sequence[int]
    token_type_ids: Sequence[int] | None = None  # default: zeros
    extra: Mapping[str, Sequence[int]] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def fields(self) -> dict[str, np.ndarray]:
        """input_ids, token_type_ids, segment_ids (ones) and positions, int32 [S]."""
        size = len(self.input_ids)
        types = np.zeros(size, np.int32) if self.token_type_ids is None else np.asarray(self.token_type_ids, np.int32)
        return {
            "input_ids": np.asarray(self.input_ids, np.int32), "token_type_ids": types,
            "segment_ids": np.ones(size, np.int32), "positions": np.arange(size, dtype=np.int32),
        }  # fmt: skip


def check_texts(name: str, texts: Iterable[Any]) -> list[str]:
    """The texts as a list. Raises UserError, naming the item, for anything that is not a text of Unicode characters."""
    unordered = isinstance(texts, bytes | Mapping | Set) or getattr(texts, "ndim", 1) != 1  # a DataFrame: 2
    if unordered or not isinstance(texts, Iterable):
        raise UserError(f"{name}: must be a text or a list of texts (got {_kind(texts)})")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"{name}: item {number} is of type {type(text).__name__}, not a text; give texts alone")
        try:
            text.encode()
        except UnicodeEncodeError:
            place = f"item {number} of the {name}" if len(found) > 1 else f"the {name.removesuffix('s')}"
            raise UserError(
                f"{place} contains half of a surrogate pair or bytes that are not UTF-8; fix its encoding"
            ) from None
    return [str(text) for text in found]  # str() of a subclass, such as NumPy's


def _kind(value: Any) -> str:
    names = ", ".join(map(str, [*value][:5])) if isinstance(value, Mapping) or hasattr(value, "columns") else ""
    return type(value).__name__ + (f" with the fields {names}; take one of them" if names else "")


def frame(tokenizer: AnyTokenizer, ids: Sequence[int]) -> list[int]:
    """The ids of a text with the special tokens around it: [CLS] ids [SEP], or ids </s> for T5's tokenizers."""
    if hasattr(tokenizer, "layout"):
        return tokenizer.layout.row(ids)[0]
    return [*ids, tokenizer.eos_id]


def num_special(tokenizer: AnyTokenizer) -> int:
    """The number of tokens that `frame` adds."""
    return len(frame(tokenizer, ()))
