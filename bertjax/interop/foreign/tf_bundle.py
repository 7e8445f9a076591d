"""Read TensorFlow's checkpoints (`NAME.index` and `NAME.data-00000-of-00001`) without TensorFlow.

Formats: the index is a table as in LevelDB's doc/table_format.md (footer, index block, data blocks with shared key
prefixes, each block uncompressed or as in google/snappy's format_description.txt, with a masked CRC-32C). Its values
are messages of tensorflow/core/protobuf/tensor_bundle.proto, BundleHeaderProto under the empty key and one
BundleEntryProto for each tensor, in the encoding of protobuf.dev/programming-guides/encoding. The data files hold the
tensors' bytes (tensorflow/core/util/tensor_bundle). Tensors in slices and tensors of strings are refused.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp

from bertjax.errors import UserError
from bertjax.interop.foreign.checkpoint import damaged
from bertjax.interop.foreign.crc32c import crc32c, masked

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_HEADER_KEY = b""
# DataType of tensorflow/core/framework/types.proto
_DTYPES: dict[int, Any] = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 9: np.int64, 10: np.bool_,
    14: jnp.bfloat16, 17: np.uint16, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip
_STRING = 7


@dataclass(frozen=True)
class BundleTensor:
    """One tensor of a bundle, which is read when it is asked for."""

    index: Path
    data: Path
    name: str
    shape: tuple[int, ...]
    dtype: int
    offset: int
    size: int
    checksum: int
    sliced: bool

    def read(self) -> np.ndarray:
        """The tensor in its own dtype. Raises UserError: strings, slices, a file cut short, another checksum."""
        if self.sliced:
            raise UserError(
                f"{self.index}: '{self.name}' is stored in slices, which are not read; save it in one piece"
            )
        if (kind := _DTYPES.get(self.dtype)) is None:
            what = "strings" if self.dtype == _STRING else f"dtype {self.dtype}"
            raise UserError(f"{self.index}: '{self.name}' holds {what}, which are no weights; save it without")
        dtype = np.dtype(kind)
        if self.size != dtype.itemsize * int(np.prod(self.shape, dtype=np.int64)):
            raise damaged(self.index, f"'{self.name}' has {self.size} bytes and shape {self.shape}", "index")
        try:
            with self.data.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except FileNotFoundError:
            raise UserError(f"{self.index}: {self.data.name} is not beside it; download it too") from None
        if len(content) < self.size:
            raise damaged(self.data, f"it ends inside '{self.name}'", "TensorFlow checkpoint")
        if masked(crc32c(content)) != self.checksum:
            raise damaged(self.data, f"'{self.name}' has another checksum than {self.index.name} says", "checkpoint")
        return np.frombuffer(content, dtype).reshape(self.shape)


def read_index(path: Path) -> dict[str, BundleTensor]:
    """{name: tensor} of `NAME.index`. Raises UserError for a file that is not a sound one."""
    try:
        table = dict(_read_table(path.read_bytes()))
        header = _read_message(table.pop(_HEADER_KEY))
        if header.get(2, 0):
            raise ValueError("numbers are big-endian")
        shards = header[1]
        return {name.decode(): _to_tensor(path, name.decode(), shards, entry) for name, entry in table.items()}
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        reason = "it has no header" if isinstance(error, KeyError) else error
        raise damaged(path, reason, "index of a TensorFlow checkpoint") from None


def _to_tensor(path: Path, name: str, shards: int, entry: bytes) -> BundleTensor:
    fields = _read_message(entry, repeated=(7,))
    shape = _read_message(fields.get(2, b""), repeated=(2,))
    sizes = tuple(_read_message(dim).get(1, 0) for dim in shape.get(2, ()))
    shard = fields.get(3, 0)
    data = path.with_name(f"{path.name.removesuffix('.index')}.data-{shard:05d}-of-{shards:05d}")
    numbers = (fields.get(1, 0), fields.get(4, 0), fields.get(5, 0), fields.get(6, 0))
    if not all(isinstance(number, int) for number in (*sizes, *numbers)):
        raise ValueError(f"the entry of {name!a:.60} has fields of other types")
    return BundleTensor(path, data, name, sizes, *numbers, sliced=bool(fields.get(7)))


def _read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of an SSTable, in order."""
    if len(content) < _FOOTER or struct.unpack("<Q", content[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as a table does")
    footer = content[-_FOOTER:]
    _, at = _read_handle(footer, 0)  # of the meta index, which is empty
    handle, _ = _read_handle(footer, at)
    for _, value in _read_block(content, handle):
        yield from _read_block(content, _read_handle(value, 0)[0])


def _read_handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _read_varint(content, at)
    size, at = _read_varint(content, at)
    return (offset, size), at


def _read_block(content: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    offset, size = handle
    block, trailer = content[offset : offset + size], content[offset + size : offset + size + 5]
    if len(block) < size or len(trailer) < 5:
        raise ValueError("it is cut short")
    kind, checksum = struct.unpack("<BI", trailer)
    if masked(crc32c(block + trailer[:1])) != checksum:
        raise ValueError("a block has another checksum")
    if kind == 1:
        block = _decompress_snappy(block)
    elif kind:
        raise ValueError(f"a block is compressed in way {kind}")
    restarts = struct.unpack("<I", block[-4:])[0]
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise ValueError("a block has too many restarts")
    at, key = 0, b""
    while at < end:
        shared, at = _read_varint(block, at)
        own, at = _read_varint(block, at)
        length, at = _read_varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise ValueError("an entry is longer than its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """(number, the place behind it)."""
    number = shift = 0
    while True:
        octet = content[at]
        number |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if octet < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a number has too many bytes")


def _read_message(content: bytes, repeated: tuple[int, ...] = ()) -> dict[int, Any]:
    """{field: its last value} of a protobuf message; lists for `repeated`."""
    found: dict[int, Any] = {}
    at = 0
    while at < len(content):
        tag, at = _read_varint(content, at)
        field, kind = tag >> 3, tag & 7
        value: Any
        if kind == 0:
            value, at = _read_varint(content, at)
        elif kind == 2:
            length, at = _read_varint(content, at)
            value = content[at : at + length]
            if len(value) < length:
                raise ValueError("a message is cut short")
            at += length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value = struct.unpack("<Q" if kind == 1 else "<I", content[at : at + width])[0]
            at += width
        else:
            raise ValueError(f"a message has a field of wire type {kind}")
        if field in repeated:
            found.setdefault(field, []).append(value)
        else:
            found[field] = value
    return found


def _decompress_snappy(content: bytes) -> bytes:
    size, at = _read_varint(content, 0)
    out = bytearray()
    while at < len(content):
        tag = content[at]
        kind, at = tag & 3, at + 1
        if kind == 0:  # literal bytes
            length = tag >> 2
            if length >= 60:
                width = length - 59
                length, at = int.from_bytes(content[at : at + width], "little"), at + width
            out += content[at : at + length + 1]
            at += length + 1
            continue
        if kind == 1:
            length, offset, at = 4 + (tag >> 2 & 7), (tag >> 5) << 8 | content[at], at + 1
        else:
            width = 2 if kind == 2 else 4
            length, offset = 1 + (tag >> 2), int.from_bytes(content[at : at + width], "little")
            at += width
        if not 0 < offset <= len(out) or len(out) + length > size:
            raise ValueError("a compressed block copies from outside itself")
        for _ in range(length):  # it may overlap what it writes
            out.append(out[-offset])
    if len(out) != size:
        raise ValueError("a compressed block has another length than it says")
    return bytes(out)


def find_index(folder: Path) -> Path | None:
    """The index of a folder's checkpoint: the one its `checkpoint` file names, else the one with the last step."""
    found = {path.name.removesuffix(".index"): path for path in folder.glob("*.index")}
    if not found:
        return None
    named = folder / "checkpoint"
    if named.is_file() and named.stat().st_size < 100_000:
        first = named.read_bytes().split(b"\n")[0].partition(b'"')[2].partition(b'"')[0]
        name = first.decode("utf-8", "replace").rpartition("/")[2]
        if name in found:
            return found[name]
    return max(found.items(), key=lambda item: (_step(item[0]), item[0]))[1]


def _step(name: str) -> int:
    number = name.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdigit() else -1


def count_by_kind(names: Mapping[str, str]) -> str:
    """`12 x adam_m, 1 x global_step` of {name: kind}, for a note."""
    kinds = list(names.values())
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
