"""The tokenizer of an encoder: ids, offsets, word starts and the layout of rows, on a `tokenizers` backend."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from bertjax.data.tokenizers import backend_state
from bertjax.data.tokenizers import files as tokenizer_files
from bertjax.data.tokenizers.files import JSON, NATIVE_SPECIAL_TOKENS, SpecialTokens
from bertjax.data.tokenizers.row_layout import RowLayout, find_layout
from bertjax.data.tokenizers.wordpiece import SPECIAL_TOKENS
from bertjax.errors import UserError

DEFAULTS: dict[str, Any] = {"lowercase": True, "strip_accents": None, "tokenize_chinese_chars": True}  # BERT's


class Tokenizer:
    """A tokenizer for encoders, with [CLS] and [SEP] or tokens that take their place.

    `layout` builds the rows of one text or two. `pieces` lists the pieces by id, `is_continuation [V]` (bool) marks the
    pieces that continue a word (none if `marks_words` is false; `marks_word_starts`: pieces show it by ▁ or Ġ).
    `mask_takes_space`: the mask token contains the white space before it (RoBERTa). `sha256` identifies the tokenizer.
    `mask_id` and `unk_id` may be None. Text never gives a special token, as in the reference, unless transformers
    loaded the tokenizer; `text_special_ids` are those that text can give, without [CLS], [SEP] and [UNK].
    """

    kind = "wordpiece"  # of the configuration's tokenizer sections

    def __init__(
        self, backend: tokenizers.Tokenizer, where: str, special: SpecialTokens = NATIVE_SPECIAL_TOKENS
    ) -> None:
        """`where` names the file in the errors about missing special tokens."""
        self._where = where
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = not special.in_text
        self.backend, self.special = backend, special
        vocab = backend.get_vocab(with_added_tokens=True)
        _check_special(vocab, special, where)
        self.pieces = backend_state.pieces(vocab)
        self.vocab_size = len(self.pieces)
        roles = {role: vocab[token] for role, token in special.roles.items()}
        self.pad_id, self.cls_id, self.sep_id = roles["pad"], roles["cls"], roles["sep"]
        self.unk_id, self.mask_id = roles.get("unk"), roles.get("mask")
        self._is_bert_s = special == NATIVE_SPECIAL_TOKENS  # rows as in the reference, whatever the file's template
        with backend_state.library_errors(where):
            found = None if self._is_bert_s else find_layout(backend, special)
        self.layout = found or RowLayout(self.cls_id, self.sep_id)
        others = {*roles.values(), *(vocab[token] for token in special.others if token in vocab)}
        self.text_special_ids = sorted(others - {self.cls_id, self.sep_id, self.unk_id}) if special.in_text else []
        state = backend_state.tokenizer_state(backend)
        inside = backend_state.continuation_mask(state, self.pieces)
        self.marks_words = inside is not None
        self.marks_word_starts = backend_state.word_start_mark(state) is not None
        self.is_continuation = np.zeros(self.vocab_size, bool) if inside is None else inside
        self.lowercase = backend_state.lowercases(state)
        added = {token["content"]: token for token in state.get("added_tokens") or []}
        self.mask_takes_space = bool(added.get(special.roles.get("mask"), {}).get("lstrip"))
        self.json = json.dumps(state, ensure_ascii=False, indent=1, sort_keys=False) + "\n"
        if not self._is_bert_s:
            self.json = tokenizer_files.to_state_json(state, special)
        self.sha256 = hashlib.sha256(json.dumps(json.loads(self.json), sort_keys=True).encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.json, self._is_bert_s)  # the backend's own pickle forgets `encode_special_tokens`

    @property
    def behavior(self) -> dict[str, Any]:
        """What has to be equal for weights to fit (`backend_state.behavior`)."""
        return backend_state.behavior(backend_state.tokenizer_state(self.backend), self.pieces)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Piece ids of each text, without special tokens. Runs on all cores unless TOKENIZERS_PARALLELISM=false."""
        with backend_state.library_errors(self._where):
            return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def normalize(self, text: str) -> str:
        """A text as its pieces spell it: in lower case, and without accents, where the vocabulary is.

        It is `text` where the tokenizer also changes its spaces, as around Chinese characters.
        """
        if self.backend.normalizer is None:
            return text
        with backend_state.library_errors(self._where):
            found = str(self.backend.normalizer.normalize_str(text))
        return found if found.split() == [found] else text.lower() if self.lowercase else text

    @property
    def space_between(self) -> str:
        """What to prepend to a text to get the pieces that it has after another word: a space if word-initial pieces
        contain one that is not added automatically (byte-level BPE without add_prefix_space)."""
        first, later, both = self.encode_batch(["a", " a", "a a"])
        return " " if both != first * 2 and both == first + later else ""

    def encode_batch_offsets(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(piece ids, offsets) of each text, without special tokens; an offset is (start, stop) in characters of it."""
        with backend_state.library_errors(self._where):
            found = self.backend.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in found]

    def decode(self, ids: list[int]) -> str:
        """Pieces joined to words; special tokens are left out."""
        with backend_state.library_errors(self._where):
            return self.backend.decode(list(ids), skip_special_tokens=True)

    def files(self, about: dict[str, Any] | None = None) -> dict[str, str]:
        """{name: text} of a folder that transformers' AutoTokenizer loads; `about`: more for tokenizer_config.json."""
        state = backend_state.tokenizer_state(self.backend)
        said = {"do_lower_case": self.lowercase}
        chosen = backend_state.bert_options(self.backend)
        said |= {name: value for name, value in chosen.items() if value != DEFAULTS[name]}
        is_wordpiece = bool(state["model"].get("continuing_subword_prefix"))
        plain = is_wordpiece and not any("\n" in piece for piece in self.pieces)
        text = json.dumps(state, ensure_ascii=False, indent=1) + "\n"
        listed = self.pieces if plain else ()
        return tokenizer_files.hf_folder_files(text, self.special, {**(about or {}), **said}, listed)

    def save(self, folder: Path) -> None:
        """Write vocab.txt and tokenizer.json atomically, and settings if its special tokens are not BERT's."""
        files = self.files()
        native = {name: text for name, text in files.items() if name in ("vocab.txt", JSON)}
        tokenizer_files.write(folder, native if self._is_bert_s else files)


def _check_special(vocab: dict[str, int], special: SpecialTokens, where: str) -> None:
    if special == NATIVE_SPECIAL_TOKENS:
        for piece in SPECIAL_TOKENS:
            if piece not in vocab:
                raise UserError(f"{where}: the vocabulary has no {piece}; BERT needs {' '.join(SPECIAL_TOKENS)}")
    for role in ("pad", "cls", "sep"):
        if role not in special.roles:
            problem = f"the tokenizer has no {role}_token; BERT's rows need pad, cls and sep"
            raise UserError(f"{where}: {problem}: name them in tokenizer_config.json")
    for role, token in special.roles.items():
        if token not in vocab:
            raise UserError(f"{where}: the {role}_token {token[:80]!a} is not in the vocabulary; correct the files")


def _restore(kept: str, is_bert_s: bool) -> Tokenizer:
    if is_bert_s:
        return Tokenizer(tokenizers.Tokenizer.from_str(kept), "the tokenizer")
    text, special = tokenizer_files.from_state_json(json.loads(kept), "the tokenizer")
    return Tokenizer(tokenizers.Tokenizer.from_str(text), "the tokenizer", special)
