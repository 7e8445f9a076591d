"""Reading questions: the official form, the record forms, and what is said about broken ones."""

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from bertjax.config.schema.sources import HuggingFaceData, JsonLines, SquadFiles, StdlibQa, TextFiles, TfdsData
from bertjax.data.sources import squad
from bertjax.data.sources.record_files import to_python
from bertjax.data.sources.squad import Example, read_squad
from bertjax.errors import UserError

CONTEXT = "The wall was built in 1870."


def official(**changes) -> dict:
    qa = {"id": "q1", "question": "When?", "answers": [{"text": "1870", "answer_start": 22}]} | changes
    qa = {key: value for key, value in qa.items() if value is not ...}
    return {"version": "1.1", "data": [{"title": "Wall", "paragraphs": [{"context": CONTEXT, "qas": [qa]}]}]}


def read(folder: Path, content: object, name: str = "set.json") -> list[Example]:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return read_squad(SquadFiles(kind="squad", files=[name]), folder)


EXPECTED = Example("q1", "When?", CONTEXT, [("1870", 22)], False, "Wall")


def test_the_official_form_plain_and_compressed(tmp_path):
    text = json.dumps(official()).encode()
    (tmp_path / "a.json").write_bytes(text)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.json.xz").write_bytes(lzma.compress(text))
    source = SquadFiles(kind="squad", files=["a.json", "*.gz", str(tmp_path / "c.json.xz")])
    assert read_squad(source, tmp_path) == [EXPECTED] * 3


def test_unanswerable_questions(tmp_path):
    flagged = official(answers=[], is_impossible=True, plausible_answers=[{"text": "wall", "answer_start": 4}])
    assert read(tmp_path, flagged)[0] == Example("q1", "When?", CONTEXT, [], True, "Wall")
    assert read(tmp_path, official(answers=[]))[0].is_impossible
    assert not read(tmp_path, official(is_impossible=False))[0].is_impossible


RECORD = {"id": "q1", "title": "Wall", "context": CONTEXT, "question": "When?"}
RECORDS = [
    RECORD | {"answers": {"text": ["1870"], "answer_start": [22]}},
    RECORD | {"answers": [{"text": "1870", "answer_start": 22}]},
    RECORD | {"answers": {"text": np.array(["1870"], object), "answer_start": np.array([22], np.int32)}},
]
HUB, TFDS = HuggingFaceData(kind="huggingface", name="squad"), TfdsData(kind="tfds", name="squad/v1.1")


@pytest.mark.parametrize("source", [HUB, TFDS], ids=["huggingface", "tfds"])
def test_records(monkeypatch, tmp_path, source):
    empty = RECORD | {"id": "q2", "answers": {"text": [], "answer_start": []}, "is_impossible": np.bool_(True)}
    asked = []
    records = [to_python(record, "") for record in [*RECORDS, empty]]  # as both readers give them
    read = lambda *arguments: asked.append(arguments) or (("row", record) for record in records)  # noqa: E731
    monkeypatch.setattr(squad, "read_located", read)
    found = read_squad(source, tmp_path)
    assert asked == [(source, tmp_path)]
    assert found == [EXPECTED] * 3 + [Example("q2", "When?", CONTEXT, [], True, "Wall")]
    assert type(found[2].answers[0][1]) is int


def test_the_export_of_an_annotation_tool(tmp_path):
    """Haystack's: numbers as ids, no titles, more fields of answers and paragraphs."""
    answer = {"answer_id": 1, "document_id": 7, "question_id": 55, "text": "the mat", "answer_start": 15,
              "answer_end": 22, "answer_category": None}  # fmt: skip
    context = "The cat sat on the mat."
    qas = [
        {"question": "Where?", "id": 55, "answers": [answer], "is_impossible": False},
        {"question": "Who flew?", "id": 56, "answers": [], "is_impossible": True},
    ]
    paragraph = {"qas": qas, "context": context, "document_id": 7}
    (tmp_path / "answers.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    found = read_squad(SquadFiles(files=["answers.json"]), tmp_path)
    assert found == [
        Example("55", "Where?", context, [("the mat", 15)]), Example("56", "Who flew?", context, [], is_impossible=True)
    ]  # fmt: skip


def test_json_lines(tmp_path):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS[:2])
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    assert read_squad(JsonLines(kind="jsonl", files=["a.jsonl"]), tmp_path) == [EXPECTED] * 2


@pytest.mark.slow
def test_the_standard_library_gives_questions_whose_answers_are_in_place(tmp_path):
    examples = read_squad(StdlibQa(kind="stdlib_qa", split="heldout"), tmp_path)
    assert len(examples) > 50 and len({e.id for e in examples}) == len(examples)
    assert all(e.context[start:].startswith(text) for e in examples for text, start in e.answers)


BROKEN = {
    "not json": ('{"data": [', "line 1: not JSON"),
    "a list": ([1], "'data' list missing"),
    "no data": ({"version": "1.1"}, "'data' list missing"),
    "records": ({"data": [RECORD]}, "data[0]: 'paragraphs' is missing"),
    "no context": ({"data": [{"paragraphs": [{"qas": []}]}]}, "data[0].paragraphs[0]: 'context' is missing"),
    "qas": ({"data": [{"paragraphs": [{"context": "a", "qas": {}}]}]}, "paragraphs[0]: 'qas' is a dict"),
    "qa": ({"data": [{"paragraphs": [{"context": "a", "qas": ["b"]}]}]}, "qas[0]: an object is needed"),
    "no questions": ({"data": []}, "no questions in it"),
    "no id": (official(id=...), "paragraphs[0].qas[0]: 'id' is missing"),
    "no question": (official(question=...), "question 'q1': 'question' is missing"),
    "no answers": (official(answers=...), "question 'q1': 'answers' missing"),
    "answers": (official(answers="1870"), "question 'q1': 'answers' missing or not a list"),
    "lengths": (official(answers={"text": ["a"], "answer_start": []}), "question 'q1': 1 answer texts, 0 answer_start"),
    "empty": (official(answers=[{"text": "", "answer_start": 0}]), "question 'q1': an answer's text is empty"),
    "no start": (official(answers=[{"text": "1870"}]), "question 'q1': answers[0]: 'answer_start' is missing"),
    "word start": (official(answers=[{"text": "1870", "answer_start": "x"}]), "answer_start 'x' is not an integer"),
    "part start": (official(answers=[{"text": "1870", "answer_start": 22.5}]), "answer_start 22.5 is not an integer"),
    "infinite": (official(answers=[{"text": "1870", "answer_start": float("inf")}]), "answer_start inf is not an int"),
    "surrogate": (official(context="The \ud83d wall, 1870."), "question 'q1': 'context' holds a lone surrogate"),
    "before": (official(answers=[{"text": "1870", "answer_start": -1}]), "answer_start -1 with 4 characters is"),
    "behind": (official(answers=[{"text": "1870", "answer_start": 24}]), "answer_start 24 with 4 characters is"),
    "both": (official(is_impossible=True), "question 'q1': is_impossible is true, but there are answers"),
    "neither": (official(answers=[], is_impossible=False), "is_impossible is false, but there are no answers"),
    "blank": (official(context=" \n"), "question 'q1': the context is empty"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_in_one_line(tmp_path, name):
    content, message = BROKEN[name]
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    text = str(caught.value)
    assert message in text and "set.json" in text and "\n" not in text
    assert len(text.replace(str(tmp_path), "")) <= 300


def test_missing_files_and_other_sources(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_squad(SquadFiles(kind="squad", files=["none.json"]), tmp_path)
    with pytest.raises(UserError, match="kind 'text' holds no questions"):
        read_squad(TextFiles(kind="text", files=["a.txt"]), tmp_path)
