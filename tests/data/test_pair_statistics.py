"""What is said about sentence pairs, and sentences longer than a row, against counts made by hand."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.config.schema.data import BertPairs, Task
from bertjax.config.schema.sources import JsonLines, TextFiles
from bertjax.data.jobs.tokenize import split_long_sentences
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.store.reader import Store
from bertjax.data.tokenizers.load import from_file

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the dog cat sleeps runs near far river . ##s".split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    return from_file(path)


def prepared(task: Task, tokenizer, base: Path) -> tuple[Store, list[str]]:
    said: list[str] = []
    store = prepare(task, "t", tokenizer, seed=0, base=base, cache=base / "c", workers=1, report=said.append)
    again: list[str] = []
    prepare(task, "t", tokenizer, seed=0, base=base, cache=base / "c", workers=1, report=again.append)
    assert again and again == said[-len(again) - 1 : -1]  # what is known about the data is said when it is used again
    return store, said


def records(base: Path, texts: list[str]) -> JsonLines:
    (base / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return JsonLines(files=["a.jsonl"])


# ---- long sentences -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 90), max_size=6), st.integers(5, 40), st.data())
def test_long_sentences_become_pieces_and_lose_nothing(lengths: list[int], longest: int, data: st.DataObject) -> None:
    continues = np.array([False, True])
    sentences = [data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for n in lengths]
    found, cut = split_long_sentences(sentences, longest, continues)
    assert list(chain.from_iterable(found)) == list(chain.from_iterable(sentences))
    assert cut == sum(n > longest for n in lengths) and all(0 < len(piece) <= longest for piece in found)
    assert [s for s in sentences if len(s) <= longest] == [s for s in sentences if s in found and len(s) <= longest]


def test_two_pieces_fill_a_row_and_begin_with_words() -> None:
    continues = np.array([False, True])
    pieces, cut = split_long_sentences([[0] * 300], 125, continues)
    assert [len(piece) for piece in pieces] == [63, 62, 63, 62, 50] and cut == 1
    pieces, _ = split_long_sentences([[0] * 63 + [1, 1] + [0] * 100], 125, continues)
    assert [len(piece) for piece in pieces] == [65, 62, 38]


def test_a_text_without_any_mark_is_used_and_its_labels_are_even(tmp_path: Path, tokenizer) -> None:
    """As one sentence a document it would keep 4 % of its tokens, and every B would be random."""
    source = records(tmp_path, ["the dog runs near the river " * 60] * 20)
    store, said = prepared(Task(source=source, preprocess=BertPairs(sequence_length=32)), tokenizer, tmp_path)
    pairs = store.meta["pairs"]
    assert pairs["tokens_used"] > 0.9 and pairs["random_share"] < 0.6
    assert store.meta["sentences_cut"] == 20
    assert any("sentences of more than 29 tokens, cut into pieces: 20" in line for line in said)
    assert not any("warning" in line for line in said)


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_rows(tmp_path: Path, tokenizer) -> None:
    texts = ["The dog sleeps near the river. The cat runs far. " * (n + 1) for n in range(12)]
    options = BertPairs(sequence_length=32, dupe_factor=2, max_predictions_per_seq=3)
    store, said = prepared(Task(source=records(tmp_path, texts), preprocess=options), tokenizer, tmp_path)
    own = random = wanted = capped = 0
    rows = store.rows(range(len(store)))
    for row in rows:
        length = int((row["segment_ids"] > 0).sum())
        second = int((row["token_type_ids"] == 1).sum())
        own += length - second - 2 + (0 if row["nsp_labels"][0] else second - 1)
        random += int(row["nsp_labels"][0])
        wanted += max(1, round(length * 0.15))
        capped += round(length * 0.15) > 3
    pairs = store.meta["pairs"]
    assert store.meta["tokens"] == 12 * sum(range(1, 13)) and store.meta["documents"] == 12
    assert pairs["sentences_per_document"] == 2 * sum(range(1, 13)) / 12
    assert pairs["tokens_used"] == pytest.approx(own / (2 * store.meta["tokens"]))
    assert pairs["random_share"] == pytest.approx(random / len(rows))
    assert pairs["masks_wanted"] == pytest.approx(wanted / len(rows))
    assert pairs["pairs_capped"] == pytest.approx(capped / len(rows))
    line = next(line for line in said if line.startswith("t: 12 documents, 13.0 sentences each, "))
    assert f"{own / (2 * store.meta['tokens']):.1%} of the tokens used" in line
    assert f"{random / len(rows):.1%} of the pairs random" in line


def test_packing_and_no_nsp_count_the_same_tokens(tmp_path: Path, tokenizer) -> None:
    source = records(tmp_path, ["The dog sleeps near the river. The cat runs far. " * 9] * 5)
    for options in (BertPairs(sequence_length=32, next_sentence=False), BertPairs(sequence_length=32, pack=True)):
        store, said = prepared(Task(source=source, preprocess=options), tokenizer, tmp_path)
        used, random = store.meta["pairs"]["tokens_used"], store.meta["pairs"]["random_share"]
        assert used == 1.0 if not options.next_sentence else 0.7 < used <= 1.0
        assert (random is None) == (not options.next_sentence)
    limited, _ = prepared(Task(source=source, preprocess=BertPairs(sequence_length=32), limit=3), tokenizer, tmp_path)
    assert limited.meta["documents"] == 3 and 0.7 < limited.meta["pairs"]["tokens_used"] <= 1.0


# ---- warnings -------------------------------------------------------------------------------------------------------


def warnings(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("warning: t: ")]


def test_documents_of_one_sentence_are_warned_about(tmp_path: Path, tokenizer) -> None:
    texts = ["the dog runs " * 9] * 30
    task = Task(source=records(tmp_path, texts), preprocess=BertPairs(sequence_length=32))
    found = warnings(prepared(task, tokenizer, tmp_path)[1])
    assert len(found) == 2
    assert "100.0% of the pairs have a random B" in found[0] and "next_sentence: false" in found[0]
    assert "of the tokens are used: sentences of 27 tokens are cut at 32" in found[1]


def test_too_few_masks_are_warned_about(tmp_path: Path, tokenizer) -> None:
    texts = ["The dog sleeps near the river. The cat runs far. " * 9] * 5
    options = BertPairs(sequence_length=32, max_predictions_per_seq=2)
    (found,) = warnings(prepared(Task(source=records(tmp_path, texts), preprocess=options), tokenizer, tmp_path)[1])
    assert "max_predictions_per_seq=2 leaves 2.0 of " in found and found.endswith("set max_predictions_per_seq=5")


def test_a_file_that_blank_lines_divide_is_warned_about(tmp_path: Path, tokenizer) -> None:
    article = "The dog sleeps near the river.\nThe cat runs far.\n"
    (tmp_path / "a.txt").write_text("\n".join([article] * 600))
    task = lambda layout: Task(source=TextFiles(files=["a.txt"], layout=layout))  # noqa: E731
    found = warnings(prepared(task("documents"), tokenizer, tmp_path)[1])
    assert "1 file became one document each of more than 1,000 sentences, the longest of 1,200" in found[0]
    assert "blank lines divide a.txt into 600 blocks" in found[0] and "set layout: paragraphs" in found[0]
    assert "the text is one document" in found[1] and "layout" in found[1]
    for layout in ("paragraphs", "sentences"):
        store, _ = prepared(task(layout), tokenizer, tmp_path)
        assert store.meta["documents"] == 600 and store.meta["sentences"] == 1200
