"""The position contract: global batch k is a pure function of the data, the seed and k."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bertjax.config.schema.data import BertPairs, Classify, Task
from bertjax.config.schema.sources import TextFiles
from bertjax.data.pipeline.loader import Batches, BatchIterator
from bertjax.data.pipeline.task_rows import make_task_data
from bertjax.data.preprocess.bert_pairs import pairs_dtype
from bertjax.data.store.reader import Store
from bertjax.data.store.row_format import row_dtype
from bertjax.data.store.writer import StoreWriter
from bertjax.errors import StorageError, UserError

S, B = 32, 8
PAIRS = BertPairs(sequence_length=S, max_predictions_per_seq=5)
CONTINUES = np.arange(1000) % 7 == 0
TOKENIZER = SimpleNamespace(vocab_size=1000, pad_id=0, cls_id=2, sep_id=3, mask_id=4, is_continuation=CONTINUES)
TASK = Task(source=TextFiles(files=["unused"]), preprocess=PAIRS)


def pair_store(folder: Path, count: int, seed: int = 0) -> Store:
    """Rows with their number in place of the second token."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, pairs_dtype(PAIRS))
    for n, row in enumerate(rows):
        length = int(rng.integers(10, S + 1))
        row["input_ids"][:length] = [2, *rng.integers(100, 1000, length - 2), 3]
        row["segment_ids"][:length] = 1
        row["positions"][:length] = np.arange(length)
        row["cls_positions"] = 0
        row["nsp_labels"], row["nsp_weights"] = n % 2, 1
    rows["token_type_ids"][:, 0] = np.arange(count)  # the mark that a test knows a row by
    with StoreWriter(folder, rows.dtype, {}, rows_per_shard=17) as writer:
        writer.write(rows)
    return Store(folder)


def marks(batch: dict[str, np.ndarray]) -> list[int]:
    return batch["token_type_ids"][:, 0].tolist()


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[Store]:
    folder = tmp_path_factory.mktemp("stores")
    return [pair_store(folder / "a", 50), pair_store(folder / "b", 21, seed=1)]


@pytest.fixture
def one(stores: list[Store]) -> Batches:
    return Batches({"a": make_task_data(TASK, stores[0], TOKENIZER, seed=5)}, {"a": 1.0}, B)


@pytest.fixture
def two(stores: list[Store]) -> Batches:
    tasks = {
        name: make_task_data(TASK, store, TOKENIZER, seed)
        for seed, (name, store) in enumerate(zip("ab", stores, strict=True))
    }
    return Batches(tasks, {"a": 0.75, "b": 0.25}, B)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one
    )


@pytest.mark.parametrize("which", ["one", "two"])
def test_fields_tell_the_arrays(which: str, request: pytest.FixtureRequest):
    batches = request.getfixturevalue(which)
    batch = batches.batch(0)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: ((B, *shape), dtype) for name, (shape, dtype) in batches.fields.items()
    }
    assert batch["masked_positions"].shape == (B, 5)
    assert ("task_ids" in batch) == (which == "two")


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_any_number_of_processes_builds_the_same_batch(which: str, processes: int, request: pytest.FixtureRequest):
    batches = request.getfixturevalue(which)
    share = B // processes
    for k in (0, 5, 6, 7, 10**9):  # 6 runs over the end of an epoch of 50 rows
        whole = batches.batch(k)
        parts = [batches.batch(k, slice(p * share, (p + 1) * share)) for p in range(processes)]
        assert equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})


@pytest.mark.parametrize("which", ["one", "two"])
def test_stored_rows_are_numbered_as_an_epoch_reads_them(which: str, request: pytest.FixtureRequest):
    """What is kept of row n of `epoch_batch` comes back with that row, in any epoch and any order."""
    batches = request.getfixturevalue(which)
    with batches.epoch_batches() as epoch:
        stored = np.concatenate(
            [np.stack([batch["token_type_ids"][:, 0], batch["nsp_labels"][:, 0]], 1) for batch in epoch]
        )
    more = lambda numbers: {"kept": stored[numbers]}  # noqa: E731
    seen = set()
    with batches.iterate(3, 40, slice(2, 7), more=more) as found:
        for batch in found:
            assert batch["kept"][:, 0].tolist() == marks(batch)
            assert batch["kept"][:, 1].tolist() == batch["nsp_labels"][:, 0].tolist()
            seen.update(marks(batch))
    assert len(seen) > 45 and not batches.are_fixed  # masks are dynamic


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize("prefetch", [0, 1, 4, 50])
def test_iterating_seeking_and_resuming_agree(which: str, prefetch: int, request: pytest.FixtureRequest):
    batches = request.getfixturevalue(which)
    direct = [batches.batch(k) for k in range(20)]
    with batches.iterate(0, 20, prefetch=prefetch) as found:
        assert all(equal(a, b) for a, b in zip(found, direct, strict=True))
    for start in (1, 7, 19, 20):
        with batches.iterate(start, 20, slice(2, 4), prefetch) as found:
            for k, batch in zip(range(start, 20), found, strict=True):
                assert equal(batch, {name: array[2:4] for name, array in direct[k].items()})


def test_another_opening_gives_the_same_bits_and_another_seed_does_not(stores: list[Store]):
    def opened(seed: int) -> Batches:
        return Batches({"a": make_task_data(TASK, Store(stores[0].folder), TOKENIZER, seed)}, {"a": 1.0}, B)

    assert equal(opened(5).batch(3), opened(5).batch(3))
    assert marks(opened(5).batch(3)) != marks(opened(6).batch(3))


def test_every_epoch_is_complete_reshuffled_and_masked_anew(one: Batches):
    assert (one.rows_per_epoch, one.batches_per_epoch) == (50, 7)
    stream = [mark for k in range(25) for mark in marks(one.batch(k))]  # 200 rows: four epochs
    epochs = [stream[50 * e : 50 * (e + 1)] for e in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    row = {e: one._tasks[0].rows([e], [3]) for e in range(4)}
    assert len({r["masked_positions"].tobytes() + r["input_ids"].tobytes() for r in row.values()}) > 1


def test_masks_can_be_undone(one: Batches, stores: list[Store]):
    original = stores[0].rows(np.arange(50))["input_ids"]
    for k in range(8):
        batch = one.batch(k)
        assert (batch["masked_weights"].sum(axis=1) >= 1).all()
        for n, mark in enumerate(marks(batch)):
            real = batch["masked_weights"][n] > 0
            restored = batch["input_ids"][n].copy()
            restored[batch["masked_positions"][n][real]] = batch["masked_ids"][n][real]
            np.testing.assert_array_equal(restored, original[mark])


def test_a_row_of_a_batch_is_the_row_of_its_task(two: Batches):
    for k in range(10):
        batch = two.batch(k)
        refs = two._order.at(k * B + np.arange(B))
        for row, (task, epoch, index) in enumerate(np.stack(refs, axis=1).tolist()):
            alone = two._tasks[task].rows([epoch], [index])
            assert batch["task_ids"][row] == task
            assert all((batch[name][row] == alone[name][0]).all() for name in alone)


def test_a_mixture_keeps_its_rates_and_repeats_the_smaller_task(two: Batches):
    batches = [two.batch(k) for k in range(25)]  # 200 rows
    tasks = np.concatenate([batch["task_ids"] for batch in batches])
    assert abs((tasks == 0).sum() - 150) <= 1
    seen = np.concatenate([marks(batch) for batch in batches])[tasks == 1]
    assert sorted(seen[:21].tolist()) == sorted(seen[21:42].tolist()) == list(range(21))
    assert seen[:21].tolist() != seen[21:42].tolist()


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_finite_pass_shows_every_row_once(which: str, processes: int, request: pytest.FixtureRequest):
    batches = request.getfixturevalue(which)
    share = B // processes
    parts = [list(batches.epoch_batches(slice(p * share, (p + 1) * share))) for p in range(processes)]
    merged = [{name: np.concatenate([part[name] for part in at]) for name in at[0]} for at in zip(*parts, strict=True)]
    assert len(merged) == batches.batches_per_epoch
    everything = {name: np.concatenate([batch[name] for batch in merged]) for name in merged[0]}
    count = batches.rows_per_epoch
    assert everything["token_type_ids"][:50, 0].tolist() == list(range(50))
    assert (everything["segment_ids"][:count, 0] == 1).all() and len(everything["segment_ids"]) % B == 0
    for name, array in everything.items():
        assert not array[count:].any(), f"padding rows of {name}"
    again = list(batches.epoch_batches(slice(0, share), prefetch=0))
    assert all(equal(a, b) for a, b in zip(parts[0], again, strict=True))
    assert len(list(batches.epoch_batches(limit=2))) == 2


def test_fields_of_mixed_tasks_must_agree(stores: list[Store], tmp_path: Path):
    rows = np.zeros(3, row_dtype(64, cls_positions="i4", labels="i4", label_weights="f4"))
    with StoreWriter(tmp_path / "c", rows.dtype, {}) as writer:
        writer.write(rows)
    other = Task(source=TextFiles(files=["unused"]), preprocess=Classify(sequence_length=64))
    tasks = {
        "a": make_task_data(TASK, stores[0], TOKENIZER, 0),
        "glue": make_task_data(other, Store(tmp_path / "c"), TOKENIZER, 0),
    }
    with pytest.raises(
        UserError, match=r"tasks 'a' and 'glue' cannot be mixed: input_ids is int32\[32\] .* int32\[64\]"
    ):
        Batches(tasks, {"a": 0.5, "glue": 0.5}, B)


def test_an_error_in_a_thread_reaches_the_consumer(stores: list[Store], tmp_path: Path):
    broken = pair_store(tmp_path / "broken", 50)
    batches = Batches({"a": make_task_data(TASK, broken, TOKENIZER, 0)}, {"a": 1.0}, B)
    path = broken.folder / broken.shards[1]["file"]
    data = bytearray(path.read_bytes())
    for at in range(0, len(data) // 2, 97):
        data[at] ^= 255
    path.write_bytes(data)
    broken._reader.cache_clear()
    before = threading.active_count()
    with pytest.raises(StorageError, match=path.name), batches.iterate(0, 50) as found:
        for _ in found:
            pass
    assert threading.active_count() == before


def test_closing_early_ends_the_threads_and_bounds_the_work():
    made: list[int] = []

    def make(k: int) -> dict[str, np.ndarray]:
        made.append(k)
        return {"k": np.array([k])}

    before = threading.active_count()
    with BatchIterator(make, 0, 1000, prefetch=3) as found:
        assert [int(batch["k"][0]) for batch, _ in zip(found, range(5), strict=False)] == list(range(5))
    assert len(made) <= 5 + 1 + 3 and threading.active_count() == before
    assert next(found, None) is None


def test_a_consumer_that_waits_keeps_the_order():
    def make(k: int) -> dict[str, np.ndarray]:
        gates[k % 2].wait(5)  # odd batches are done before even ones
        gates[0].set()
        return {"k": np.array([k])}

    gates = [threading.Event(), threading.Event()]
    gates[1].set()

    def numbers() -> Iterator[int]:
        with BatchIterator(make, 0, 9, prefetch=4) as found:
            for batch in found:
                yield int(batch["k"][0])

    assert list(numbers()) == list(range(9))


@pytest.mark.slow
def test_one_core_yields_well_above_five_thousand_rows_a_second(tmp_path: Path):
    pairs = BertPairs()
    rows = np.zeros(4096, pairs_dtype(pairs))
    rows["input_ids"] = np.random.default_rng(0).zipf(1.2, (4096, 128)).clip(5, 999)
    rows["segment_ids"] = 1
    with StoreWriter(tmp_path / "s", rows.dtype, {}, rows_per_shard=512) as writer:
        writer.write(rows)
    task = Task(source=TextFiles(files=["unused"]), preprocess=pairs)
    batches = Batches({"s": make_task_data(task, Store(tmp_path / "s"), TOKENIZER, 0)}, {"s": 1.0}, 256)
    batches.batch(0)
    start = time.process_time()  # of all threads: what else runs on the machine does not count
    with batches.iterate(0, 40) as found:
        assert sum(len(batch["input_ids"]) for batch in found) == 40 * 256
    assert 40 * 256 / (time.process_time() - start) > 10_000
