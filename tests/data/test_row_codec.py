"""Rows as records: nothing is lost, whatever the numbers, and rows with few distinct values are small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bertjax.data.store.row_codec import BITS, COUNTS, decode, decode_plain, encode

S = 300
DTYPE = np.dtype([
    ("input_ids", "<i4", (S,)), ("segment_ids", "<i4", (S,)), ("positions", "<i4", (S,)), ("weights", "<f4", (S,)),
    ("label", "<i4", (1,)), ("number", "<i8"), ("scores", "<f8", (3, 5)), ("wide", "<i8", (20,)),
])  # fmt: skip


def restored(rows: np.ndarray, records: list[bytes]) -> np.ndarray:
    found = np.full(len(rows), 7, np.uint8).repeat(rows.dtype.itemsize).view(rows.dtype)  # every byte is to be written
    decode(records, rows.dtype, {name: found[name] for name in rows.dtype.names or ()})
    return found


def ordinary(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, places = np.zeros(count, DTYPE), np.arange(S)
    length, cut = rng.integers(257, S + 1, (count, 1)), rng.integers(1, 250, (count, 1))
    real = places < length
    rows["input_ids"] = rng.integers(1000, 30_000, (count, S)) * real
    rows["segment_ids"] = real
    rows["positions"] = (places - np.where(places < cut, 0, cut)) * real
    rows["positions"][::2] = (places * real)[::2]
    rows["weights"] = real
    return rows


values = st.one_of(
    st.just(0), st.integers(0, 1), st.integers(0, 255), st.integers(0, 2**16), st.integers(-(2**31), 2**31 - 1)
)
floats = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 255.0, np.nan, np.inf, 1e-45]), st.floats(width=32))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 6))
def test_every_number_comes_back_bit_for_bit(data: st.DataObject, count: int):
    rows = ordinary(count)
    for name, kind in (("input_ids", values), ("positions", values), ("weights", floats), ("scores", floats)):
        if data.draw(st.booleans()):
            shape = rows[name].shape
            rows[name] = data.draw(hnp.arrays(rows.dtype[name].base, shape, elements=kind, fill=kind))
    rows["wide"][:, :2] = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2))
    rows["number"] = data.draw(st.integers(-(2**63), 2**63 - 1))
    assert restored(rows, list(encode(rows))).tobytes() == rows.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 2), min_size=S, max_size=S))
def test_counts_that_almost_count_come_back(steps: list[int]):
    rows = ordinary(2)
    rows["positions"][0] = np.cumsum(steps) + np.arange(S)
    rows["positions"][1, :] = np.arange(S) + 1  # does not begin with 0
    assert restored(rows, list(encode(rows))).tobytes() == rows.tobytes()


def test_ordinary_rows_are_small():
    rows = ordinary(8)
    records = list(encode(rows))
    # widths, ids of two bytes, three fields of bits, and what is too small for a code
    assert {len(record) for record in records} == {8 + 2 * S + 3 * 38 + 4 + 8}
    assert {record[:4] for record in records} == {bytes([2, BITS, COUNTS, BITS])}
    assert len(records[0]) < rows.dtype.itemsize / 5


def test_a_record_depends_on_its_row_alone():
    rows = ordinary(12)
    rows["input_ids"][3, 5], rows["input_ids"][7] = 100_000, 0
    alone = [record for row in np.split(rows, 12) for record in encode(row)]
    assert alone == list(encode(rows)) and len(set(map(len, alone))) == 3
    assert restored(rows, alone).tobytes() == rows.tobytes()  # layouts that differ


def test_some_rows_are_filled():
    rows = ordinary(6)
    fields = {name: np.zeros_like(rows[name]) for name in ("input_ids", "positions")}
    for decoder, records in ((decode, list(encode(rows))), (decode_plain, [row.tobytes() for row in rows])):
        decoder(records[:2], DTYPE, fields, np.array([4, 1]))
        assert (fields["input_ids"][[4, 1]] == rows["input_ids"][:2]).all() and not fields["positions"][[0, 2]].any()


@pytest.mark.parametrize("bad", [b"", b"\x02", bytes(200), bytes([9]) * 400])
@pytest.mark.parametrize("first", [True, False])
def test_other_records_are_refused(bad: bytes, first: bool):
    rows = ordinary(2)
    records = list(encode(rows))
    records[0 if first else 1] = bad
    with pytest.raises(ValueError, match="record"):
        restored(rows, records)
