"""`bertjax init tag`: words with labels and texts with entities."""

import json
from pathlib import Path

import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.data.sources.records import read_records

NAMES = "Anna Bob Clara Dan Eve Frank".split()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> str:
    assert main(line.split()) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


@pytest.mark.parametrize("name", ["train.conll", "eng.train"])
def test_columns(here, capsys, name):
    (here / name).write_text(
        "".join(f"{a} X B-PER\n{b} X I-PER\nran{i} X O\n\n" for i, a in enumerate(NAMES) for b in NAMES)
    )
    out = said(capsys, f"init tag {name} --pretrained none --device cpu")
    assert f"{name}: 36 sentences, 108 words, 3 labels: B-PER (36), I-PER (36), O (36)" in out
    assert "bertjax train tag.yaml" in out and "bertjax predict tag runs/tag" in out
    (stage,) = load("tag.yaml").stages
    assert (stage.objective.kind, stage.objective.num_labels) == ("token_classification", 3)
    assert stage.data.preprocess.labels == ["B-PER", "I-PER", "O"] and stage.evaluate[0].kind == "token_classification"
    sides = [list(read_records(data.source[0], here)) for data in (stage.data, stage.evaluate[0].data)]
    assert sum(map(len, sides)) == 36 and sides[1] and sides[0][0]["tokens"][2].startswith("ran")


def test_a_held_out_file_and_entities(here, capsys):
    rows = [
        {"text": f"{a} met {b}.", "entities": [{"start": 0, "end": len(a), "label": "PER"}]}
        for a in NAMES
        for b in NAMES
    ]
    for name in ("train.jsonl", "dev.jsonl"):
        (here / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = said(capsys, "init tag train.jsonl --eval dev.jsonl --pretrained none --device cpu --output own.yaml")
    assert "36 sentences, 144 words, 3 labels: O (108), B-PER (36), I-PER (0)" in out
    (stage,) = load("own.yaml").stages
    assert (stage.data.preprocess.text, stage.data.preprocess.spans) == ("text", "entities")
    assert stage.evaluate[0].data.source[0].files == ["dev.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("init tag texts.jsonl", "--text, --label: name the columns of the words and of their labels"),
        (
            "init tag short.jsonl",
            "short.jsonl: line 2: a label is needed for each word, there are 2 in 'tokens' and 1 in",
        ),
        ("init tag bad.conll", "bad.conll: line 2: 2 columns, the line before has 3; correct the line"),
        ("init tag one.conll", "one.conll: 'ner_tags' has one label; name another column with --label"),
    ],
)
def test_refusals_leave_nothing_behind(here, capsys, line, message):
    (here / "texts.jsonl").write_text('{"text": "a", "label": "b"}\n' * 30)
    rows = [{"tokens": ["a", "b"], "ner_tags": ["O"] * n} for n in (2, 1)]
    (here / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "bad.conll").write_text("a X O\nb O\n")
    (here / "one.conll").write_text("a O\n\n" * 30)
    before = {path.name for path in here.iterdir()}
    error = said(capsys, f"{line} --label ner_tags" if "short" in line else line, 2)
    assert message in error and error.count("\n") == 1
    assert {path.name for path in here.iterdir()} == before


def test_columns_that_number_words_are_not_read_as_words(here, capsys):
    lines = "".join(f"1\t{a}\tNN\tB-PER\n2\tran{i}\tVB\tO\n\n" for i, a in enumerate(NAMES) for _ in range(5))
    (here / "a.conll").write_text(lines)
    line = said(capsys, "init tag a.conll --pretrained none", 2)
    assert "a.conll: the first column has the numbers of words; name all columns: --fields id,tokens,..." in line
    out = said(capsys, "init tag a.conll --fields id,tokens,pos,ner_tags --pretrained none --device cpu")
    assert "30 sentences, 60 words, 2 labels: B-PER (30), O (30)" in out


def test_examples_that_an_annotator_rejected_are_not_trained_on(here, capsys):
    records = [
        {"text": f"Ann ran {n}", "spans": [[0, 3, "PER"]], "answer": "reject" if n == 7 else "accept"} for n in range(9)
    ]
    (here / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    line = said(capsys, "init tag a.jsonl --pretrained none", 2)
    assert "a.jsonl: 1 of the first 9 records have the answer 'reject' or 'ignore'; remove those" in line


def test_offsets_in_utf16_units_are_named(here, capsys):
    (here / "a.jsonl").write_text(json.dumps({"text": "\U0001f600 Ann", "spans": [[3, 6, "PER"]]}, ensure_ascii=False))
    line = said(capsys, "init tag a.jsonl --pretrained none", 2)
    assert "at characters 3 to 6 of a text of 5;" in line and "an emoji is one, not two as in JavaScript" in line
