"""Records of JSON and TSV files, and one-line errors for what can be wrong with them."""

import gzip
import json
from pathlib import Path

import pytest

from bertjax.config.schema.sources import Json, JsonLines, Tsv
from bertjax.data.sources.records import read_located, read_records
from bertjax.data.sources.registry import fingerprint
from bertjax.data.sources.squad import read_squad
from bertjax.data.sources.text import read_documents
from bertjax.errors import UserError


def fails(source: Json | Tsv, base: Path, says: str) -> None:
    with pytest.raises(UserError) as caught:
        list(read_records(source, base))
    message = str(caught.value)
    assert says in message and "\n" not in message and ";" in message


# ---- json -----------------------------------------------------------------------------------------------------------

ROWS = [{"text": "One. Two.", "answers": ["a", "b"]}, {"text": "Three.", "answers": []}]


def test_a_list_of_objects(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=2), encoding="utf-8-sig")
    with gzip.open(tmp_path / "b.json.gz", "wt") as file:
        json.dump(ROWS[:1], file)
    source = Json(files=["a.json", "b.json.gz"])
    assert list(read_records(source, tmp_path)) == [*ROWS, ROWS[0]]
    assert [where for where, _ in read_located(source, tmp_path)][1] == f"{tmp_path / 'a.json'}: item 2"
    assert list(read_documents(Json(files=["a.json"]), tmp_path)) == [["One.", "Two."], ["Three."]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 1}\n{"a": 2}\n', "line 2: not valid JSON (Extra data); for one object a line use kind: jsonl"),
        ('[{"a": 1},\n{"a" 2}]', "line 2: not valid JSON"),
        ('{"version": "1.1", "data": []}', "a list of objects is needed; for a SQuAD file use kind: squad"),
        ("[[]]", "item 1: is a JSON list, not an object"),
        ("[" * 100_000, "not valid JSON"),
        ("[" + "1" * 5000 + "]", "not valid JSON"),
        ("", "the file is empty"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content: str, says: str):
    (tmp_path / "a.json").write_text(content)
    fails(Json(files=["a.json"]), tmp_path, says)


def test_question_records_in_a_list(tmp_path: Path):
    answers = {"text": ["Rome"], "answer_start": [3]}
    (tmp_path / "a.json").write_text(json.dumps([{"id": 1, "question": "Q", "context": "In Rome", "answers": answers}]))
    assert read_squad(Json(files=["a.json"]), tmp_path)[0].answers == [("Rome", 3)]


# ---- tsv ------------------------------------------------------------------------------------------------------------


def test_a_header_and_quotes_that_are_none(tmp_path: Path):
    """As the GLUE files: a byte order mark, quotes anywhere, other line ends."""
    text = '\ufeffQuality\t#1 String\r\n1\t"Said\r\n\r\n0\t\u2028 "a"" b\'\r\n'
    (tmp_path / "a.tsv").write_bytes(text.encode())
    source = Tsv(files=["a.tsv"], text_field="#1 String")
    assert list(read_located(source, tmp_path)) == [
        (f"{tmp_path / 'a.tsv'}: line 2", {"Quality": "1", "#1 String": '"Said'}),
        (f"{tmp_path / 'a.tsv'}: line 4", {"Quality": "0", "#1 String": '\u2028 "a"" b\''}),
    ]
    assert len(list(read_documents(source, tmp_path))) == 2


def test_named_columns_and_a_header_to_skip(tmp_path: Path):
    """CoLA has no header; its four columns are source, label, the author's mark and the sentence."""
    (tmp_path / "cola.tsv").write_text("gj04\t1\t\tIt is.\ngj04\t0\t*\tIs it it.\n")
    names = ["source", "label", "mark", "sentence"]
    found = list(read_records(Tsv(files=["cola.tsv"], fields=names), tmp_path))
    assert found[1] == dict(zip(names, ("gj04", "0", "*", "Is it it."), strict=True)) and len(found) == 2
    assert list(read_records(Tsv(files=["cola.tsv"], fields=names, skip_lines=1), tmp_path)) == found[1:]
    fails(Tsv(files=["cola.tsv"], fields=names[:3]), tmp_path, "cola.tsv: line 1: 4 columns, not the 3 named")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a\tb\n1\t2\n3\n", "a.tsv: line 3: 1 columns, not the 2 named (a, b)"),
        ("a\tb\n1\t2\t3\n", "a.tsv: line 2: 3 columns"),
        ("a\ta\n1\t2\n", "a.tsv: line 1: two columns are called 'a'"),
        (b"a\tb\n1\t\xff\n", "a.tsv: line 2: not UTF-8"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, content: str | bytes, says: str):
    (tmp_path / "a.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    fails(Tsv(files=["a.tsv"]), tmp_path, says)


def test_each_file_has_its_own_header(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("x\ty\n1\t2\n")
    (tmp_path / "b.tsv").write_text("y\tx\n1\t2\n")
    assert list(read_records(Tsv(files=["*.tsv"]), tmp_path)) == [{"x": "1", "y": "2"}, {"y": "1", "x": "2"}]


# ---- fingerprints ---------------------------------------------------------------------------------------------------


def test_a_fingerprint_follows_content_and_options(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("text\tlabel\n1\t2\n")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    sources = [
        Tsv(files=["a.tsv"]), Tsv(files=["a.tsv"], fields=["a", "b"]),
        Tsv(files=["a.tsv"], fields=["a", "b"], skip_lines=1),
        Json(files=["a.json"]), JsonLines(files=["a.json"]),
    ]  # fmt: skip
    before = [fingerprint(source, tmp_path) for source in sources]
    assert len(set(before)) == 5
    (tmp_path / "a.tsv").write_text("text\tlabel\n1\t3\n")
    changed = [one != two for one, two in zip(before, [fingerprint(s, tmp_path) for s in sources], strict=True)]
    assert changed == [True, True, True, False, False]
