"""Reads and writes SentencePiece's model file (sentencepiece_model.proto of google/sentencepiece).

The library's own classes for it need the newest protobuf, which other packages do not allow.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # ModelProto.SentencePiece.Type
UNIGRAM = 1  # TrainerSpec.ModelType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# ModelProto; inside it SentencePiece, TrainerSpec and NormalizerSpec
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _VOCAB_SIZE, _SUFFIX, _BYTE_FALLBACK = 3, 4, 24, 35
_IDS = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
_NAMES = {"unk": 45, "bos": 46, "eos": 47, "pad": 48}
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5


@dataclass(frozen=True)
class Piece:
    text: str
    score: float  # a float32
    kind: int = NORMAL


@dataclass(frozen=True)
class Model:
    pieces: tuple[Piece, ...]  # by id
    charsmap: bytes  # the compiled normalization, empty for none
    special: dict[str, str]  # the names of unk, bos, eos and pad
    unsupported: tuple[str, ...] = ()  # the options that T5's models do not have, in words


def read(content: bytes) -> Model:
    """Raises ValueError when `content` is not a model."""
    pieces: list[Piece] = []
    trainer, normalizer = b"", b""
    for field, value in _fields(content):
        if field == _PIECES:
            pieces.append(_piece(_bytes(value)))
        elif field == _TRAINER:
            trainer += _bytes(value)  # a message may be split: the last value of a field counts
        elif field == _NORMALIZER:
            normalizer += _bytes(value)
    if not pieces:
        raise ValueError("it holds no pieces")
    spec, rules = dict(_fields(trainer)), dict(_fields(normalizer))
    odd = {
        "model_type is not UNIGRAM": spec.get(_MODEL_TYPE, UNIGRAM) != UNIGRAM,
        "byte_fallback is on": spec.get(_BYTE_FALLBACK, 0) != 0,
        "treat_whitespace_as_suffix is on": spec.get(_SUFFIX, 0) != 0,
        "add_dummy_prefix is off": rules.get(_DUMMY_PREFIX, 1) == 0,
        "remove_extra_whitespaces is off": rules.get(_REMOVE_SPACES, 1) == 0,
        "escape_whitespaces is off": rules.get(_ESCAPE_SPACES, 1) == 0,
    }
    usual = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    special = {what: _bytes(spec.get(_NAMES[what], name.encode())).decode() for what, name in usual.items()}
    charsmap = _bytes(rules.get(_CHARSMAP, b""))
    return Model(tuple(pieces), charsmap, special, tuple(what for what, is_so in odd.items() if is_so))


def write(model: Model) -> bytes:
    """A spiece.model with T5's options."""
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    content = encode_extra_pieces(model.pieces)
    spec = _number(_MODEL_TYPE, UNIGRAM) + _number(_VOCAB_SIZE, len(model.pieces))
    spec += b"".join(_number(_IDS[what], ids.get(name, -1)) for what, name in model.special.items())
    spec += b"".join(_text(_NAMES[what], name) for what, name in model.special.items())
    return content + _message(_TRAINER, spec) + _message(_NORMALIZER, _message(_CHARSMAP, model.charsmap))


def encode_extra_pieces(pieces: Iterable[Piece]) -> bytes:
    """The bytes that add pieces to a model when they are appended to its own."""
    return b"".join(_message(_PIECES, _piece_content(piece)) for piece in pieces)


def _piece_content(piece: Piece) -> bytes:
    score = _tag(_SCORE, _FIXED32) + struct.pack("<f", piece.score)
    return _text(_PIECE, piece.text) + score + _number(_TYPE, piece.kind)


def _piece(content: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for field, value in _fields(content):
        if field == _PIECE:
            text = _bytes(value).decode()
        elif field == _SCORE:
            (score,) = struct.unpack("<f", _bytes(value))
        elif field == _TYPE and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field (https://protobuf.dev/programming-guides/encoding): an integer or bytes."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        kind = tag & 7
        if kind == _VARINT:
            number, place = _varint(content, place)
            yield tag >> 3, number
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind, 0)
        if kind == _BYTES:
            size, place = _varint(content, place)
        elif not size:
            raise ValueError(f"unknown kind of field at byte {place}")
        if place + size > len(content):
            raise ValueError("it ends in the middle of a field")
        yield tag >> 3, content[place : place + size]
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(content) and shift < 64:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise ValueError("it ends in the middle of a number")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field holds a number instead of bytes")
    return value


def _encoded(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers in two's complement
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _tag(field: int, kind: int) -> bytes:
    return _encoded(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _encoded(value)


def _message(field: int, content: bytes) -> bytes:
    return _tag(field, _BYTES) + _encoded(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())
