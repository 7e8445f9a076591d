"""The prepared store: what goes in comes out, and no damage goes unnoticed."""

import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.store.manifest import MANIFEST
from bertjax.data.store.reader import Store
from bertjax.data.store.writer import StoreWriter
from bertjax.errors import StorageError, UserError

DTYPE = np.dtype([("input_ids", "<i4", (16,)), ("weights", "<f4", (3,)), ("label", "<i4")])


def random_rows(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, DTYPE)
    rows["input_ids"] = rng.integers(0, 30522, (count, 16))
    rows["weights"] = rng.random((count, 3))
    rows["label"] = np.arange(count)
    return rows


def write(folder: Path, rows: np.ndarray, **options) -> Path:
    with StoreWriter(folder, DTYPE, {"note": ["free", 1]}, **options) as writer:
        writer.write(rows)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "store", random_rows(1000), rows_per_shard=300, fingerprint="f", tokenizer_sha256="t")


def shard(folder: Path, index: int = 1) -> Path:
    return sorted(folder.glob("*.array_record"))[index]


def test_rows_come_back_in_the_order_asked_for(store: Path):
    rows, opened = random_rows(1000), Store(store)
    assert [s["records"] for s in opened.shards] == [300, 300, 300, 100]
    assert len(opened) == 1000 and opened.dtype == DTYPE and opened.meta == {"note": ["free", 1]}
    assert (opened.fingerprint, opened.tokenizer_sha256) == ("f", "t")
    assert opened[299] == rows[299] and opened[300] == rows[300]
    assert len(opened.rows([])) == 0
    opened.verify()
    wanted = [999, 0, 300, 299, 5, 5, 300]
    np.testing.assert_array_equal(opened.rows(wanted), rows[wanted])
    for outside in (-1, 1000):
        with pytest.raises(IndexError):
            opened.rows([0, outside])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 50))
def test_blocks_do_not_change_the_files(tmp_path_factory, sizes: list[int], per_shard: int):
    rows = random_rows(sum(sizes))
    folder = tmp_path_factory.mktemp("blocks")
    write(folder / "whole", rows, rows_per_shard=per_shard)
    with StoreWriter(folder / "parts", DTYPE, {"note": ["free", 1]}, rows_per_shard=per_shard) as writer:
        for part in np.split(rows, np.cumsum(sizes)):
            writer.write(part)
    names = [path.name for path in sorted((folder / "whole").iterdir())]
    assert names == [path.name for path in sorted((folder / "parts").iterdir())]
    for name in names:
        assert (folder / "whole" / name).read_bytes() == (folder / "parts" / name).read_bytes()
    np.testing.assert_array_equal(Store(folder / "parts").rows(np.arange(len(rows))), rows)


def test_threads_and_pickles_read_the_same(store: Path):
    rows, opened = random_rows(1000), pickle.loads(pickle.dumps(Store(store)))
    wrong: list[int] = []

    def read(seed: int) -> None:
        for _ in range(30):
            wanted = np.random.default_rng(seed).integers(0, 1000, 64)
            if not (opened.rows(wanted) == rows[wanted]).all():
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


DAMAGE = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "bytes, not"),
    "emptied": (lambda path: path.write_bytes(b""), "has 0 bytes"),
    "deleted": (lambda path: path.unlink(), "is missing"),
    "zeroed": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "holds 0 rows|cannot be opened"),
    # ArrayRecord opens such a file without an error, as an empty one.
    "cut and padded": (lambda path: _cut_and_pad(path), "holds 0 rows, not 300"),
}


def _cut_and_pad(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 65536].ljust(len(data), b"\0"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_named_when_the_store_is_opened(store: Path, kind: str):
    damage, message = DAMAGE[kind]
    damage(shard(store))
    with pytest.raises(StorageError, match=message) as caught:
        Store(store)
    text = str(caught.value)
    assert str(shard(store, 0)).replace("00000", "00001") in text
    assert "\n" not in text and len(text) <= 300


def test_every_flipped_bit_is_caught_or_harmless(store: Path):
    rows, path = random_rows(1000), shard(store)
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    caught = 0
    for _ in range(60):
        bad, bit = bytearray(good), int(rng.integers(len(good) * 8))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            opened = Store(store)
            with pytest.raises(StorageError, match=path.name):
                opened.verify()
            np.testing.assert_array_equal(opened.rows(np.arange(1000)), rows)  # the flip was in unused bytes
        except StorageError as error:
            assert path.name in str(error) and "\n" not in str(error) and len(str(error)) <= 300
            caught += 1
    assert caught > 10


def test_a_damaged_manifest_is_refused(store: Path):
    path = store / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["records"] = 299
    path.write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match=r"manifest\.json: damaged"):
        Store(store)
    path.write_text("{")
    with pytest.raises(StorageError, match=r"manifest\.json: cannot be read"):
        Store(store)
    path.write_text('{"format": 99}')
    with pytest.raises(UserError, match="not a store of format"):
        Store(store)
    path.unlink()
    with pytest.raises(UserError, match="not a prepared store"):
        Store(store)


def test_an_unfinished_store_is_never_seen(tmp_path: Path):
    with (
        pytest.raises(RuntimeError, match="midway"),
        StoreWriter(tmp_path / "s", DTYPE, {}, rows_per_shard=10) as writer,
    ):
        writer.write(random_rows(95))
        assert not (tmp_path / "s").exists()
        raise RuntimeError("midway")
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_writers_leaves_the_first_ones_store(tmp_path: Path):
    first = StoreWriter(tmp_path / "s", DTYPE, {}, fingerprint="same")
    second = StoreWriter(tmp_path / "s", DTYPE, {}, fingerprint="same")
    first.write(random_rows(10))
    second.write(random_rows(10))
    first.close()
    inode = (tmp_path / "s").stat().st_ino
    reader = Store(tmp_path / "s")
    second.close()
    assert (tmp_path / "s").stat().st_ino == inode
    np.testing.assert_array_equal(reader.rows(np.arange(10)), random_rows(10))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_damaged_or_other_store_is_replaced(tmp_path: Path):
    write(tmp_path / "s", random_rows(10), fingerprint="a")
    shard(tmp_path / "s", 0).write_bytes(b"")
    write(tmp_path / "s", random_rows(10, seed=2), fingerprint="a")
    np.testing.assert_array_equal(Store(tmp_path / "s").rows(np.arange(10)), random_rows(10, seed=2))
    write(tmp_path / "s", random_rows(10, seed=3), fingerprint="b")
    np.testing.assert_array_equal(Store(tmp_path / "s").rows(np.arange(10)), random_rows(10, seed=3))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_more_shards_than_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bertjax.data.store.reader.MAX_OPEN_READERS", 2)
    rows = random_rows(50)
    opened = Store(write(tmp_path / "s", rows, rows_per_shard=5))
    wanted = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(opened.rows(wanted), rows[wanted])
    assert opened._reader.cache_info().currsize == 2


def test_what_dead_preparers_left_is_removed_in_time(tmp_path: Path):
    old, new = tmp_path / ".s.1-x.tmp", tmp_path / ".s.2-y.tmp"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    write(tmp_path / "s", random_rows(1))
    assert not old.exists() and new.exists()


def test_a_folder_that_cannot_be_written_is_an_error_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="no folder can be made here"):
        StoreWriter(tmp_path / "file" / "s", DTYPE, {})
    writer = StoreWriter(tmp_path / "s", DTYPE, {})
    shutil.rmtree(writer.temporary)
    writer.write(random_rows(3))
    with pytest.raises(StorageError, match="could not be written") as caught:
        writer.close()
    assert "\n" not in str(caught.value)
