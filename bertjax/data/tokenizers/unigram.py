"""T5 tokenizers that transformers loaded, run by the `tokenizers` library with the same ids."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from bertjax.data.tokenizers import backend_state
from bertjax.data.tokenizers.files import SpecialTokens, from_state_json, hf_folder_files, to_state_json, write
from bertjax.errors import UserError

_SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")  # with the mark of a word in mT5, where they are ordinary pieces


class UnigramTokenizer:
    """The interface of `SentencePieceTokenizer` over the fast tokenizer of a T5 folder.

    Special and added tokens that a text spells are those tokens, as in transformers.
    """

    kind = "sentencepiece"
    lowercase = False

    def __init__(self, backend: tokenizers.Tokenizer, where: str, special: SpecialTokens) -> None:
        """`where` names the folder in errors. Raises UserError for one that T5 cannot use."""
        self._where = where
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = not special.in_text
        self.backend, self.special = backend, special
        vocab = backend.get_vocab(with_added_tokens=True)
        self.pieces = backend_state.pieces(vocab)
        self.vocab_size = len(self.pieces)
        for role in ("pad", "eos"):
            if role not in special.roles:
                problem = f"the tokenizer has no {role}_token, which T5 needs; name it in tokenizer_config.json"
                raise UserError(f"{where}: {problem}")
        self.pad_id, self.eos_id = vocab[special.roles["pad"]], vocab[special.roles["eos"]]
        self.unk_id = vocab.get(special.roles.get("unk", ""))
        if self.pad_id:
            raise UserError(f"{where}: pads with id {self.pad_id}; T5 pads with 0 and starts decoding with it")
        listed = sorted(
            vocab.items(), reverse=True
        )  # a sentinel without the mark comes after the same with it, and holds
        numbered = {int(found[1]): i for piece, i in listed if (found := _SENTINEL.fullmatch(piece))}
        self.extra_ids = next(number for number in range(len(numbered) + 1) if number not in numbered)
        self._sentinels = [numbered[number] for number in range(self.extra_ids)]
        state = backend_state.tokenizer_state(backend)
        self.json = to_state_json(state, special)
        self.sha256 = hashlib.sha256(json.dumps(json.loads(self.json), sort_keys=True).encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.json,)

    def sentinel_id(self, number: int) -> int:
        """The id of <extra_id_number>. Raises UserError when there are not that many."""
        if not 0 <= number < self.extra_ids:
            raise UserError(f"the tokenizer has {self.extra_ids} sentinels, <extra_id_{number}> is asked for")
        return self._sentinels[number]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Piece ids of each text, without </s>. Runs on all cores unless TOKENIZERS_PARALLELISM=false."""
        with backend_state.library_errors(self._where):
            return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text without padding and </s>; a sentinel is a separate word <extra_id_N>, as in seqio."""
        words, run = list[str](), list[int]()
        for i in (int(i) for i in ids):
            if i in (self.pad_id, self.eos_id):
                continue
            if i in self._sentinels:
                words += [*self._decoded(run), self.pieces[i].removeprefix("▁")]
                run = []
            elif i < self.vocab_size:
                run.append(i)
            elif self.unk_id is not None:
                run.append(self.unk_id)
        return " ".join([*words, *self._decoded(run)])

    def _decoded(self, run: list[int]) -> list[str]:
        with backend_state.library_errors(self._where):
            return [self.backend.decode(run, skip_special_tokens=False)] if run else []

    @property
    def behavior(self) -> dict[str, Any]:
        """What has to be equal for weights to fit (`backend_state.behavior`)."""
        return backend_state.behavior(backend_state.tokenizer_state(self.backend), self.pieces)

    def files(self, about: dict[str, Any] | None = None) -> dict[str, str]:
        """{name: text} of a folder that transformers loads to the same ids; `about`: more for tokenizer_config.json."""
        state = json.dumps(backend_state.tokenizer_state(self.backend), ensure_ascii=False, indent=1) + "\n"
        about = {"model_input_names": ["input_ids", "attention_mask"], "extra_ids": self.extra_ids, **(about or {})}
        return hf_folder_files(state, self.special, about)

    def save(self, folder: Path) -> None:
        """Write a folder that transformers' AutoTokenizer loads to the same ids."""
        write(folder, self.files())


def _restore(kept: str) -> UnigramTokenizer:
    text, special = from_state_json(json.loads(kept), "the tokenizer")
    return UnigramTokenizer(tokenizers.Tokenizer.from_str(text), "the tokenizer", special)
