"""Rows as records: each field of a row in the fewest bytes that hold its values, without loss.

Most fields of a row are small numbers in 32 bits. A record is a byte for each field, its width (see `_widths`), then
the values of all fields. Records of equal widths have one layout, so a batch of them is decoded at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from bertjax.data.store.row_format import field_list

CODEC = 1  # of the records that `encode` gives, in the manifest
BITS = 0x80  # the width of zeros and ones, eight in a byte
COUNTS = 0x81  # of values that are 0 or one more than the value before, such as positions: a bit for each, 0 for 0
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
        for name, width in zip(names, header, strict=True):
            if width:
                values = rows[name][where]
                packed[name] = np.packbits(values != 0, axis=-1) if width in (BITS, COUNTS) else values
        data, size = packed.tobytes(), packed.dtype.itemsize
        for at, row in enumerate(where.tolist()):
            records[row] = data[at * size : (at + 1) * size]
    return iter(records)


Rows = np.ndarray | slice
ALL_ROWS = slice(None)


def decode(records: Sequence[bytes], dtype: np.dtype, fields: Mapping[str, np.ndarray], where: Rows = ALL_ROWS) -> None:
    """Fill `fields` {name: [n, ...]} of rows of `dtype` at `where` (int64 [m]; default: all) from `records` [m].

    Raises ValueError for records that are not those of `encode`.
    """
    header = records[0][: len(dtype.names or ())]
    layout = _layout(header, dtype)
    if set(map(len, records)) == {layout.itemsize}:
        packed = np.frombuffer(b"".join(records), layout)
        if (packed[_HEADER] == packed[_HEADER][0]).all():
            return _fill(packed, dict(zip(dtype.names or (), header, strict=True)), fields, where)
    where = np.arange(len(records)) if isinstance(where, slice) else where
    groups: dict[bytes, list[int]] = {}
    for at, record in enumerate(records):
        groups.setdefault(record[: len(header)], []).append(at)
    for header, group in groups.items():
        widths = dict(zip(dtype.names or (), header, strict=False))  # `_layout` refuses one that is too short
        _fill(_join([records[at] for at in group], _layout(header, dtype)), widths, fields, where[group])


def decode_plain(
    records: Sequence[bytes], dtype: np.dtype, fields: Mapping[str, np.ndarray], where: Rows = ALL_ROWS
) -> None:
    """`decode` for shards of earlier versions, whose records are rows as they are in memory."""
    rows = _join(records, dtype)
    for name, values in fields.items():
        values[where] = rows[name]


def _join(records: Sequence[bytes], layout: np.dtype) -> np.ndarray:
    if set(map(len, records)) != {layout.itemsize}:
        raise ValueError("a record has another length than its layout")
    return np.frombuffer(b"".join(records), layout)


def _fill(packed: np.ndarray, widths: Mapping[str, int], fields: Mapping[str, np.ndarray], where: Rows) -> None:
    for name, values in fields.items():
        if widths[name] not in (BITS, COUNTS):
            values[where] = packed[name] if widths[name] else 0
            continue
        ones = np.unpackbits(packed[name], axis=-1, count=values.shape[-1])
        if widths[name] == COUNTS:
            places = np.arange(ones.shape[-1], dtype=np.int32)
            values[where] = places - np.maximum.accumulate(np.where(ones, 0, places), axis=-1)
        else:
            values[where] = ones


def _widths(values: np.ndarray) -> np.ndarray:
    """The bytes of a value in each row of a field [n, ...]: uint8 [n]; 0 where all are zero, or BITS or COUNTS."""
    values = np.ascontiguousarray(values)
    size = values.dtype.itemsize
    if values[:1].nbytes < MIN_BYTES:
        return np.full(len(values), size, np.uint8)
    bits = values.view(f"u{size}").reshape(len(values), -1)
    most = bits.max(axis=1)
    one = np.ones((), values.dtype).view(bits.dtype)  # also of floats
    if values.dtype.kind == "f":
        found = np.full(len(values), size)
        ones = ((bits == 0) | (bits == one)).all(axis=1)
    else:  # a negative number has its highest bit set
        steps = np.searchsorted(np.array([2**8, 2**16, 2**32], np.uint64), most, side="right")
        found, ones = np.minimum(np.array([1, 2, 4, 8])[steps], size), most <= one
        if values.ndim == 2 and values.shape[1] > 256:  # shorter ones are read faster as bytes
            after = np.pad(values[:, :-1], ((0, 0), (1, 0)), constant_values=-1) + 1
            found[((values == 0) | (values == after)).all(axis=1)] = COUNTS
    return np.where(most == 0, 0, np.where(ones, BITS, found)).astype(np.uint8)


@lru_cache(maxsize=1024)
def _layout(header: bytes, dtype: np.dtype) -> np.dtype:
    """The structure of records with this header. Raises ValueError for one that no record of such rows has."""
    fields = field_list(dtype)
    if len(header) != len(fields):
        raise ValueError("a record is cut short")
    layout: list[tuple[str, str, tuple[int, ...]]] = [(_HEADER, "u1", (len(fields),))]
    for width, (name, kind, shape) in zip(header, fields, strict=True):
        own = np.dtype(kind).itemsize
        if width in (BITS, COUNTS) and shape:
            layout.append((name, "u1", (*shape[:-1], -(-shape[-1] // 8))))
        elif width in (1, 2, 4, 8) and width <= own:
            layout.append((name, kind if width == own else f"<u{width}", shape))
        elif width:
            raise ValueError(f"a record has the width {width} for {name}")
    return np.dtype(layout)
