"""Records of chance, and valid ones with a field changed by chance, through every kind of preprocessing.

Either they are read, or one line says which record is wrong. JSON can spell what no text can hold (half of a surrogate
pair) and what is no number (NaN, 1e400).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertjax.config.schema.data import BertPairs, Classify, SpanCorruption, SpanQa, Task, TextToText
from bertjax.config.schema.sources import HuggingFaceData, Json, JsonLines, Parquet, SquadFiles, Tsv
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.sources.record_files import csv_rows, to_python, tsv_rows
from bertjax.data.sources.records import read_located
from bertjax.data.tokenizers.load import Tokenizer, from_file
from bertjax.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class Words:
    """As the contract of tokenizers has it: pad 0, EOS 1, unknown 2, a word by its length, 3..."""

    vocab_size, pad_id, eos_id, unk_id, extra_ids, sha256 = 40, 0, 1, 2, 10, "words"

    def sentinel_id(self, number: int) -> int:
        return self.vocab_size - 1 - number

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        for text in texts:
            text.encode()  # the real tokenizers refuse lone surrogates
        return [[min(len(word) + 2, 29) for word in text.split()] for text in texts]


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "."]) + "\n")
    return from_file(path)


# ---- values of chance -----------------------------------------------------------------------------------------------

LONG = "@long@"  # stands for a number of more digits than Python converts
characters = st.text(st.characters(exclude_categories=()), max_size=6)
texts = st.one_of(
    characters, st.sampled_from(["", " ", "\x00", "\ud83d", "a\nb", "null", "NaN", "True", "0", "3.5", LONG])
)
numbers = st.one_of(
    st.integers(-3, 5), st.sampled_from([10**30, -(10**30), 10**400, 2**31, 2**63]), st.floats(width=32),
)  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(characters, inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to everything inside of a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in ((*path, key), *places(item, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, record: dict) -> Any:
    """The record with a value replaced, a field left out or a field more; or something else altogether."""
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "other"]))
    if how == "other":
        return draw(st.one_of(st.dictionaries(characters, values, max_size=3), values))
    record = json.loads(json.dumps(record))
    if how == "add":
        return record | {draw(st.one_of(characters, st.sampled_from(["id", "idx", "title", "label"]))): draw(values)}
    *path, last = draw(st.sampled_from(places(record)))
    inside = record
    for key in path:
        inside = inside[key]
    if how == "remove":
        del inside[last]
    else:
        inside[last] = draw(values)
    return record


def spelt(record: Any) -> str:
    return json.dumps(record).replace(f'"{LONG}"', "1" * 5000)


# ---- kinds ----------------------------------------------------------------------------------------------------------

QUESTION = {"id": "q1", "title": "t", "question": "who sleeps", "context": "two cats sleep", "is_impossible": False}
PAIRS = {"sentence1": "a cat sleeps", "sentence2": "it sleeps", "label": 1, "idx": 3}
MULTIRC = {
    "idx": 0,
    "passage": {"text": "a cat.", "questions": [
        {"question": "who?", "idx": 0, "answers": [{"text": "a cat", "idx": 0, "label": 1}]}]},
}  # fmt: skip
RECORD = {
    "idx": 0, "passage": {"text": "a cat sleeps", "entities": [{"start": 2, "end": 4}]},
    "qas": [{"query": "@placeholder sleeps", "idx": 0, "answers": [{"start": 2, "end": 4, "text": "cat"}]}],
}  # fmt: skip
SPANS = {"span1_text": "a cat", "span2_text": "it", "span2_index": 3}
WSC = {"text": "a cat said it sleeps", "target": SPANS, "label": 1}
COPA = {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 0}
LISTS = {"text": ["cats"], "answer_start": [4]}


def prompt(name: str, **options: Any) -> TextToText:
    return TextToText(prompt=name, sequence_length=16, target_length=8, **options)


KINDS: dict[str, tuple[Any, dict]] = {
    "pairs": (BertPairs(sequence_length=16), {"text": "two cats sleep. a dog runs.", "id": 1}),
    "spans": (SpanCorruption(sequence_length=16), {"text": "two cats sleep. a dog runs.", "id": 1}),
    "questions": (SpanQa(sequence_length=32, max_query_length=8, doc_stride=8), QUESTION | {"answers": LISTS}),
    "question objects": (
        SpanQa(sequence_length=32, max_query_length=8, doc_stride=8),
        QUESTION | {"answers": [{"text": "cats", "answer_start": 4}]},
    ),
    "one answer": (
        SpanQa(sequence_length=32, max_query_length=8, doc_stride=8),
        QUESTION | {"answers": {"text": "cats", "answer_start": 4}},
    ),
    "classes": (Classify(sequence_length=16, text_b="more"), {"text": "a cat", "more": "a dog", "label": "x"}),
    "template": (
        TextToText(inputs="{q} {a/b}", targets="{t}", sequence_length=16, target_length=8),
        {"q": "who", "a": {"b": ["x", "y"]}, "t": ["cat", "dog"], "id": 4},
    ),
    "labels": (
        TextToText(inputs="{q}", targets="{t}", labels=["no", "yes"], sequence_length=16, target_length=8),
        {"q": "who", "t": 1, "id": "x"},
    ),
    "mrpc": (prompt("glue_mrpc"), PAIRS),
    "stsb": (prompt("glue_stsb"), PAIRS | {"label": 3.2}),
    "wnli": (prompt("glue_wnli"), {"sentence1": "the cat said it sleeps", "sentence2": "the cat sleeps", "label": 1}),
    "multirc": (prompt("super_glue_multirc"), MULTIRC),
    "record": (prompt("super_glue_record"), RECORD),
    "wsc": (prompt("super_glue_wsc"), WSC),
    "copa": (prompt("super_glue_copa"), COPA),
    "pronouns": (
        prompt("definite_pronoun_resolution"),
        {"sentence": "a cat said it sleeps", "pronoun": "it", "candidates": ["a cat", "a dog"], "label": 0},
    ),
    "squad": (prompt("squad"), QUESTION | {"answers": LISTS}),
    "trivia": (prompt("trivia_qa_closed_book"), {"question": "q", "answer": {"value": "a", "aliases": ["a", "b"]}}),
    "translation": (
        prompt("translate", languages=["en", "de"]), {"translation": {"en": "a cat", "de": "eine Katze"}},
    ),
    "summaries": (prompt("summarize"), {"document": ["a cat.", "it sleeps."], "summary": ["a cat sleeps"]}),
}  # fmt: skip


def accepted_or_named(read: Callable[[], Any], *says: str) -> None:
    try:
        read()
    except UserError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 500, message
        message.encode("utf-8", "backslashreplace")
        assert any(word in message for word in says), message


def check(kind: str, source_kind: str, record: Any, folder: Path, wordpiece: Tokenizer) -> None:
    options, valid = KINDS[kind]
    tokenizer: Any = wordpiece if options.kind in ("bert_pairs", "span_qa", "classify") else Words()
    if source_kind == "jsonl":
        (folder / "data.jsonl").write_text(f"{spelt(valid)}\n\n{spelt(record)}\n")
        source, place = JsonLines(files=["data.jsonl"]), "data.jsonl: line 3"
    else:
        (folder / "data.json").write_text(f"[{spelt(valid)},\n {spelt(record)}]")
        source, place = Json(files=["data.json"]), "data.json: "
    read = lambda: prepare(  # noqa: E731
        Task(source=source, preprocess=options), "t", tokenizer, seed=0, base=folder, cache=folder / "c", workers=1
    )
    whole = ("task 't'",) if options.kind == "classify" else ()  # what only all labels together show
    accepted_or_named(read, place, *whole)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_changed_was_right(kind: str, tmp_path: Path, wordpiece) -> None:
    options, valid = KINDS[kind]
    (tmp_path / "a.jsonl").write_text(json.dumps(valid) + "\n")
    tokenizer: Any = wordpiece if options.kind in ("bert_pairs", "span_qa", "classify") else Words()
    task = Task(source=JsonLines(files=["a.jsonl"]), preprocess=options)
    assert len(prepare(task, "t", tokenizer, seed=0, base=tmp_path, cache=tmp_path / "c", workers=1)) >= 1


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_field_of_every_kind(kind: str, data: st.DataObject, tmp_path_factory, wordpiece) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    check(kind, data.draw(st.sampled_from(["jsonl", "json"])), data.draw(changed(KINDS[kind][1])), folder, wordpiece)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_field_of_every_kind_at_length(kind: str, data: st.DataObject, tmp_path_factory, wordpiece) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    check(kind, data.draw(st.sampled_from(["jsonl", "json"])), data.draw(changed(KINDS[kind][1])), folder, wordpiece)


OFFICIAL = {"version": "2.0", "data": [{"title": "t", "paragraphs": [
    {"context": "two cats sleep", "qas": [
        {"id": "q1", "question": "who", "answers": [{"text": "cats", "answer_start": 4}], "is_impossible": False}]}]},
]}  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=changed(OFFICIAL))
def test_every_field_of_squad_files(content: Any, tmp_path_factory, wordpiece) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "train.json").write_text(spelt(content))
    options = SpanQa(sequence_length=32, max_query_length=8, doc_stride=8)
    task = Task(source=SquadFiles(files=["train.json"]), preprocess=options)
    read = lambda: prepare(task, "t", wordpiece, seed=0, base=folder, cache=folder / "c", workers=1)  # noqa: E731
    accepted_or_named(read, "train.json", "task 't'")


# ---- tables ---------------------------------------------------------------------------------------------------------

cells = st.text(st.sampled_from("a\"'\t,\r\u2028 é0"), max_size=5)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=4))
def test_csv_is_what_the_standard_library_wrote(rows: list[list[str]], tmp_path_factory) -> None:
    import csv

    path = tmp_path_factory.mktemp("table") / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["x", "y"], *rows])
    found = [list(record.values()) for _, record in csv_rows(path)]
    # a line end inside of a cell is one newline; rows of white space alone are no records
    wanted = [[cell.replace("\r", "") if cell.endswith("\r") else cell for cell in row] for row in rows]
    assert [["".join(c.split()) for c in row] for row in found] == [
        ["".join(c.split()) for c in row] for row in wanted if any(map(str.strip, row))
    ]


WORDS = ["null", "NA", "None", "nan", "007", "1e5", "True", '"x']
CSV = "text,label\n" + "".join(f'"{word.replace(chr(34), chr(34) * 2)}",1\n' for word in WORDS)


def cells_of(name: str, base: Path) -> list[tuple[str, str]]:
    return [(r["text"], r["label"]) for _, r in read_located(HuggingFaceData(name=name), base)]


def test_cells_stay_texts_and_quotes_in_tsv_are_letters(tmp_path: Path) -> None:
    """pandas, through which `datasets` reads both, makes nothing of NA and null, 7 of 007, and one row of two here."""
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{word}\t1\n" for word in [*WORDS, 'y"']))
    assert cells_of("a.csv", tmp_path) == [(word, "1") for word in WORDS]
    assert cells_of("a.tsv", tmp_path) == [(word, "1") for word in [*WORDS, 'y"']]
    assert list(tsv_rows(tmp_path / "a.tsv")) == list(read_located(Tsv(files=["a.tsv"]), tmp_path))


@pytest.mark.slow  # imports `datasets`
def test_folders_of_tables_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text(CSV)
    (tmp_path / "csv" / "test.csv").write_text("text,label\nNA,0\n")
    assert cells_of("csv", tmp_path) == [(word, "1") for word in WORDS]
    found = list(read_located(HuggingFaceData(name="csv", split="test"), tmp_path))
    assert found == [(f"{tmp_path / 'csv' / 'test.csv'}: line 2", {"text": "NA", "label": "0"})]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('a,b\n1,"2\n3\n', "a.csv: line 2: not valid CSV (unexpected end of data); correct its quotes"),
        ('a,b\n1,2\n"x"y,2\n', "a.csv: line 3: not valid CSV"),
        ('a,b\n"1\n2",2\n3\n', "a.csv: line 4: 1 columns, not the 2 named (a, b)"),
        ("a,a\n1,2\n", "a.csv: line 1: two columns are called 'a'"),
        ("a,b\n1,\xff\n", "a.csv: line 2: not UTF-8"),
    ],
)
def test_broken_csv(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        list(read_located(HuggingFaceData(name="a.csv"), tmp_path))
    assert says in str(caught.value)


def test_a_parquet_file_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    bad = pa.array([b"ok", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable parquet file"):
        list(read_located(Parquet(files=["a.parquet"]), tmp_path))


def test_values_of_numpy_are_read_as_those_of_json() -> None:
    record = {"a": np.array([1, 2], np.int32), "b": np.bool_(True), "c": [np.float32(0.5)], "d": b"x"}
    assert to_python(record, "row 1") == {"a": [1, 2], "b": True, "c": [0.5], "d": "x"}
