"""A WordPiece tokenizer as T5 reads it, so that an encoder and a T5 can share one vocabulary."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from bertjax.data.tokenizers.encoder import Tokenizer
from bertjax.data.tokenizers.files import JSON, json_object, write
from bertjax.errors import UserError

STATE_KEY = "wordpiece_sentinels"  # the `type` of the JSON that a checkpoint keeps
FILE = "sentinels.json"  # beside the tokenizer.json of a folder that `save` writes


def sentinel_pieces(count: int) -> list[str]:
    """The last `count` pieces of a vocabulary: <extra_id_N> counted down to 0."""
    return [f"<extra_id_{number}>" for number in reversed(range(count))]


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value of a file can be the number of sentinels."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**20


def id_of_sentinel(tokenizer: Any, number: int) -> int:
    """The id of <extra_id_number>. Raises UserError when there are not that many."""
    if not 0 <= number < tokenizer.extra_ids:
        count = tokenizer.extra_ids
        raise UserError(f"tokenizer.extra_ids: there are {count} sentinels, <extra_id_{number}> is asked for")
    return int(tokenizer.vocab_size - 1 - number)


class SentinelTokenizer:
    """The pieces of `inner`, and sentinels <extra_id_N> counted down from the last id, as in T5.

    The interface of `SentencePieceTokenizer`: [PAD], which must be id 0, is padding and starts the decoder, [SEP] ends
    every text. Text never gives a sentinel. `vocab_size` and `pieces` count the sentinels.
    """

    kind = "wordpiece"
    sentinel_id = id_of_sentinel

    def __init__(self, inner: Tokenizer, extra_ids: int, where: str) -> None:
        """`where` names the file in errors. Raises UserError for padding that is not 0."""
        if inner.pad_id:
            raise UserError(f"{where}: pads with id {inner.pad_id}; T5 pads with 0 and starts decoding with it")
        self.inner, self.extra_ids = inner, extra_ids
        self.pad_id, self.eos_id, self.unk_id = 0, inner.sep_id, inner.unk_id
        self.lowercase = inner.lowercase
        self.is_continuation = np.append(inner.is_continuation, np.zeros(extra_ids, bool))
        self.vocab_size = inner.vocab_size + extra_ids
        self.pieces = [*inner.pieces, *sentinel_pieces(extra_ids)]
        state = {"type": STATE_KEY, "extra_ids": extra_ids, "tokenizer": inner.json}
        self.json = json.dumps(state, ensure_ascii=False) + "\n"
        self.sha256 = hashlib.sha256(f"{STATE_KEY} {extra_ids} {inner.sha256}".encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return SentinelTokenizer, (self.inner, self.extra_ids, "the tokenizer")

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Piece ids of each text, without [SEP]."""
        return self.inner.encode_batch(list(texts))

    def decode(self, ids: Iterable[int]) -> str:
        """Pieces joined to words, without special tokens; a sentinel is a separate word <extra_id_N>.

        Ids past the vocabulary (a model's table may be rounded up) are left out.
        """
        words, run = list[str](), list[int]()
        for i in (int(i) for i in ids):
            if i < self.inner.vocab_size:
                run.append(i)
            elif i < self.vocab_size:
                words += [self.inner.decode(run), self.pieces[i]]
                run = []
        return " ".join(filter(None, [*words, self.inner.decode(run)]))

    @property
    def behavior(self) -> dict[str, Any]:
        """What has to be equal for weights to fit (`backend_state.behavior`)."""
        return self.inner.behavior | {"extra_ids": self.extra_ids}

    def save(self, folder: Path) -> None:
        """Write the files of the WordPiece tokenizer and the number of sentinels, which `load.from_file` reads."""
        write(folder, {FILE: json.dumps({"extra_ids": self.extra_ids}) + "\n"})
        self.inner.save(folder)


def from_state(state: dict[str, Any], inner: Any, where: str) -> SentinelTokenizer:
    """From the parsed `json` of a tokenizer, or the content of FILE, and the tokenizer inside. Raises UserError."""
    count = state.get("extra_ids")
    if not count or not is_count(count) or not isinstance(inner, Tokenizer):
        raise UserError(f"{where}: not a tokenizer with sentinels as bertjax keeps it; copy or export it again")
    return SentinelTokenizer(inner, count, where)


def saved_count(path: Path) -> dict[str, Any]:
    """The content of FILE in a folder, or beside its tokenizer.json; {} without one. Raises UserError."""
    return json_object((path if path.is_dir() else path.parent) / FILE) if path.is_dir() or path.name == JSON else {}
