"""SentencePiece as T5 uses it: a unigram model, also one from a tokenizer.json, with sentinels after its pieces."""

import base64
import binascii
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece

from bertjax.data.tokenizers import backend_state
from bertjax.data.tokenizers.files import ADDED, CONFIG, JSON, SPECIAL, json_object, write
from bertjax.data.tokenizers.sentinels import id_of_sentinel, is_count, sentinel_pieces
from bertjax.data.tokenizers.unigram_formats import spm_proto, unigram_json
from bertjax.errors import UserError

VERSION = 2  # of the training recipe, part of the cache key
EXTRA_IDS = 100  # T5's, and the default of a spiece.model without settings
MODEL_FILE = "spiece.model"
METASPACE = "▁"
ASCII = "".join(map(chr, range(33, 127)))
MIN_VOCAB_FOR_ASCII = 1000  # of a vocabulary in which all of ASCII is a small part
_SENTINEL = re.compile(rf"{METASPACE}?<extra_id_(\d+)>")


class SentencePieceTokenizer:
    """A SentencePiece unigram model, and sentinels <extra_id_N> counted down from the last id (seqio, T5).

    `vocab_size` and `pieces` count the sentinels: with T5's 32000 pieces <extra_id_0> is 32099. Padding is always 0
    (seqio's PAD_ID): a model without <pad> shares it with the unknown or control piece there. Text is read as by
    seqio.SentencePieceVocabulary, which appends the sentinels as user-defined pieces "▁<extra_id_N>": "<extra_id_0>" is
    the sentinel only at the start of a word, and "</s>" is always characters, unlike in transformers.
    """

    kind = "sentencepiece"
    lowercase = False  # T5's text keeps its case
    sentinel_id = id_of_sentinel

    def __init__(self, model: bytes, extra_ids: int, where: str) -> None:
        """model: the bytes of a spiece.model; `where` names the file in errors. Raises UserError."""
        parsed, listed = _split(_parse(model, where), where)
        self.model, self.extra_ids = (spm_proto.write(parsed), listed) if listed else (model, extra_ids)
        self._parsed, sentinels = parsed, sentinel_pieces(self.extra_ids)
        extended = self.model + spm_proto.encode_extra_pieces(
            spm_proto.Piece(f"{METASPACE}{sentinel}", 0.0, spm_proto.USER_DEFINED) for sentinel in sentinels
        )
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=extended)
        self.eos_id: int = self._processor.eos_id()
        self.unk_id: int = self._processor.unk_id()
        self.pad_id = 0
        self.vocab_size = len(parsed.pieces) + self.extra_ids
        self.pieces = [piece.text for piece in parsed.pieces] + sentinels
        self._check_ids(parsed, where)
        self.sha256 = _identity(parsed, self.extra_ids)

    def _check_ids(self, parsed: spm_proto.Model, where: str) -> None:
        if self.eos_id < 0:
            raise UserError(f"{where}: the model has no </s>; T5 ends every text with it: train it with an eos_id")
        if len(set(self.pieces)) != self.vocab_size:
            raise UserError(f"{where}: the model has duplicate pieces; export it again")
        if self._processor.pad_id() > 0 or parsed.pieces[0].kind not in (spm_proto.CONTROL, spm_proto.UNKNOWN):
            raise UserError(
                f"{where}: id 0 is the piece {self.pieces[0]!a:.40}; T5 pads with 0 and starts decoding with it: train "
                "it with pad_id=0"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return SentencePieceTokenizer, (self.model, self.extra_ids, "the tokenizer")

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Piece ids of each text, without special tokens. Runs on all cores unless TOKENIZERS_PARALLELISM=false."""
        threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "0", "off") else -1
        return self._processor.encode(list(texts), num_threads=threads) if texts else []

    def decode(self, ids: Iterable[int]) -> str:
        """Text without padding and </s>; a sentinel is a separate word <extra_id_N>, as in seqio.

        Ids past the vocabulary (a model's table may be rounded up) are unknown pieces, as in seqio's Vocabulary.decode.
        """
        kept = (int(i) for i in ids)
        kept = (i if 0 <= i < self.vocab_size else self.unk_id for i in kept if i not in (self.pad_id, self.eos_id))
        return self._processor.decode(list(kept))

    @property
    def json(self) -> str:
        """What a checkpoint keeps; `tokenizers.from_json` reads it."""
        model = base64.b64encode(self.model).decode("ascii")
        return json.dumps({"type": "sentencepiece", "extra_ids": self.extra_ids, "model": model}) + "\n"

    def save(self, folder: Path) -> None:
        """Write a folder that transformers' AutoTokenizer loads to the same pieces, ids and sentinels."""
        write(folder, self.files())

    def files(self) -> dict[str, str | bytes]:
        return {
            MODEL_FILE: self.model,
            "tokenizer_config.json": unigram_json.tokenizer_config(self._parsed, self.extra_ids),
            "tokenizer.json": unigram_json.write(self._parsed, self.extra_ids),
        }

    @property
    def behavior(self) -> dict[str, Any]:
        """What has to be equal for weights to fit (`backend_state.behavior`)."""
        return backend_state.behavior(json.loads(unigram_json.write(self._parsed, self.extra_ids)), self.pieces)


def from_state(state: dict[str, Any], where: str) -> SentencePieceTokenizer:
    """From the parsed `json` of a tokenizer. Raises UserError."""
    extra_ids, model = state.get("extra_ids"), state.get("model")
    try:
        if not is_count(extra_ids):
            raise ValueError
        content = base64.b64decode(model, validate=True)  # type: ignore[arg-type]
    except (ValueError, TypeError, binascii.Error):
        problem = f"{where}: not a SentencePiece tokenizer as bertjax keeps it; copy or export it again"
        raise UserError(problem) from None
    return SentencePieceTokenizer(content, extra_ids, where)


def from_unigram(state: dict[str, Any], where: str) -> SentencePieceTokenizer:
    """From a parsed tokenizer.json of the `tokenizers` library, which lists its sentinels. Raises UserError."""
    return SentencePieceTokenizer(spm_proto.write(unigram_json.read(state, where)), 0, where)


def from_model(path: Path, *, extra_ids: int) -> SentencePieceTokenizer:
    """From a spiece.model; its tokenizer_config.json takes precedence over `extra_ids`. Raises UserError."""
    content = path.read_bytes()
    if not content:
        raise UserError(f"{path}: the file is empty; copy or export it again")
    if content.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer and not the model; run git lfs pull")
    return SentencePieceTokenizer(content, _saved_extra_ids(path, extra_ids), str(path))


def from_saved(folder: Path) -> SentencePieceTokenizer | None:
    """The tokenizer of a folder whose files are as `save` writes them; None where one is missing, added or changed."""
    present = [name for name in (MODEL_FILE, CONFIG, JSON, SPECIAL, ADDED) if (folder / name).is_file()]
    if present != [MODEL_FILE, CONFIG, JSON]:
        return None
    try:
        found = from_model(folder / MODEL_FILE, extra_ids=EXTRA_IDS)
    except UserError:
        return None
    config = unigram_json.tokenizer_config(found._parsed, found.extra_ids)  # the other file takes a second to write
    if (folder / CONFIG).read_bytes() != config.encode():
        return None
    written = unigram_json.write(found._parsed, found.extra_ids)
    return found if (folder / JSON).read_bytes() == written.encode() else None


def _saved_extra_ids(path: Path, default: int) -> int:
    settings = path.with_name(CONFIG)
    declared = json_object(settings).get("extra_ids", default)
    if not is_count(declared):
        raise UserError(f"{settings}: extra_ids must be an integer, 100 for T5 (got {declared!a:.40})")
    return declared


def train(
    documents: Callable[[], Iterator[list[str]]], *, vocab_size: int, extra_ids: int, character_coverage: float
) -> SentencePieceTokenizer:
    """A unigram model of at most `vocab_size` pieces, sentinels included: the same bytes for the same text.

    T5's options (arXiv 1910.10683 section 2.2.1; the trainer_spec of its cc_all.32000 model). From MIN_VOCAB_FOR_ASCII
    pieces on, all ASCII characters are pieces, since prompts and labels (`not_equivalent`) use them.
    """
    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(sentence for sentences in documents() for sentence in sentences),
            model_writer=writer,
            model_type="unigram",
            vocab_size=vocab_size - extra_ids,
            hard_vocab_limit=False,  # a text with fewer pieces than asked for gives those it has
            character_coverage=character_coverage,
            required_chars=ASCII if vocab_size - extra_ids >= MIN_VOCAB_FOR_ASCII else "",
            normalization_rule_name="nmt_nfkc",
            byte_fallback=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,  # with more, sums of the EM steps differ in their last bits
            max_sentence_length=2**30,  # the default drops sentences above 4192 bytes
            minloglevel=2,
        )
    except Exception as error:  # the library raises RuntimeError, and TypeError for half a surrogate pair
        raise UserError(
            f"tokenizer.vocab_size: no SentencePiece model with {vocab_size} pieces ({extra_ids} of them sentinels) "
            f"can be trained on this text ({_short(error)}); give another size, or more text"
        ) from None
    return SentencePieceTokenizer(writer.getvalue(), extra_ids, "the trained tokenizer")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[-120:]


def _parse(content: bytes, where: str) -> spm_proto.Model:
    try:
        sentencepiece.SentencePieceProcessor(model_proto=content)
        parsed = spm_proto.read(content)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{where}: not a SentencePiece model ({_short(error)}); copy or export it again") from None
    if parsed.unsupported:  # its tokenizer.json could not express them
        raise UserError(f"{where}: {parsed.unsupported[0]}; bertjax reads unigram models with the options of T5's")
    return parsed


def _split(parsed: spm_proto.Model, where: str) -> tuple[spm_proto.Model, int]:
    """(the model without the sentinels that some files list among the pieces, their number)."""
    numbers = [int(found[1]) if (found := _SENTINEL.fullmatch(piece.text)) else None for piece in parsed.pieces]
    count = sum(number is not None for number in numbers)
    if count and numbers[-count:] != list(reversed(range(count))):
        raise UserError(f"{where}: the sentinels are not the last pieces, counted down to <extra_id_0>: export it")
    return (replace(parsed, pieces=parsed.pieces[:-count]) if count else parsed), count


def _identity(parsed: spm_proto.Model, extra_ids: int) -> str:
    """SHA-256 of what determines the ids: equal for the spiece.model and the tokenizer.json of a tokenizer."""
    digest = hashlib.sha256(f"{VERSION} {extra_ids}\n".encode())
    for piece in parsed.pieces:
        digest.update(f"{piece.text} {piece.score.hex()} {piece.kind}\n".encode())
    digest.update(parsed.charsmap)
    return digest.hexdigest()
