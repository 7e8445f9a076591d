"""Reads the JSON state of a `tokenizers.Tokenizer`: case, word starts, pieces by id, and how two states differ."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tokenizers

from bertjax.errors import UserError, brief, is_panic

_INSIDE = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
_WORD_STARTS = {"Metaspace": "▁", "ByteLevel": "Ġ"}  # pre-tokenizer: the mark of a piece that begins a word
_UNSPACED = (  # Thai and Lao, Burmese, Khmer, Chinese and Japanese
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x312F), (0x31A0, 0xA4CF), (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F), (0x20000, 0x3FFFF),
)  # fmt: skip


def _letters_of_bytes() -> dict[str, int]:
    """{letter: byte} of byte-level BPE (bytes_to_unicode of GPT-2's encoder.py)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _letters_of_bytes()


def format_bytes(piece: str) -> str:
    """A piece of byte-level BPE as `<0xE2><0x82>`, in the notation of SentencePiece's byte pieces, which stay."""
    if any(letter not in _BYTES for letter in piece) or piece.startswith("<0x"):
        return piece
    return "".join(f"<0x{_BYTES[letter]:02X}>" for letter in piece)


def parse_backend(text: str, where: str) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json. Raises UserError."""
    with library_errors(where, "cannot read it"):
        return tokenizers.Tokenizer.from_str(text)


@contextmanager
def library_errors(where: str, what: str = "cannot encode or decode a text with it") -> Iterator[None]:
    """Turn an error of the tokenizers library, a bare Exception or a panic, into a UserError.

    A hostile file may hold a regular expression that takes exponential time (its engine gives up after 10 million
    steps), a damaged table of characters, or a template with tokens that it lacks.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):
            raise
        raise UserError(f"{where}: the tokenizers library {what} ({brief(error)}); export it again") from None


def tokenizer_state(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(backend.to_str())
    return state


def pipeline_steps(state: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """The steps of `part` (normalizer, pre_tokenizer, decoder) in order, without the sequences around them."""

    def flat(step: Any) -> list[dict[str, Any]]:
        if not isinstance(step, dict):
            return []
        return [x for one in step[_INSIDE[part]] for x in flat(one)] if step.get("type") == "Sequence" else [step]

    return flat(state.get(part))


def lowercases(state: Mapping[str, Any]) -> bool:
    found = pipeline_steps(state, "normalizer")
    return any(step["type"] == "Lowercase" or step.get("lowercase") is True for step in found)


def strips_accents(state: Mapping[str, Any]) -> bool:
    found = pipeline_steps(state, "normalizer")
    if any(step["type"] == "StripAccents" for step in found):
        return True
    rules = [step for step in found if step["type"] == "BertNormalizer"]
    return any(step.get("lowercase") if step.get("strip_accents") is None else step["strip_accents"] for step in rules)


def bert_options(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """`strip_accents` and `tokenize_chinese_chars` of a BertNormalizer; {} where there is none."""
    for step in pipeline_steps(tokenizer_state(backend), "normalizer"):
        if step["type"] == "BertNormalizer":
            chinese = step.get("handle_chinese_chars", True)
            return {"strip_accents": step.get("strip_accents"), "tokenize_chinese_chars": chinese}
    return {}


def pieces(vocab: Mapping[str, int]) -> list[str]:
    """The pieces by id. An id without a piece gets a name with a space, which no text can produce."""
    found = {number: piece for piece, number in vocab.items()}
    return [found.get(number, f"[unused {number}]") for number in range(max(found) + 1)]


def describe_unused_ids(vocab: Mapping[str, int]) -> list[str]:
    """Notes on ids that no text can produce."""
    found = []
    missing = sorted(set(range(max(vocab.values()) + 1)) - set(vocab.values()))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        found.append(
            f"id {missing[0]}{more} has no piece (in a vocab.txt: its line comes again further down, and holds there)"
        )
    if "" in vocab:
        found.append(f"id {vocab['']} is a blank line")
    return found


def continuation_mask(state: Mapping[str, Any], listed: Sequence[str]) -> np.ndarray | None:
    """bool [V]: the pieces that continue a word, by the model's prefix or the pre-tokenizer's mark of word starts.

    A mark (▁, Ġ) stands for white space, as in fairseq's get_whole_word_mask and transformers'
    DataCollatorForLanguageModeling, and a punctuation mark belongs to the word before it. A sentence in a script
    without spaces would be one word: there every piece is one.
    None where a piece does not show it (end-of-word suffixes, word starts without a mark).
    """
    model, added = state["model"], {token["content"] for token in state.get("added_tokens") or []}
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else None)
    prefix = model.get("continuing_subword_prefix")
    if kind == "WordLevel":
        return np.zeros(len(listed), bool)
    if prefix:
        return np.array([piece.startswith(prefix) and piece not in added for piece in listed])
    mark = word_start_mark(state)
    if mark is None or model.get("end_of_word_suffix"):
        return None
    in_bytes = mark == _WORD_STARTS["ByteLevel"]
    starts = [piece.startswith((mark, "[unused ")) or _is_unspaced(piece, in_bytes) for piece in listed]
    return np.array([not start and piece not in added for start, piece in zip(starts, listed, strict=True)])


def word_start_mark(state: Mapping[str, Any]) -> str | None:
    """The mark of a piece that begins a word, by the pre-tokenizer; None without one."""
    steps = [step["type"] for step in pipeline_steps(state, "pre_tokenizer")]
    return next((_WORD_STARTS[kind] for kind in reversed(steps) if kind in _WORD_STARTS), None)


def _is_unspaced(piece: str, in_bytes: bool) -> bool:
    """Whether a piece begins with a letter of a script without spaces between words.

    In a byte-level piece that holds a part of a letter, the first byte of Chinese and Japanese ones shows it.
    """
    if in_bytes:
        data = bytes(_BYTES.get(letter, 0x20) for letter in piece[:4])
        piece = data.decode(errors="ignore") or ("\u4e00" if data and 0xE3 <= data[0] <= 0xE9 else "")
        if data and 0x80 <= data[0] < 0xC0:
            return False  # inside a letter
    code = ord(piece[0]) if piece else 0
    return code >= _UNSPACED[0][0] and any(low <= code <= high for low, high in _UNSPACED)


def behavior(state: Mapping[str, Any], listed: Sequence[str]) -> dict[str, Any]:
    """What determines the ids of ordinary text, in a canonical form: weights only fit a tokenizer of equal behavior.

    Leaves out the post_processor, the decoder, rules for text that spells special tokens, and WordPiece's word limit.
    """
    added = {token["content"] for token in state.get("added_tokens") or []}
    model = without_empty_affixes(state["model"])
    vocab = model.pop("vocab", None)
    for name in ("type", "max_input_chars_per_word", "dropout"):
        model.pop(name, None)
    if isinstance(vocab, list):  # Unigram's scores; those of added tokens are never read
        model["scores"] = unigram_scores(vocab, added)
        model.pop("unk_id", None)
    normalizer = [dict(step) for step in pipeline_steps(state, "normalizer")]
    for step in normalizer:
        if step["type"] == "BertNormalizer" and step.get("strip_accents") is None:
            step["strip_accents"] = step.get("lowercase")  # BERT's rule
    split = pipeline_steps(state, "pre_tokenizer")
    return {"pieces": list(listed), "model": model, "normalizer": normalizer, "pre_tokenizer": split}


def without_empty_affixes(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's state without BPE's prefix and suffix where they are "" or null, which is the same."""
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return {name: value for name, value in model.items() if value or name not in affixes}


def unigram_scores(vocab: Sequence[Any], without: Collection[str] = ()) -> list[float]:
    """Unigram's, as the float32 that SentencePiece keeps: reading JSON moves the last digit of a double."""
    return [float(np.float32(score)) for piece, score in vocab if piece not in without]


def differences(one: Any, other: Any) -> list[str]:
    """`key.path: value -> value` for every leaf that differs; lists of more than 20 elements count as one leaf."""
    return [f"{path}: {_short(a)} -> {_short(b)}" for path, a, b in _iter_differences(one, other, "")]


def _iter_differences(one: Any, other: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one | other:
            yield from _iter_differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other) <= 20:
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _iter_differences(a, b, f"{path}.{number}")
    else:
        yield path, one, other


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("type") or f"{len(value)} keys")
    if isinstance(value, list):
        kinds = [step["type"] for step in value if isinstance(step, dict) and "type" in step]
        return ", ".join(kinds) if kinds and len(kinds) == len(value) else f"{len(value)} entries"
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else text[:37] + "..."
