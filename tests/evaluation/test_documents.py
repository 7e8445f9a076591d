"""Answers from documents: the reader over all passages against a plain merge, places in files, files in and out."""

import csv
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import bertjax
from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.data.preprocess.span_qa import Example, evaluation_features
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.inference.span_decoding import predict_answers
from bertjax.evaluation.predictors.base import restore_for_prediction
from bertjax.evaluation.predictors.documents import DocumentAnswerer
from bertjax.evaluation.retrieval import index as indexes
from bertjax.parallel import mesh
from bertjax.training import loop

pytest.importorskip("bm25s")
ANIMALS = "dog cat fox hen cow owl bee ant eel elk".split()
PLACES = "barn river forest garden field cave tree house pond hill".split()


@pytest.fixture(scope="module")
def project(tiny_project, tmp_path_factory) -> Path:
    """The tiny project with a run on one device; not to be changed."""
    home = tmp_path_factory.mktemp("documents")
    shutil.copytree(tiny_project, home, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
        config = load(home / "tiny.yaml", [f"run.root={home}/runs", "stages.qa.trainable=all", "stages.qa.steps=30"])
        loop.train(config, home, build_evaluators)
    docs = home / "docs"
    (docs / "more").mkdir(parents=True)
    for n, (animal, place) in enumerate(zip(ANIMALS, PLACES, strict=True)):
        text = f"The {animal} sleeps in the {place}.\r\nThe {animal} eats near the {PLACES[n - 1]}."
        (docs / f"{animal}.txt").write_bytes(text.encode())
    (docs / "more" / "notes.jsonl").write_text(
        '{"title": "x", "text": "Émile’s dog \\ud83d\\ude00 sleeps in the “barn”."}\n{"text": "An owl."}\n'
    )
    (docs / "more" / "bom.md").write_bytes("\ufeffThe cat waits: 猫は in the house.".encode())
    return home


@pytest.fixture
def here(project, monkeypatch) -> Iterator[Path]:
    monkeypatch.chdir(project)
    monkeypatch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
    return project


@pytest.fixture
def answerer(here) -> DocumentAnswerer:
    return DocumentAnswerer(restore_for_prediction("runs/tiny"))


def text_at(source: dict) -> str:
    """The characters of the file that a source names."""
    content = Path(source["file"]).read_bytes().decode()
    if "line" in source:
        content = json.loads(content.splitlines()[source["line"] - 1])["text"]
    assert content[source["passage_start"] :].startswith(source["passage"])
    return content[source["start"] : source["end"]]


def test_one_passage_is_answered_as_a_context(answerer, tmp_path):
    (tmp_path / "one.txt").write_text("The dog sleeps in the barn.")
    (alone,) = answerer(["Where is the dog?"], ["The dog sleeps in the barn."], n_best=20)
    (found,) = answerer.from_documents(["Where is the dog?"], tmp_path, n_best=20)
    assert found["answer"] == alone["answer"] and found["probability"] == pytest.approx(alone["probability"])
    probabilities = {one["text"]: one["probability"] for one in alone["candidates"]}
    assert all(one["probability"] == pytest.approx(probabilities[one["text"]]) for one in found["candidates"])


@pytest.mark.parametrize("null_threshold", [None, -1000.0, 1000.0])
def test_all_passages_are_scored_together(answerer, here, null_threshold):
    """Against the n-best lists of each passage alone, merged by score."""
    question, version_2 = "Where is the dog near the cat?", null_threshold is not None
    (found,) = answerer.from_documents([question], Path("docs"), 20, 7, null_threshold)
    index = answerer.open_index(Path("docs"))
    hits = index.search(question, 7)
    assert len(hits) == 7
    texts = index.texts([n for n, _ in hits])
    settings, windows = answerer.decoding(answerer.rule(20, null_threshold, None, None))
    merged, nulls = [], []
    for number, _ in hits:
        examples = [Example("q", question, texts[number], [])]
        features = evaluation_features(examples, answerer.tokenizer, windows)
        start, end = answerer.span_logits(features)
        _, nbest, _ = predict_answers(
            examples, features, start, end, n_best=1000, max_answer_length=settings.max_answer_length,
            version_2=version_2,
        )  # fmt: skip
        merged += [(e["start_logit"] + e["end_logit"], e["text"]) for e in nbest["q"] if e["text"]]
        nulls += [start[w, 0] + end[w, 0] for w in range(len(features))]
    best: dict[str, float] = {}
    for score, text in sorted(merged, key=lambda one: -one[0]):
        best.setdefault(text, score)
    top = dict(list(best.items())[:20])
    if version_2:
        top = dict(sorted({**top, "": min(nulls)}.items(), key=lambda one: -one[1])[:20]) | {"": min(nulls)}
        assert found["no_answer"]["null_odds"] == pytest.approx(min(nulls) - next(iter(best.values())), abs=1e-4)
    total = sum(math.exp(score) for score in top.values())
    for one in found["candidates"]:
        assert one["probability"] == pytest.approx(math.exp(top[one["text"]]) / total, rel=1e-4)
        assert text_at(one["source"]) == one["text"]
        assert one["source"]["bm25"] in [score for _, score in hits]
    first = next(text for text in top if text)
    assert found["candidates"][0]["text"] == first
    assert found["answer"] == (None if null_threshold == -1000.0 else first)
    assert ("source" in found) == (found["answer"] is not None)


def test_candidates_do_not_overlap_in_a_file(answerer, here):
    (found,) = answerer.from_documents(["Where is the owl?"], Path("docs"), 20)
    places = [(c["source"]["file"], c["source"].get("line"), c["source"]) for c in found["candidates"]]
    for n, (file, line, one) in enumerate(places):
        for other_file, other_line, other in places[:n]:
            same = (file, line) == (other_file, other_line)
            assert not (same and one["start"] < other["end"] and other["start"] < one["end"])
    assert len(places) > 3


def test_many_questions_in_parts_are_the_same_as_alone(answerer, here, monkeypatch):
    questions = [f"Where is the {animal}?" for animal in ANIMALS] + ["?", "zebra"]
    together = answerer.from_documents(questions, Path("docs"), top_passages=3)
    monkeypatch.setattr("bertjax.evaluation.predictors.answers.MAX_WINDOWS_AT_ONCE", 4)
    monkeypatch.setattr("bertjax.evaluation.predictors.documents._QUESTIONS_AT_ONCE", 5)
    parted = answerer.from_documents(questions, Path("docs"), top_passages=3)
    for question, one, other in zip(questions, together, parted, strict=True):
        assert one["question"] == question
        assert one["answer"] == other["answer"]
        assert [c["source"] for c in one["candidates"]] == [c["source"] for c in other["candidates"]]
        np.testing.assert_allclose(
            [c["probability"] for c in one["candidates"]], [c["probability"] for c in other["candidates"]], rtol=1e-4
        )
    for one in together[-2:]:
        assert one["answer"] is None and one["candidates"] == []
        assert one["reason"] == "no document has a word of the question"


def test_cut_questions_are_counted_as_questions(answerer, capsys):
    """Not once for each passage."""
    answerer.from_documents(["where " * 100 + "is the dog?", "Where is the cat?"], Path("docs"), top_passages=3)
    assert "note: 1 questions cut at max_query_length 12 (first: where where" in capsys.readouterr().err


def test_the_index_is_kept_until_files_change(answerer, here, monkeypatch, tmp_path):
    built = []
    make = indexes._build
    monkeypatch.setattr(indexes, "_build", lambda *a: built.append(1) or make(*a))
    (tmp_path / "a.txt").write_text("The dog sleeps.")
    ask = lambda: answerer.from_documents(["Where is the dog?"], tmp_path)[0]["candidates"][0]["source"]  # noqa: E731
    assert ask() == ask() and len(built) == 1
    (tmp_path / "a.txt").write_text("Also, the dog sleeps.")
    ask()
    (tmp_path / "b.txt").write_text("The dog eats.")
    ask()
    assert len(built) == 3


def test_python_takes_documents(here):
    model = bertjax.open("runs/tiny")
    one = model.answer("Where is the cat?", documents="docs")
    (same,) = model.answer(["Where is the cat?"], documents=Path("docs"), top_passages=10)
    assert one == same and len(one["candidates"]) == 5
    assert text_at(one["source"]) == one["answer"]
    assert len(model.answer("Where is the cat?", "The cat sleeps.")["candidates"]) == 3
    for wrong, message in [
        (lambda: model.answer("q", "c", documents="docs"), "give either contexts or documents"),
        (lambda: model.answer("q"), "give the contexts of the questions, or documents"),
        (lambda: model.answer(" ", documents="docs"), "the question is empty"),
        (lambda: model.answer("q", documents=3), "documents: must be a text or a path"),
        (lambda: model.answer("q", documents="none"), "none: no such file or folder"),
        (lambda: model.answer("q", documents="docs", top_passages=0), "top_passages: must be an integer above 0"),
    ]:
        with pytest.raises(UserError, match=message):
            wrong()


# ---- files in and out -----------------------------------------------------------------------------------------------


def test_questions_and_answers_in_files(here, tmp_path, capsys):
    (tmp_path / "q.txt").write_text("Where is the dog?\nWhere is the cat?\n")
    (tmp_path / "q.csv").write_text("id,question,topic\n7,Where is the dog?,a\n8,Where is the cat?,b\n")
    where = ["predict", "answer", "runs/tiny", "--documents", "docs", "--top-passages", "2", "--n-best", "2", "--file"]
    assert main([*where, str(tmp_path / "q.txt"), "--output", str(tmp_path / "a.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["question"] for line in lines] == ["Where is the dog?", "Where is the cat?"]
    assert all(text_at(line["source"]) == line["answer"] and len(line["candidates"]) <= 2 for line in lines)
    said = capsys.readouterr().err
    assert "note: docs: 13 documents, 13 passages\n" in said
    (tmp_path / "one.txt").write_text("The dog is here.\n")
    one = ["predict", "answer", "runs/tiny", "--question", "dog?", "--documents", str(tmp_path / "one.txt")]
    assert main(one) == 0
    assert f"note: {tmp_path / 'one.txt'}: 1 document, 1 passage\n" in capsys.readouterr().err
    assert main([*where, str(tmp_path / "q.csv"), "--output", str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["id", "question", "topic", "answer", "probability", "file", "line", "start", "end", "bm25"]
    assert [list(row) for row in rows] == [names] * 2 and [row["id"] for row in rows] == ["7", "8"]
    assert [row["answer"] for row in rows] == [line["answer"] for line in lines]
    assert main([*where, str(tmp_path / "q.csv"), "--output", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == {"7": rows[0]["answer"], "8": rows[1]["answer"]}
    assert main([*where, str(tmp_path / "q.csv")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in printed] == ["7", "8"] and printed[0]["answer"] == lines[0]["answer"]
    assert (
        main(["predict", "answer", "runs/tiny", "--question", "Where is the dog?", "--documents", "docs/dog.txt"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["source"]["file"] == "docs/dog.txt"


def test_a_squad_file_is_answered_in_its_order(here, tmp_path, capsys):
    """Also without answers and with numbers as ids, as annotation tools export it."""
    gold = json.loads((here / "heldout.json").read_text())
    asked = [qa for a in gold["data"] for p in a["paragraphs"] for qa in p["qas"]]
    for number, qa in enumerate(asked):
        qa.pop("answers")
        qa |= {"id": 100 - number, "asked_by": "x"}
    (tmp_path / "test.json").write_text(json.dumps(gold, indent=1))
    where = ["predict", "answer", "runs/tiny", "--file"]
    assert main([*where, str(here / "heldout.json"), "--output", str(tmp_path / "a.json")]) == 0
    assert main([*where, str(tmp_path / "test.json"), "--output", str(tmp_path / "b.json")]) == 0
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert list(a.values()) == list(b.values()) and list(b) == [str(100 - n) for n in range(len(asked))]
    assert main([*where, str(tmp_path / "test.json"), "--output", str(tmp_path / "b.jsonl")]) == 0
    first = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert {"title", "id", "question", "asked_by", "answer", "candidates"} <= first.keys() and "context" not in first
    assert main(["score", "squad", "heldout.json", str(tmp_path / "a.json")]) == 0
    capsys.readouterr()
    assert main([*where, str(here / "heldout.json"), "--documents", "docs", "--output", str(tmp_path / "c.json")]) == 0
    assert "heldout.json: its contexts are not used" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "c.json").read_text())) == list(a)


@pytest.mark.parametrize(
    ("name", "content", "output", "message"),
    [
        ("q.jsonl", '{"question": "q", "context": "c"}\n', "a.json", "q.jsonl: line 1: no field 'id', but a .json"),
        ("q.jsonl", '{"id": 1, "question": "q", "context": "c"}\n{"id": "1", "question": "q", "context": "c"}\n',
         "a.json", "q.jsonl: line 2: id '1' is there twice"),
        ("q.jsonl", '{"id": 1, "question": "q", "context": "c", "answer": "x"}\n', "a.jsonl",
         "q.jsonl: has a field 'answer', which the predictions need; rename it"),
        ("q.json", '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 1}]}]}]}', "a.json",
         "q.json: data[0].paragraphs[0].qas[0]: 'question' is missing"),
        ("q.json", '{"data": [\n{]}', "a.json", "q.json: line 2: not JSON"),
        ("q.jsonl", '{"question": "q", "context": "c"}\n{"question": " ", "context": "c"}\n', "a.jsonl",
         "q.jsonl: line 2: the question is empty"),
        ("q.jsonl", '{"question": "q", "context": "c"}\n', "q.jsonl", "q.jsonl': is read by this command"),
        ("q.csv", "id,question\n1,q\n", "a.jsonl", "q.csv: line 2: no field 'context'"),
        ("q.txt", "q\n", "a.jsonl", "q.txt: a line has one text, 'question' and 'context' are needed"),
        ("q.jsonl", '{"question": "q", "context": "c"}\n', "a.txt", "a.txt: the name of --output must end with"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_answered(here, tmp_path, capsys, monkeypatch, name, content, output, message):
    (tmp_path / name).write_text(content)
    where = ["predict", "answer", "runs/tiny", "--file", str(tmp_path / name), "--output", str(tmp_path / output)]
    assert main(where) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and len([line for line in said if not line.startswith("note")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
