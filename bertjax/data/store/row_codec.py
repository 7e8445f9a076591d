"""Rows as records: each field of a row in the fewest bytes that hold its values, without loss.

Most fields of a row are small numbers in 32 bits. A record is a byte for each field, its width (see `_widths`), then the
values of all fields. Records of equal widths have one layout, so a batch of them is decoded at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from bertjax.data.store.row_format import field_list

CODEC = 1  # of the records that `encode` gives, in the manifest
SMALL_FLOATS = 0x81  # the width of floats that are the integers 0 to 255, in a byte each
MIN_BYTES = 64  # smaller fields keep their type: they would save little and divide batches into several layouts
_HEADER = "widths"


def encode(rows: np.ndarray) -> Iterator[bytes]:
    """The records of rows [n] (structured, of little-endian numbers), in order; each depends on its row alone."""
    names = rows.dtype.names or ()
    widths = np.stack([_widths(rows[name]) for name in names], axis=1)
    layouts, which = np.unique(widths, axis=0, return_inverse=True)
    records = [b""] * len(rows)
    for number, header in enumerate(layouts):
        where = np.flatnonzero(which.reshape(-1) == number)
        packed = np.zeros(len(where), _layout(header.tobytes(), rows.dtype))
        packed[_HEADER] = header
        for name in packed.dtype.names[1:]:  # type: ignore[index]
            packed[name] = rows[name][where]
        data, size = packed.tobytes(), packed.dtype.itemsize
        for at, row in enumerate(where.tolist()):
            records[row] = data[at * size : (at + 1) * size]
    return iter(records)


def decode(records: Sequence[bytes], dtype: np.dtype, fields: Mapping[str, np.ndarray], where: np.ndarray) -> None:
    """Fill `fields` [n, ...] of rows of `dtype` at `where` (int64 [m]) from `records` [m] of `encode`.

    Raises ValueError for other records.
    """
    size = len(dtype.names or ())
    headers = [record[:size] for record in records]
    for header in set(headers):
        layout, alike, at = _layout(header, dtype), records, where
        if headers.count(header) < len(records):
            chosen = [number for number, other in enumerate(headers) if other == header]
            alike, at = [records[number] for number in chosen], where[chosen]
        packed = _join(alike, layout)
        for name, values in fields.items():
            values[at] = packed[name] if name in (layout.names or ()) else 0


def decode_plain(
    records: Sequence[bytes], dtype: np.dtype, fields: Mapping[str, np.ndarray], where: np.ndarray
) -> None:
    """`decode` for shards of earlier versions, whose records are rows as they are in memory."""
    rows = _join(records, dtype)
    for name, values in fields.items():
        values[where] = rows[name]


def _join(records: Sequence[bytes], dtype: np.dtype) -> np.ndarray:
    data = b"".join(records)
    if len(data) != len(records) * dtype.itemsize:
        raise ValueError("a record has another length than its layout")
    return np.frombuffer(data, dtype)


def _widths(values: np.ndarray) -> np.ndarray:
    """The bytes of a value in each row of a field [n, ...]: uint8 [n]; 0 where all are zero, or SMALL_FLOATS."""
    values = np.ascontiguousarray(values).reshape(len(values), -1)
    size = values.dtype.itemsize
    if values.shape[1] * size < MIN_BYTES:
        return np.full(len(values), size, np.uint8)
    bits = values.view(f"u{size}")
    most = bits.max(axis=1)
    if values.dtype.kind != "f":  # a negative number has its highest bit set
        steps = np.array([0, 1, 2, 4, 8], np.uint8)
        return np.minimum(steps[np.searchsorted(np.array([0, 2**8 - 1, 2**16 - 1, 2**32 - 1]), most)], size)
    with np.errstate(invalid="ignore"):
        small = (values.astype(np.uint8).astype(values.dtype).view(bits.dtype) == bits).all(axis=1)
    return np.where(most == 0, 0, np.where(small, SMALL_FLOATS, size)).astype(np.uint8)


@lru_cache(maxsize=1024)
def _layout(header: bytes, dtype: np.dtype) -> np.dtype:
    """The structure of records with this header. Raises ValueError for one that no record of such rows has."""
    fields = field_list(dtype)
    if len(header) != len(fields):
        raise ValueError("a record is cut short")
    layout = [(_HEADER, "u1", (len(fields),))]
    for width, (name, kind, shape) in zip(header, fields, strict=True):
        size = 1 if width == SMALL_FLOATS else width
        if size not in (0, 1, 2, 4, 8) or size > np.dtype(kind).itemsize:
            raise ValueError(f"a record has the width {width} for {name}")
        if size:
            layout.append((name, kind if size == np.dtype(kind).itemsize else f"<u{size}", shape))
    return np.dtype(layout)
