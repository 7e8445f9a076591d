"""ByT5's tokenizer (arXiv 2105.13626): the bytes of UTF-8, without a vocabulary file."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bertjax.data.tokenizers.files import ADDED, CONFIG, JSON, SPECIAL, json_object, write
from bertjax.data.tokenizers.sentinels import is_count
from bertjax.errors import UserError

STATE_KEY = "bytes"  # the `type` of the JSON that a checkpoint keeps
EXTRA_IDS = 125  # of the published models: 384 ids
CLASS = "ByT5Tokenizer"  # of transformers
_SPECIAL = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}  # by id
_FIRST, _BYTES = len(_SPECIAL), 256


class ByteTokenizer:
    """Byte b is the id b + 3, after padding 0, end 1 and unknown 2, which no text gives; then `extra_ids` more ids.

    The interface of `SentencePieceTokenizer`. Sentinel N of span corruption is the id 258 - N: ByT5 reuses the last
    bytes (section 3.1; seqio.ByteVocabulary, whose last id is 258), of which 248 to 255 never occur in UTF-8. The ids
    after the bytes are transformers' <extra_id_N>, which no published model was trained on: text never gives them, and
    they are no text. "</s>" in a text is four bytes, unlike in transformers.
    """

    kind = "bytes"
    lowercase = False
    pad_id, eos_id, unk_id = range(_FIRST)
    max_sentinels = _BYTES  # which are bytes themselves, however many `extra_ids` there are
    splits_anywhere = True  # the ids of a text are those of its parts, wherever it is split

    def __init__(self, extra_ids: int = EXTRA_IDS) -> None:
        self.extra_ids = extra_ids
        self.vocab_size = _FIRST + _BYTES + extra_ids
        names = (chr(b) if 32 < b < 127 else f"<0x{b:02X}>" for b in range(_BYTES))
        self.pieces = [*_SPECIAL.values(), *names, *(f"<extra_id_{number}>" for number in range(extra_ids))]
        self.json = json.dumps({"type": STATE_KEY, "extra_ids": extra_ids}) + "\n"
        self.sha256 = hashlib.sha256(self.json.encode()).hexdigest()

    def sentinel_id(self, number: int) -> int:
        """The id of sentinel `number`. Raises UserError when there are not that many."""
        if not 0 <= number < (count := min(self.extra_ids, self.max_sentinels)):
            raise UserError(f"tokenizer.extra_ids: there are {count} sentinels, number {number} is asked for")
        return _FIRST + _BYTES - 1 - number

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without </s>. Half of a surrogate pair, which is no character, is a question mark."""
        return [[b + _FIRST for b in text.encode("utf-8", errors="replace")] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the bytes, without those that are no UTF-8 and without all other ids, as in seqio."""
        kept = bytes(i - _FIRST for i in map(int, ids) if _FIRST <= i < _FIRST + _BYTES)
        return kept.decode("utf-8", errors="ignore")

    @property
    def behavior(self) -> dict[str, Any]:
        """What has to be equal for weights to fit (`backend_state.behavior`)."""
        return {"bytes": True, "extra_ids": self.extra_ids}

    def save(self, folder: Path) -> None:
        """Write a folder that transformers' AutoTokenizer loads to the same ids."""
        roles = {f"{role}_token": token for role, token in _SPECIAL.items()}
        more = {"additional_special_tokens": self.pieces[_FIRST + _BYTES :]}
        config = {"tokenizer_class": CLASS, "extra_ids": self.extra_ids, **roles, **more}
        files = {CONFIG: config, SPECIAL: roles | more}
        write(folder, {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()})


def from_state(state: dict[str, Any], where: str) -> ByteTokenizer:
    """From the parsed `json` of a tokenizer. Raises UserError."""
    if not is_count(count := state.get("extra_ids")):
        raise UserError(f"{where}: not a tokenizer of bytes as bertjax keeps it; copy or export it again")
    return ByteTokenizer(count)


def is_byt5(folder: Path) -> bool:
    """Whether a folder has ByT5's tokenizer: its settings name the class, and there is no tokenizer.json."""
    if not folder.is_dir() or (folder / JSON).is_file():
        return False
    named = json_object(folder / CONFIG).get("tokenizer_class") or json_object(folder / "config.json").get(
        "tokenizer_class"
    )
    return bool(named == CLASS)


def from_folder(folder: Path) -> ByteTokenizer:
    """The tokenizer of a folder of transformers. Raises UserError for one with tokens besides ByT5's."""
    settings = json_object(folder / CONFIG)
    count = settings.get("extra_ids", EXTRA_IDS)
    listed = settings.get("additional_special_tokens", settings.get("extra_special_tokens"))
    added = settings.get("added_tokens_decoder", {})
    tokens = [_content(token) for token in added.values()] if isinstance(added, dict) else []
    if isinstance(listed, dict):  # of version 5: {role: token}
        listed = list(listed.values())
    if not isinstance(listed, list | None):
        raise UserError(f"{folder / CONFIG}: the special tokens are {listed!a:.40}, not a list; correct it")
    names = [_content(token) for token in listed or []]
    if count == 0 and names:  # what version 5 of transformers writes for any number
        count = len(names)
    if not is_count(count):
        raise UserError(f"{folder / CONFIG}: extra_ids must be an integer, {EXTRA_IDS} for ByT5 (got {count!a:.40})")
    found = ByteTokenizer(count)
    roles = [settings.get(f"{role}_token", token) for role, token in _SPECIAL.items()]
    tokens += [*names, *map(_content, roles), *json_object(folder / ADDED)]
    if unknown := [token for token in tokens if token not in found.pieces]:
        raise UserError(
            f"{folder / CONFIG}: the token {unknown[0]!a:.40} is none of ByT5's, bytes and {count} extra ids; bertjax "
            "reads ByT5 tokenizers without added tokens"
        )
    return found


def _content(token: Any) -> Any:
    """A token of the settings as text: an object says more about it."""
    return token.get("content") if isinstance(token, dict) else token
