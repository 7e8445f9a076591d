"""Long documents are read and tokenized in pieces, with the rows that they have as one piece."""

import json
from pathlib import Path

import numpy as np
import preparing
import pytest

from bertjax.config.schema.data import BertPairs, SpanCorruption, Task
from bertjax.config.schema.sources import JsonLines, TextFiles
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.sources import pieces, text
from bertjax.data.sources.pieces import UnfinishedDocument, UnfinishedText, cut_text, is_last, split_documents
from bertjax.data.sources.text import stream_documents, stream_texts


def rows(source, options, folder: Path, cache: str) -> tuple[np.ndarray, dict]:
    tokenizer = preparing.bert() if options.kind == "bert_pairs" else preparing.Numbers()
    task = Task(source=[source], preprocess=options)
    store = prepare(task, "t", tokenizer, seed=3, base=folder, cache=folder / cache, workers=1)
    counts = {key: store.meta[key] for key in ("documents", "tokens", "text_counts", "examples")}
    return store.rows(np.arange(len(store))), counts


@pytest.mark.parametrize("options", [BertPairs(sequence_length=32), SpanCorruption(sequence_length=32)], ids=str)
def test_rows_of_a_document_in_pieces(tmp_path: Path, monkeypatch, options) -> None:
    rng = np.random.default_rng(0)
    long, short = ("\n\n".join(preparing.sentence(rng, 9) for _ in range(n)) for n in (200, 3))
    (tmp_path / "a.txt").write_text(f"{long}\n\n\n")
    (tmp_path / "b.txt").write_text(short)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in (short, long, short)))
    (tmp_path / "lines.txt").write_text(f"{short}\n\n" + long.replace("\n\n", "\n"))
    sources = [
        TextFiles(files=["a.txt", "b.txt"]), JsonLines(files=["a.jsonl"]),
        TextFiles(files=["lines.txt"], layout="sentences"),
    ]  # fmt: skip
    expected = [rows(source, options, tmp_path, "one") for source in sources]
    for module in (pieces, text):
        monkeypatch.setattr(module, "MAX_CHARACTERS", 700)
    for source, (wanted, counts) in zip(sources, expected, strict=True):
        found = list(stream_documents(source, tmp_path))
        assert sum(isinstance(one, UnfinishedDocument) for one in found) > 5
        assert max(len(piece) for piece in stream_texts(source, tmp_path)) < 900
        again, same = rows(source, options, tmp_path, "pieces")
        assert same == counts and np.array_equal(again, wanted)


def test_documents_without_text_are_counted(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "a.txt").write_text("ban kolo .")
    (tmp_path / "a.jsonl").write_text('{"text": "ban kolo ."}\n{"text": ""}\n{"text": null}\n{"text": "\\u200b"}\n')
    for options in (BertPairs(sequence_length=32), SpanCorruption(sequence_length=32)):
        tokenizer = preparing.bert() if options.kind == "bert_pairs" else preparing.Numbers()
        sources = [TextFiles(files=["blank.txt", "a.txt"]), JsonLines(files=["a.jsonl"])]
        said: list[str] = []
        task = Task(source=sources, preprocess=options)
        prepare(task, "t", tokenizer, seed=3, base=tmp_path, cache=tmp_path / "c", workers=1, report=said.append)
        assert "t: 4 of 6 documents left out: they hold no text, or no token" in said


def test_pieces_join_to_the_text_and_end_where_sentences_do(monkeypatch) -> None:
    monkeypatch.setattr(pieces, "MAX_CHARACTERS", 40)
    for whole in ("One two three. " * 20, "x" * 100, "a\n\nb " * 30, "short", "y" * 39 + "\n" * 60 + "z"):
        found = list(cut_text([whole[:7], whole[7:50], whole[50:]]))
        assert "".join(found).split() == whole.split() and all(len(piece) <= 40 for piece in found)
        assert [is_last(piece) for piece in found] == [False] * (len(found) - 1) + [True]
    assert list(cut_text([" \n" * 50])) == [""]
    small = "no capitals here. nor here. " * 3  # the first piece decides for all
    parts = [UnfinishedText(small), UnfinishedText("- "), "and here. or here."]
    assert list(split_documents(parts)) == [["no capitals here.", "nor here."] * 3, ["and here.", "or here."]]
    assert not is_last(next(split_documents(parts)))
