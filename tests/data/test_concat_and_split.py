"""From documents to chunks of text, to a store, to rows: nothing is lost, and pools of documents stay together."""

import json
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.config.schema.data import CausalLm, PrefixLm, SpanCorruption, Task
from bertjax.config.schema.sources import JsonLines, TextFiles
from bertjax.data.jobs import job_plan
from bertjax.data.pipeline.loader import open_task
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.preprocess.denoising import concat_and_split
from bertjax.data.preprocess.denoising.concat_and_split import ChunkUnit, chunk_units, split_long_text
from bertjax.data.sources.text import read_texts
from bertjax.data.store.reader import Store
from bertjax.data.tokenizers.sentencepiece import train
from bertjax.errors import UserError

EOS = 1
DOCUMENTS = 300


class Words:
    """A tokenizer that gives each word an id of its own: words are numbers."""

    def __init__(self) -> None:
        self.vocab_size, self.extra_ids, self.eos_id, self.pad_id, self.sha256 = 60_000, 100, EOS, 0, "words"
        self.unk_id = 2

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def sentinel_id(self, number: int) -> int:
        return self.vocab_size - 1 - number


def write_documents(folder: Path, count: int = DOCUMENTS) -> list[list[int]]:
    """Documents of 1 to 90 words on several lines, numbered 3, 4, 5... throughout."""
    rng = np.random.default_rng(8)
    numbers = iter(range(3, 50_000))
    documents = [[next(numbers) for _ in range(rng.integers(1, 90))] for _ in range(count)]
    lines = (
        "\n".join(" ".join(map(str, words[at : at + 11])) for at in range(0, len(words), 11)) for words in documents
    )
    (folder / "text.txt").write_text("\n\n".join(lines) + "\n")
    return documents


def task_of(preprocess: Any, **options: Any) -> Task:
    return Task(source=TextFiles(files=["text.txt"], layout="sentences"), preprocess=preprocess, **options)


def prepared(task: Task, base: Path, cache: str = "cache", **options: Any) -> Store:
    options = {"workers": 1, "seed": 5} | options
    return prepare(task, "c4", Words(), base=base, cache=base / cache, **options)  # type: ignore[arg-type]


def texts_of(store: Store) -> list[list[int]]:
    rows = store.rows(np.arange(len(store)))
    assert all(not row["tokens"][row["length"][0] :].any() for row in rows)
    return [row["tokens"][: row["length"][0]].tolist() for row in rows]


def test_documents_are_joined_in_pools_and_cut(tmp_path: Path):
    documents = write_documents(tmp_path)
    store = prepared(task_of(SpanCorruption(sequence_length=64)), tmp_path)
    found = texts_of(store)
    assert store.dtype["tokens"].shape == (70,)  # 64 -> 70: preprocessors.py, random_spans_helper
    assert sum(len(text) < 70 for text in found) <= 3  # 300 documents are three pools of 128
    joined = [token for text in found for token in text]
    order = [n for n, words in sorted(enumerate(documents), key=lambda pair: joined.index(pair[1][0]))]
    assert joined == [token for n in order for token in documents[n]]
    assert order != sorted(order)
    ends = np.cumsum([len(documents[n]) for n in order])[127:255:128]
    starts = np.cumsum([0] + [len(text) for text in found])
    assert set(ends) <= set(starts)  # a pool begins a row
    meta = store.meta
    assert meta["tokens"] == meta["tokens_in_rows"] == len(joined) and meta["documents"] == DOCUMENTS
    assert meta["density"] == pytest.approx(len(joined) / (70 * len(found))) and meta["rows"] == len(found)


def test_a_prefix_language_model_sees_one_document_a_row(tmp_path: Path):
    documents = write_documents(tmp_path)
    found = texts_of(prepared(task_of(PrefixLm(sequence_length=33)), tmp_path))
    expected = [words[at : at + 32] for words in documents for at in range(0, len(words), 32)]
    assert sorted(found) == sorted(expected)


def test_a_language_model_has_ends_between_documents(tmp_path: Path):
    documents = write_documents(tmp_path)
    found = texts_of(prepared(task_of(CausalLm(sequence_length=40)), tmp_path))
    joined = [token for text in found for token in text]
    cut = np.split(joined, np.flatnonzero(np.array(joined) == EOS) + 1)[:-1]
    assert sorted(part.tolist() for part in cut) == sorted([*words, EOS] for words in documents)


def test_the_seed_orders_the_documents(tmp_path: Path):
    write_documents(tmp_path)
    task = task_of(SpanCorruption(sequence_length=64))
    first, again, other = (
        texts_of(prepared(task, tmp_path, cache, seed=seed)) for cache, seed in (("a", 5), ("b", 5), ("a", 6))
    )
    assert first == again and first != other
    assert sorted(token for text in first for token in text) == sorted(token for text in other for token in text)


@pytest.mark.parametrize("preprocess", [SpanCorruption(sequence_length=64), PrefixLm(sequence_length=33)])
def test_the_limit_takes_a_sample_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preprocess: Any):
    monkeypatch.setattr(concat_and_split, "shard_tokens", lambda total: 1000)
    documents = write_documents(tmp_path)
    place = {number: at for at, words in enumerate(documents) for number in words}
    before: set[int] = set()
    for limit in (1, 100, 10_000):
        store = prepared(task_of(preprocess, limit=limit), tmp_path)
        found = [number for text in texts_of(store) for number in text]
        kept = {place[number] for number in found}
        assert len(kept) == min(limit, DOCUMENTS) == store.meta["documents"] and before <= kept
        assert sorted(found) == [number for at in sorted(kept) for number in documents[at]]  # each of them whole
        before = kept
        if limit == 100:
            assert min(kept) < 60 and max(kept) > 240  # of all parts of the source


def test_worker_processes_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(concat_and_split, "shard_tokens", lambda total: 4000)
    monkeypatch.setattr(job_plan, "MIN_POOL_TOKENS", 0)
    write_documents(tmp_path)
    task = task_of(SpanCorruption(sequence_length=64))
    stores = [prepared(task, tmp_path, cache, workers=workers) for cache, workers in (("a", 1), ("b", 2))]
    assert len(stores[0].shards) > 1
    one, two = ([zlib.crc32(p.read_bytes()) for p in sorted(s.folder.glob("rows*"))] for s in stores)
    assert one == two


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 60), st.integers(1, 900))
def test_units_cover_the_pools(pools: list[int], length: int, unit_tokens: int):
    units = list(chunk_units(np.array(pools), length, unit_tokens))
    assert sum(unit.rows for unit in units) == sum(-(-tokens // length) for tokens in pools)
    assert units[0].first == 0 and all(a.last == b.first for a, b in zip(units, units[1:], strict=False))
    assert units[-1].last == len(pools)
    assert all(unit.rows > 0 and unit.last > unit.first for unit in units)
    for unit in units[:-1]:  # the one that goes over the size is the last in it
        assert sum(pools[unit.first : unit.last - 1]) < unit_tokens


def test_a_pool_is_one_unit_however_long():
    assert list(chunk_units(np.array([10**6]), 10, 100)) == [ChunkUnit(0, 1, 10**5)]


@given(st.text(alphabet="ab \n", max_size=60))
def test_pieces_are_cut_at_white_space(text: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concat_and_split, "MAX_PIECE_CHARACTERS", 5)
        found = split_long_text(text)
    assert " ".join(found).split() == text.split() and len(" ".join(found)) == len(text)
    assert all(len(piece) >= 5 for piece in found[:-1])


def test_pieces_have_the_ids_of_the_whole_text(monkeypatch: pytest.MonkeyPatch):
    words = "the cat sat on a mat while dogs ran round it; then rain came, and all went home".split()
    rng = np.random.default_rng(9)
    text = "".join(words[n] + [" ", "  ", "\n", "\n\n"][m] for n, m in rng.integers([len(words), 4], size=(900, 2)))
    tokenizer = train(lambda: iter([[text]]), vocab_size=160, extra_ids=100, character_coverage=1.0)
    whole = tokenizer.encode_batch([text])[0]
    monkeypatch.setattr(concat_and_split, "MAX_PIECE_CHARACTERS", 50)
    monkeypatch.setattr(concat_and_split, "ENCODE_BATCH_CHARACTERS", 300)
    found = list(concat_and_split.tokenize_texts(iter(["", text, " ", text]), tokenizer))  # type: ignore[arg-type]
    assert len(found) == 2 and len(found[0]) > 50
    assert [[token for piece in document for token in piece] for document in found] == [whole, whole]


@pytest.mark.parametrize("decoder_only", [False, True])
def test_rows_come_out_of_the_loader(tmp_path: Path, decoder_only: bool):
    documents = write_documents(tmp_path)
    task = task_of(SpanCorruption(sequence_length=64, target_length=20))
    batches = open_task(
        task, "c4", Words(), batch_size=16, seed=5, base=tmp_path, cache=tmp_path / "cache",  # type: ignore[arg-type]
        decoder_only=decoder_only,
    )  # fmt: skip
    shapes = {name: (*shape, dtype.name) for name, (shape, dtype) in batches.fields.items()}
    inputs = {"input_ids": (64, "int32"), "segment_ids": (64, "int32"), "positions": (64, "int32")}
    width = 84 if decoder_only else 20
    targets = {name: (width, "int32") for name in ("target_ids", "target_segment_ids", "target_positions")}
    targets |= {"target_weights": (width, "float32")}
    assert shapes == (targets | {"prefix_mask": (84, "int32")} if decoder_only else inputs | targets)
    everything = []
    for k in range(batches.batches_per_epoch):
        batch = batches.epoch_batch(k)
        assert all(values.shape == (16, *batches.fields[name][0]) for name, values in batch.items())
        everything.append(
            np.concatenate([batch[name].ravel() for name in ("input_ids", "target_ids") if name in batch])
        )
    words = np.concatenate(everything)
    assert sorted(words[(words > EOS) & (words < 59_900)]) == [token for document in documents for token in document]
    again = batches.batch(3, slice(2, 5))
    for name, values in batches.batch(3).items():
        np.testing.assert_array_equal(values[2:5], again[name])


def test_what_cannot_be_is_said_and_leaves_nothing(tmp_path: Path):
    write_documents(tmp_path)
    with pytest.raises(UserError, match="needs 114 sentinels and the tokenizer has 100"):
        prepared(task_of(SpanCorruption(sequence_length=2048)), tmp_path)
    (tmp_path / "text.txt").write_text("\n \n")
    with pytest.raises(UserError, match="holds no text"):
        prepared(task_of(SpanCorruption()), tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path):
    write_documents(tmp_path)
    bert: Any = SimpleNamespace(vocab_size=100, sha256="bert")
    with pytest.raises(UserError, match="tokenizer.kind: sentencepiece"):
        prepare(task_of(CausalLm()), "c4", bert, base=tmp_path, cache=tmp_path / "cache", workers=1, seed=0)


def test_texts_are_as_they_were_written(tmp_path: Path):
    texts = ["# Cats\n\n- One cat. Two  cats.\n- Mr. Cat", " \n", "\tThe end"]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert list(read_texts(JsonLines(files=["text.jsonl"]), tmp_path)) == [texts[0], texts[2]]
    (tmp_path / "text.txt").write_text("One.\nTwo.\n\nThree.\n")
    assert list(read_texts(task_of(CausalLm()).source[0], tmp_path)) == ["One. Two.", "Three."]
    (tmp_path / "text.jsonl").write_text('{"text": null}\n')
    with pytest.raises(UserError, match="no text at all"):
        list(read_texts(JsonLines(files=["text.jsonl"]), tmp_path))
