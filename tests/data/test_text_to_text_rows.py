"""Text to text: the rows that come of the examples, packed or not."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.data import SpanCorruption, Task, TextToText
from bertjax.config.schema.sources import JsonLines
from bertjax.data.jobs import job_plan, text_counts
from bertjax.data.pipeline import prepare
from bertjax.data.pipeline.loader import Batches, open_task
from bertjax.data.pipeline.task_rows import make_task_data
from bertjax.data.store.reader import Store
from bertjax.errors import UserError


@dataclass(frozen=True)
class Words:
    """As the contract of tokenizers has it: pad 0, EOS 1, unknown 2, a word by its length, 3..."""

    vocab_size: int = 40
    pad_id: int = 0
    eos_id: int = 1
    unk_id: int = 2
    sha256: str = "words"
    extra_ids: int = 10

    def sentinel_id(self, number: int) -> int:
        return self.vocab_size - 1 - number

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[min(len(word) + 2, 39) for word in text.split()] for text in texts]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def task(files: str = "data.jsonl", limit: int | None = None, **options) -> Task:
    return Task(source=JsonLines(files=[files]), preprocess=TextToText(**options), limit=limit)


def prepared(folder: Path, texts: list[tuple[int, int]], cache: str = "cache", workers: int = 1, **options) -> Store:
    """Examples of so many words of inputs and of targets, as a store of S = 12 and T = 6."""
    made = [
        {"a": " ".join(["x" * (n % 30 + 1)] * one), "b": " ".join(["y"] * two)} for n, (one, two) in enumerate(texts)
    ]
    write(folder / "data.jsonl", made)
    options = {"inputs": "{a}", "targets": "{b}", "sequence_length": 12, "target_length": 6} | options
    return prepare.prepare(
        task(**options), "demo", Words(), seed=0, base=folder, cache=folder / cache, workers=workers
    )  # fmt: skip


def everything(store: Store) -> np.ndarray:
    return store.rows(np.arange(len(store)))


def test_a_row_by_hand(tmp_path: Path):
    store = prepared(tmp_path, [(3, 2), (40, 40), (0, 0)])
    rows = everything(store)
    assert rows.dtype.names == (
        "input_ids", "segment_ids", "positions", "target_ids", "target_segment_ids", "target_positions",
        "target_weights",
    )  # fmt: skip
    assert [rows.dtype[name].base for name in rows.dtype.names] == [np.int32] * 6 + [np.float32]
    assert rows["input_ids"].tolist() == [[3, 3, 3, 1] + [0] * 8, [4] * 11 + [1], [1] + [0] * 11]
    assert rows["segment_ids"].tolist() == [[1] * 4 + [0] * 8, [1] * 12, [1] + [0] * 11]
    assert rows["positions"].tolist() == [[0, 1, 2, 3] + [0] * 8, list(range(12)), [0] * 12]
    assert rows["target_ids"].tolist() == [[3, 3, 1, 0, 0, 0], [3, 3, 3, 3, 3, 1], [1, 0, 0, 0, 0, 0]]
    assert rows["target_positions"].tolist() == [[0, 1, 2, 0, 0, 0], [0, 1, 2, 3, 4, 5], [0] * 6]
    assert (rows["target_segment_ids"] == rows["target_weights"]).all()
    assert rows["target_weights"].sum(axis=1).tolist() == [3, 6, 1]
    meta = store.meta
    assert (meta["examples"], meta["rows"], meta["tokens_in_rows"]) == (3, 3, 17 + 10)
    assert meta["density"] == 27 / (3 * 18) and meta["target_length"] == 6


def test_texts_cut_and_unknown_are_counted_and_said_again_of_a_cached_store(tmp_path: Path):
    """Rows of 12 and 6: an end and 11 or 5 words. The counts are the same packed, by workers and in every part."""
    texts = [(3, 2), (40, 40), (0, 0), (11, 5), (12, 6)]
    write(tmp_path / "data.jsonl", [{"a": " ".join("x" * one), "b": " ".join("y" * two)} for one, two in texts])
    counts = {
        "inputs": {"texts": 5, "cut": 2, "tokens": 66, "tokens_cut": 30, "unknown": 0},
        "targets": {"texts": 5, "cut": 2, "tokens": 53, "tokens_cut": 36, "unknown": 53},
    }

    class Unknown(Words):  # 'y' has no piece
        def encode_batch(self, texts):
            return [[2 if word == "y" else 3 for word in text.split()] for text in texts]

    for pack in (False, True, True):
        lines: list[str] = []
        options = {"inputs": "{a}", "targets": "{b}", "sequence_length": 12, "target_length": 6, "pack": pack}
        store = prepare.prepare(
            task(**options), "demo", Unknown(), seed=0, base=tmp_path, cache=tmp_path / "cache", workers=1,
            report=lines.append,
        )  # fmt: skip
        assert store.meta["text_counts"] == counts | {"records": {"texts": 5, "left_out": 0}}
        assert [line for line in lines if " cut (" in line or "unknown" in line] == [
            "demo: 2 of 5 inputs cut (45.5% of their tokens lost); raise sequence_length (now 12) to keep them",
            "demo: 2 of 5 targets cut (67.9% of their tokens lost); raise target_length (now 6) to keep them",
            "demo: unknown pieces in the targets: 53 (100.0%); the tokenizer has none for their characters, take one "
            "that was trained on such text",
        ]


def test_counts_add_up_over_shards_and_texts_of_older_stores_are_not_counted():
    one = {"inputs": text_counts.count([[3, 2, 2], [4]], 2, unk_id=2)}
    assert one == {"inputs": {"texts": 2, "cut": 1, "tokens": 4, "tokens_cut": 1, "unknown": 2}}
    both = text_counts.merge_counts(
        text_counts.merge_counts({}, one), one | {"targets": text_counts.count([[5]], None, 2)}
    )
    assert both["inputs"] == {name: 2 * number for name, number in one["inputs"].items()}
    assert both["targets"] == {"texts": 1, "cut": 0, "tokens": 1, "tokens_cut": 0, "unknown": 0}
    assert (
        text_counts.report_lines("demo", None, None)
        == text_counts.report_lines("demo", {"targets": both["targets"]}, None)
        == []
    )
    rare = {"texts": dict(texts=1, cut=0, tokens=10_000, tokens_cut=0, unknown=1)}
    assert "unknown pieces in the texts: 1 (less than 0.1%)" in text_counts.report_lines("demo", rare, None)[0]


def split(rows: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """The examples of packed rows, with everything about each segment checked."""
    found = []
    for row in rows:
        count = row["segment_ids"].max()
        assert count == row["target_segment_ids"].max() >= 1
        for number in range(1, count + 1):
            sides = []
            for ids, segments, positions in (
                ("input_ids", "segment_ids", "positions"),
                ("target_ids", "target_segment_ids", "target_positions"),
            ):
                where = np.flatnonzero(row[segments] == number)
                assert (np.diff(where) == 1).all() and (row[positions][where] == np.arange(len(where))).all()
                assert row[ids][where[-1]] == 1
                sides.append(row[ids][where].tolist())
            found.append(tuple(sides))
        for segments, names in (
            ("segment_ids", ("input_ids", "positions")),
            ("target_segment_ids", ("target_ids", "target_positions", "target_weights")),
        ):
            real = row[segments] > 0
            assert (np.diff(real.astype(int)) <= 0).all() and not any(row[name][~real].any() for name in names)
        assert (row["target_weights"] == (row["target_segment_ids"] > 0)).all()
    return found


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 14), st.integers(0, 7)), min_size=1, max_size=40), st.integers(1, 5), st.data()
)
def test_packing_loses_and_repeats_nothing(tmp_path_factory, texts, segments, data):
    folder = tmp_path_factory.mktemp("packed")
    plain = prepared(folder, texts, "plain")
    packed = prepared(folder, texts, "packed", pack=True, max_segments=segments)
    rows = everything(packed)
    assert packed.dtype == plain.dtype and rows["segment_ids"].max() <= segments
    assert sorted(split(rows)) == sorted(split(everything(plain)))
    assert packed.meta["examples"] == len(texts) and packed.meta["rows"] == len(packed)


@pytest.mark.slow
def test_the_same_for_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "MIN_SHARD_TOKENS": 60,
        "MAX_SHARD_TOKENS": 60,
        "MIN_POOL_TOKENS": 0,
        "EXAMPLES_PER_JOB": 7,
    }.items():
        monkeypatch.setattr(job_plan, name, value)
    monkeypatch.setattr(job_plan, "MIN_POOL_EXAMPLES", 10)
    texts = [(n % 11, n % 5) for n in range(40)]
    stores = [prepared(tmp_path, texts, f"cache{n}", workers=n, pack=True) for n in (1, 2)]
    contents = [{p.name: p.read_bytes() for p in sorted(store.folder.iterdir())} for store in stores]
    assert contents[0] == contents[1] and len(contents[0]) > 3


def test_batches(tmp_path: Path):
    write(tmp_path / "data.jsonl", [{"a": "x " * n, "b": "y"} for n in range(5)])
    options = {"inputs": "{a}", "targets": "{b}", "sequence_length": 12, "target_length": 6}
    batches = open_task(
        task(**options), "demo", Words(), batch_size=4, seed=0, base=tmp_path, cache=tmp_path / "cache"
    )  # fmt: skip
    assert {name: shape for name, (shape, _) in batches.fields.items()} == {
        "input_ids": (12,), "segment_ids": (12,), "positions": (12,), "target_ids": (6,), "target_segment_ids": (6,),
        "target_positions": (6,), "target_weights": (6,),
    }  # fmt: skip
    last = batches.epoch_batch(1)
    assert last["target_weights"].sum() == 2 and not last["input_ids"][1:].any()


def test_rows_agree_with_those_of_span_corruption(tmp_path: Path):
    """The reference mixes both in one batch, packed or not (arXiv 1910.10683 section 3.5)."""
    write(tmp_path / "data.jsonl", [{"a": "x " * (n % 9), "b": "y", "text": "a bb ccc " * 9} for n in range(30)])
    options = {"inputs": "{a}", "targets": "{b}", "sequence_length": 32, "target_length": 12}
    corrupted = SpanCorruption(sequence_length=32, target_length=12)
    tasks = {
        "text": Task(source=JsonLines(files=["data.jsonl"]), preprocess=corrupted),
        "single": task(**options),
        "packed": task(**options, pack=True),
    }
    data = {}
    for name, one in tasks.items():
        store = prepare.prepare(one, name, Words(), seed=0, base=tmp_path, cache=tmp_path / "cache", workers=1)
        data[name] = make_task_data(one, store, Words(), 0)
    batches = Batches(data, dict.fromkeys(data, 1 / 3), 12)
    batch = batches.batch(0)
    assert set(batch["task_ids"].tolist()) == {0, 1, 2}
    assert batch["input_ids"].shape == (12, 32) and batch["target_weights"].shape == (12, 12)
    rows = np.zeros(12, [(name, batch[name].dtype, batch[name].shape[1:]) for name in data["packed"].fields])
    for name in rows.dtype.names:
        rows[name] = batch[name]
    assert len(split(rows)) > 12


def test_nothing_to_train_on(tmp_path: Path):
    wsc = {"text": "Mitchell asked Tom if he could lend.", "span1_text": "Tom", "span2_text": "he", "span2_index": 4}
    write(tmp_path / "data.jsonl", [wsc | {"label": 0}])
    wrong = task(prompt="super_glue_wsc")
    with pytest.raises(UserError, match="gives no example;"):
        prepare.prepare(wrong, "t", Words(), seed=0, base=tmp_path, cache=tmp_path / "cache", workers=1)
