"""`bertjax init`: what it finds in files, what it writes, and that the result trains."""

import hashlib
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.data.sources.records import read_records
from bertjax.data.sources.squad import read_squad
from bertjax.tools.init import recipe
from bertjax.tools.init.columns import choose_label, choose_target, choose_texts
from bertjax.tools.init.heldout import choose_heldout, text_hash
from bertjax.tools.init.recipe import Machine
from bertjax.tools.init.several_labels import find_delimiter
from bertjax.tools.init.survey import Survey, choose_labels, survey_records

WORDS = "the a list of text returns value file name is not none true when called with and from module object".split()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return tmp_path


def texts(count: int, words: int = 8, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) + "." for _ in range(count)]


def said(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> str:
    assert main(line.split()) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def written(path: str) -> str:
    text = Path(path).read_text()
    assert text.startswith("# ") and "$schema=.bertjax.schema.json" in text and text.count("\n") <= 36
    assert "2e-5" in text or "2.0e-05" not in text
    json.loads(Path(path).with_name(".bertjax.schema.json").read_text())
    return text


# ---- classification -------------------------------------------------------------------------------------------------


def test_classify_splits_a_table(here, capsys):
    rows = [f"{text}\t{('neg', 'pos')[n % 2]}" for n, text in enumerate(texts(300))]
    (here / "reviews.tsv").write_text("\n".join(["review\tsentiment", *rows, *rows[:40]]) + "\n")
    out = said(capsys, "init classify reviews.tsv --pretrained none --device cpu")
    assert "340 records, text 'review', label 'sentiment': 2 labels" in out and "bertjax train classify.yaml" in out
    written("classify.yaml")
    config = load("classify.yaml")
    (stage,) = config.stages
    assert stage.objective.num_labels == 2 and stage.data.preprocess.labels == ["neg", "pos"]
    assert stage.data.preprocess.sequence_length == 32 and config.run.name == "classify"
    sides = [list(read_records(data.source[0], here)) for data in (stage.data, stage.evaluate[0].data)]
    assert sum(map(len, sides)) == 340 and 20 <= len(sides[1]) <= 60
    assert not {r["review"] for r in sides[0]} & {r["review"] for r in sides[1]}, "equal texts are on one side"
    assert {r["sentiment"] for r in sides[1]} == {"neg", "pos"}
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert "classify.yaml: already exists; --force overwrites it" in said(capsys, "init classify reviews.tsv", 2)
    (here / "classify.yaml").unlink()
    assert "classify-train.jsonl: already exists" in said(capsys, "init classify reviews.tsv --pretrained none", 2)
    assert {path.name for path in here.iterdir()} == before.keys() - {"classify.yaml"}
    said(capsys, "init classify reviews.tsv --pretrained none --device cpu --force")
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before, "the same data, the same split"


def test_a_text_file_in_columns_is_a_table(here, capsys):
    """SICK's and many SemEval files are tables named .txt; running text with a tab here and there is not."""
    rows = [f"{n}\t{text}\t{n % 5 / 2}" for n, text in enumerate(texts(60))]
    (here / "train.txt").write_text("\n".join(["pair_ID\tsentence\trelatedness_score", *rows]) + "\n")
    out = said(
        capsys, "init classify train.txt --text sentence --label relatedness_score --pretrained none --device cpu"
    )
    assert "60 records, text 'sentence', label 'relatedness_score'" in out
    (here / "prose.txt").write_text("One\ttab.\n" + "\n".join(texts(60)) + "\n")
    assert "classification needs records" in said(
        capsys, "init classify prose.txt --pretrained none --output prose.yaml", 2
    )


def test_running_text_with_tabs_loses_no_line(here, capsys):
    """Indented lines are no table, and pre-training reads every text file as text."""
    (here / "indented.txt").write_text("".join(f"\t{text}\n" for text in texts(60)))
    error = said(capsys, "init classify indented.txt --pretrained none --output indented.yaml", 2)
    assert "classification needs records with a text and a label" in error
    (here / "glossary.txt").write_text("".join(f"word\t{text}\n" for text in texts(60)))
    for name in ("indented", "glossary"):
        said(capsys, f"init pretrain {name}.txt --device cpu --output {name}.yaml")
        assert load(here / f"{name}.yaml").stages[0].data.source[0].kind == "text"
    (here / "short.txt").write_text(
        "sentence\tlabel\n" + "".join(f"{x}\t{n % 2}\n" for n, x in enumerate(texts(8))) + "\n"
    )
    assert "text 'sentence', label 'label'" in said(
        capsys, "init classify short.txt --pretrained none --eval none --device cpu --output short.yaml"
    )


def test_pairs_and_numbered_labels(here, capsys):
    records = [
        {"a": a, "b": b, "same": n % 3} for n, (a, b) in enumerate(zip(texts(60), texts(60, seed=1), strict=True))
    ]
    (here / "pairs.json").write_text(json.dumps(records))
    out = said(capsys, "init classify pairs.json --text a --pair b --label same --output sub.yaml")
    assert "second text 'b'" in out and "3 labels: 0 (20), 1 (20), 2 (20)" in out
    assert "num_labels: 3" in written("sub.yaml") and (here / "sub-heldout.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classify", "qa", "pretrain", "t5"])
def test_what_was_written_trains(here, capsys, kind):
    answers = [{"id": n, "question": "What is it?", "context": text, "answers": [{"text": text.split()[2],
               "answer_start": len(" ".join(text.split()[:2])) + 1}]} for n, text in enumerate(texts(40))]  # fmt: skip
    squad = [{"title": str(n), "paragraphs": [{"context": q["context"], "qas": [q]}]} for n, q in enumerate(answers)]
    (here / "qa.json").write_text(json.dumps({"version": "1", "data": squad}))
    (here / "classify.csv.tsv").write_text(
        "text\tlabel\n" + "".join(f"{t}\t{n % 2}\n" for n, t in enumerate(texts(60)))
    )
    (here / "pretrain.txt").write_text("\n\n".join("\n".join(texts(20, seed=n)) for n in range(40)))
    lines = [json.dumps({"input": t, "target": t.split()[0]}) for t in texts(60)]
    (here / "t5.jsonl").write_text("\n".join(lines))
    files = {"qa": "qa.json", "classify": "classify.csv.tsv", "pretrain": "pretrain.txt", "t5": "t5.jsonl"}
    said(capsys, f"init {kind} {files[kind]} --pretrained none --device cpu")
    (stage,) = load(f"{kind}.yaml").stages
    name = f"stages.{stage.name}"
    fewer = [f"{name}.epochs=null", f"{name}.steps=2", "model.num_hidden_layers=1"]
    fewer = fewer[:2] if kind == "t5" else fewer
    assert main(["train", f"{kind}.yaml", *fewer, f"{name}.batch_size=8"]) == 0
    scores = json.loads(next((here / "runs" / kind / "evaluations").rglob("heldout.json")).read_text())["scores"]
    assert scores


def test_pretrained_weights_get_other_options(here, capsys):
    (here / "a.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": n % 2}) + "\n" for n, t in enumerate(texts(50)))
    )
    out = said(capsys, "init classify a.jsonl --device gpu --eval none")
    assert "downloads google-bert/bert-base-uncased" in out and "nothing will be scored" in out
    text = written("classify.yaml")
    assert "pretrained: google-bert/bert-base-uncased" in text and "model:" not in text and "2e-5" in text
    assert "evaluate" not in text and not (here / "classify-train.jsonl").exists()


def test_records_without_a_label_are_left_out(here, capsys):
    records = [{"text": t, "label": (None, True, False)[n % 3]} for n, t in enumerate(texts(60))]
    (here / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    out = said(capsys, "init classify a.jsonl --pretrained none")
    assert "True (20), False (20)" in out and "left out 20 records without a label" in out and "of 40 records" in out
    assert "null" not in (here / "classify-train.jsonl").read_text() + (here / "classify-heldout.jsonl").read_text()
    line = said(capsys, "init classify a.jsonl --eval none --output b.yaml", 2)
    assert line == "a.jsonl: 20 records have no 'label'; remove them\n" and not (here / "b.yaml").exists()


def test_records_without_a_text_are_left_out(here, capsys):
    records = [{"text": None if n in (4, 9) else t, "label": "ab"[n % 2]} for n, t in enumerate(texts(60))]
    (here / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    out = said(capsys, "init classify a.jsonl --pretrained none")
    assert "58 records" in out and "left out 2 records without a text (null), the first: a.jsonl: line 5" in out
    line = said(capsys, "init classify a.jsonl --eval none --output b.yaml", 2)
    assert line == "a.jsonl: 2 records have no text (null; the first: a.jsonl: line 5); remove them\n"
    (here / "c.jsonl").write_text('{"text": 7, "label": "a"}\n')
    assert "'text' is 7, not a text" in said(
        capsys, "init classify c.jsonl --text text --pretrained none --output c.yaml", 2
    )


def test_several_labels_are_found_as_lists_texts_and_columns(here, capsys):
    names = ["joy", "fear", "awe"]
    sets = [
        [name for at, name in enumerate(names) if (n % 5 + 1) >> at & 1 and (at < 2 or n % 4 == 0)] for n in range(80)
    ]
    rows = list(zip(texts(80), sets, strict=True))
    (here / "lists.jsonl").write_text("".join(json.dumps({"text": t, "emotions": s}) + "\n" for t, s in rows))
    cells = "".join(f"{t}\t{'|'.join(s)}\n" for t, s in rows)
    (here / "cells.tsv").write_text("text\tlabel\n" + cells)
    columns = "".join(f"{n},{t},{','.join(str(int(name in s)) for name in names)}\n" for n, (t, s) in enumerate(rows))
    (here / "columns.csv").write_text("id,text,joy,fear,awe\n" + columns)
    named = ["awe", "fear", "joy"]
    expected = {
        "lists.jsonl": {"label": "emotions", "labels": named},
        "cells.tsv": {"label": "label", "label_delimiter": "|", "labels": named},
        "columns.csv": {"label_columns": names},
        "columns.csv --label joy,fear": {"label_columns": names[:2]},
    }
    for number, (file, options) in enumerate(expected.items()):
        out = said(capsys, f"init classify {file} --pretrained none --output {number}.yaml --text text")
        (stage,) = load(f"{number}.yaml").stages
        preprocess = stage.data.preprocess
        assert {key: getattr(preprocess, key) for key in options} == options, file
        assert "labels, several or none for a text: joy (48)" in out and " texts have none" in out, out
        assert stage.objective.multi_label and stage.objective.num_labels == (2 if "--label" in file else 3)
    assert "8 to 48 texts a class; class_weights: balanced" in written("0.yaml")


def test_a_comma_in_a_name_is_no_delimiter(here, capsys):
    rows = [f'{t},"{("Food, drink", "Sport")[n % 2]}"' for n, t in enumerate(texts(40))]
    (here / "a.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    assert "label 'label': 2 labels: Food, drink (20)" in said(capsys, "init classify a.csv --pretrained none")
    assert find_delimiter(["a;b", "a", "b", "c;a", "c"]) == ";" and find_delimiter(["a, b", "c, d", "e"]) is None


def test_labels_are_counted_as_training_reads_them(here, capsys):
    names = ("Pos", "pos", "neg", float("nan"))  # what pandas writes for a missing label
    (here / "a.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": names[n % 4]}) + "\n" for n, t in enumerate(texts(80)))
    )
    out = said(capsys, "init classify a.jsonl --pretrained none")
    assert "2 labels: Pos (40), neg (20)" in out and "left out 20 records without a label" in out


def test_what_training_would_refuse_is_not_written(here, capsys):
    rows = "\n".join(f"{text},{('neg', 'pos')[n % 2]}" for n, text in enumerate(texts(40)))
    (here / "a.csv").write_text(f"text,label\n{rows}\n")
    (here / "b.csv").write_text(f"txt,label\n{rows}\n")
    (here / "twice.csv").write_text(f"label,label\n{rows}\n")
    start = "init classify a.csv --pretrained "
    assert "b.csv: line 2: 'text' is missing" in said(capsys, f"{start}none --eval b.csv", 2)
    assert "--pretrained: a/b::c: no such folder" in said(capsys, f"{start}a/b::c", 2)
    line = said(capsys, f"{start}none --text text --pair Text --label label", 2)
    assert line == "--pair: 'text' is the column of --text too; name another one\n"
    line = said(capsys, "init classify twice.csv --pretrained none", 2)
    assert line == "twice.csv: line 1: two columns are called 'label'; rename one of them in that line\n"
    assert not [*here.glob("*.yaml")] and not [*here.glob("*.jsonl")]


def test_columns_without_a_name_and_files_of_ones_own(here, capsys):
    """pandas writes its index as a column without a name; spreadsheets write empty columns."""
    rows = "\n".join(f"{n},{text},{('neg', 'pos')[n % 2]},," for n, text in enumerate(texts(40)))
    (here / "a.csv").write_text(f",text,label,,\n{rows}\n")
    assert "40 records, text 'text', label 'label': 2 labels" in said(capsys, "init classify a.csv --pretrained none")
    assert load("classify.yaml").stages
    before = (here / "classify-train.jsonl").read_text()
    line = said(capsys, "init classify classify-train.jsonl --pretrained none --force", 2)
    assert line == "classify-train.jsonl: is a file of your data; choose another name with --output\n"
    assert (here / "classify-train.jsonl").read_text() == before
    (here / "loop.csv").symlink_to("loop.csv")
    assert "loop.csv" in said(capsys, "init classify loop.csv --output b.yaml", 2)


def test_a_local_model_sets_limits(here, capsys):
    (here / "a.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": n % 2}) + "\n" for n, t in enumerate(texts(50, 90)))
    )
    for name, family in (("bert", {"model_type": "bert", "max_position_embeddings": 48}), ("t5", {"model_type": "t5"})):
        (here / name).mkdir()
        (here / name / "config.json").write_text(json.dumps(family))
    out = said(capsys, "init classify a.jsonl --pretrained ./bert --device gpu")
    assert "downloads" not in out and "sequence_length: 48" in written("classify.yaml")
    assert "./t5 is a t5 model; classify needs bert" in said(
        capsys, "init classify a.jsonl --pretrained ./t5 --force", 2
    )
    line = said(capsys, "init classify a.jsonl --pretrained runs/no --force", 2)
    assert line == "--pretrained: runs/no: no such folder; name a model on the Hub, a folder, a run, or none\n"


def test_given_held_out_data_and_columns_without_a_header(here, capsys):
    for name in ("train.tsv", "dev.tsv"):
        (here / name).write_text("".join(f"{n}\t{t}\t{n % 3 - 1}\n" for n, t in enumerate(texts(30))))
    said(capsys, "init classify train.tsv --fields id,verse,label --eval dev.tsv --output my.yaml --pretrained none")
    config = load("my.yaml")
    data = config.stages[0].data
    assert data.source[0].fields == ["id", "verse", "label"] and data.preprocess.labels == ["-1", "0", "1"]
    assert config.stages[0].evaluate[0].data.source[0].files == ["dev.tsv"] and config.run.name == "my"


def counted(*labels: object) -> Survey:
    return survey_records(lambda: (({}, ["text"], str(label)) for label in labels))


@pytest.mark.parametrize(
    ("values", "count", "names"),
    [
        (["0", "1", "1"], 2, None),
        (["1", "2", "3"], 3, ("1", "2", "3")),
        (["0", "2"], 2, ("0", "2")),
        (["yes", "No", "no", "no"], 2, ("no", "yes")),
        (["0.5", "1.25", "3"], 1, None),
        ([str(n) for n in range(50)], 1, None),
        (["False", "True"], 2, ("False", "True")),
    ],
)
def test_labels(values, count, names, monkeypatch):
    monkeypatch.setattr("bertjax.tools.init.survey.names_from_source", lambda *_: None)
    labels = choose_labels(counted(*values), SimpleNamespace(section=None), Path(), "c")
    assert (labels.count, labels.names) == (count, names)


def test_columns_are_found():
    def sample(**columns: object) -> list[dict]:
        return [columns] * 3

    assert choose_texts(sample(idx=1, premise="a b", hypothesis="c d"), "label", None, None) == (
        "premise",
        "hypothesis",
    )
    assert choose_texts(sample(title="short", body="a long text", label=1), "label", None, None) == ("body", None)
    assert choose_texts(sample(stuff="a b c", label="x"), "label", None, None) == ("stuff", None)
    assert choose_label(sample(Quality="1", text="t"), None) == "Quality"
    assert choose_label([{"t": str(n), "flag": n % 2} for n in range(9)], None) == "flag"
    assert choose_label(sample(Label="1", text="t"), "label") == "Label"
    assert choose_target(sample(article="long", highlights="short", id="x"), None, None) == ("article", "highlights")
    assert choose_target(sample(text="only"), None, None) is None
    assert choose_target(sample(x="a b", y="c d", z="e f"), "z", "x") == ("z", "x")


# ---- the other kinds ------------------------------------------------------------------------------------------------


def test_questions_share_no_context(here, capsys):
    def article(n: int) -> dict:
        context = f"{texts(1, seed=n)[0]} Number {n}."
        answers = [{"text": str(n), "answer_start": context.index(f"{n}.")}]
        qas = [{"id": f"{n}-{k}", "question": "Which number?", "answers": answers} for k in range(3)]
        return {"title": str(n), "paragraphs": [{"context": context, "qas": qas}]}

    (here / "mine.json").write_text(json.dumps({"version": "1.1", "data": [article(n) for n in range(30)]}))
    assert "held out 9 of 90 questions" in said(capsys, "init qa mine.json --pretrained none --device cpu")
    written("qa.yaml")
    stage = load("qa.yaml").stages[0]
    sides = [read_squad(data.source[0], here) for data in (stage.data, stage.evaluate[0].data)]
    assert [len(side) for side in sides] == [81, 9] and len({q.id for side in sides for q in side}) == 90
    assert not {q.context for q in sides[0]} & {q.context for q in sides[1]}
    assert "prompt: squad" in (said(capsys, "init t5 mine.json --eval mine.json"), written("t5.yaml"))[1]


def test_running_text(here, capsys):
    (here / "one.txt").write_text("\n\n".join("\n".join(texts(9, seed=n)) for n in range(50)) + "\n")
    out = said(capsys, "init pretrain one.txt --device cpu")
    assert "a sentence a line" in out and "of 50 blocks of text" in out
    written("pretrain.yaml")
    stage = load("pretrain.yaml").stages[0]
    assert stage.data.source[0].layout == "sentences" and stage.data.preprocess.next_sentence
    parts = [(here / f"pretrain-{side}.txt").read_text().split("\n\n")[:-1] for side in ("train", "heldout")]
    assert sorted(parts[0] + parts[1]) == sorted((here / "one.txt").read_text().strip().split("\n\n"))
    for n in range(12):
        (here / f"f{n:02}.txt").write_text("\n".join(texts(30, seed=n)))
    said(capsys, "init pretrain f*.txt --output many.yaml --device gpu")
    stage = load("many.yaml").stages[0]
    assert stage.data.source[0].files[-1] == "f10.txt" and stage.evaluate[0].data.source[0].files == ["f11.txt"]
    for n in range(12, 40):
        (here / f"f{n:02}.txt").write_text("\n".join(texts(30, seed=n)))
    assert "held out 2 of 40 documents" in said(capsys, "init pretrain f*.txt --output more.yaml --device cpu")
    stage = load("more.yaml").stages[0]
    assert stage.data.source[0].files == ["more-train.jsonl"] and stage.data.preprocess.next_sentence
    assert len((here / "more-train.jsonl").read_text().splitlines()) == 38
    said(capsys, "init pretrain f00.txt --output lines.yaml --device cpu")
    stage = load("lines.yaml").stages[0]
    assert not stage.data.preprocess.next_sentence and stage.objective.nsp_weight == 0
    said(capsys, "init t5 one.txt --pretrained none --eval f00.txt --output spans.yaml")
    assert load("spans.yaml").stages[0].data.preprocess.kind == "span_corruption"


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("init", "bertjax init: missing: KIND"),
        ("init clasify a.tsv", "invalid choice: 'clasify'"),
        ("init classify", "bertjax init: name either files or a data set with --data"),
        ("init classify a.tsv --data x", "bertjax init: name either files or a data set"),
        ("init classify no.tsv", "no.tsv: no such file"),
        ("init classify a.tsv --output a.txt", "--output: 'a.txt': must end in .yaml"),
        ("init classify a.tsv --output no/a.yaml", "'no': no such file or folder"),
        (
            "init classify a.tsv --text wrds",
            "--text: no column 'wrds'; the columns are: words, other, n; did you mean 'words'?",
        ),
        ("init classify a.tsv", "--label: name the column of the labels; the columns are: words, other, n"),
        (
            "init classify a.tsv --label n",
            "--text: name the column of the text (and --pair for a second one); the columns are: ",
        ),
        (
            "init classify a.tsv --label words --text other",
            "--label: column 'words' has 30 different values in 30 records",
        ),
        ("init classify one.tsv", "--label: column 'label' has only one value: '1'"),
        ("init classify few.tsv", "4 records are too few to hold some out; name held-out data with --eval"),
        ("init classify text.txt", "text.txt: classification needs records with a text and a label"),
        ("init classify numbers.tsv", "numbers.tsv: the first line has '0', which is no column name"),
        ("init classify numbers.tsv --fields a", "numbers.tsv: line 1: 3 columns, not the 1 named"),
        ("init classify text.txt --fields a", "--fields: only for tables"),
        ("init classify a.tsv text.txt", "a.tsv holds tsv and text.txt text; name files of one kind"),
        ("init classify a.doc", "a.doc: cannot tell its format; known endings:"),
        ("init classify bad.json", "bad.json: not valid JSON"),
        ("init classify bare.jsonl", "bare.jsonl: line 2: 'text' is missing, not a text; correct or remove the record"),
        ("init qa a.tsv", "a.tsv: no column 'id'; questions need id, question, context and answers"),
        ("init qa text.txt", "text.txt: holds text, not questions"),
        (
            "init t5 a.tsv",
            "--text, --target: name the columns of the inputs and the targets; the columns are: words, other, n",
        ),
        ("init pretrain a.tsv", "--text: name the column of the text; the columns are: "),
        ("init pretrain text.txt", "text.txt: one block of 1 lines cannot be split"),
        ("init pretrain empty.txt", "empty.txt: the file is empty"),
    ],
)
def test_refusals_leave_nothing_behind(here, capsys, line, message):
    rows = [f"{a}\t{b}\t{n}" for n, (a, b) in enumerate(zip(texts(30), texts(30, seed=1), strict=True))]
    (here / "a.tsv").write_text("\n".join(["words\tother\tn", *rows]))
    (here / "one.tsv").write_text("text\tlabel\n" + "some text\t1\n" * 30)
    (here / "few.tsv").write_text("text\tlabel\na\t1\nb\t0\nc\t1\nd\t0\n")
    (here / "numbers.tsv").write_text("0\tsome words\t1\n1\tother words\t0\n")
    (here / "text.txt").write_text("One line.")
    (here / "a.doc").write_text("x")
    (here / "bad.json").write_text("{bad")
    (here / "bare.jsonl").write_text('{"text": "a", "label": 1}\n{"label": 0}\n')
    (here / "empty.txt").write_text("")
    before = {path.name for path in here.iterdir()}
    error = said(capsys, line, 2)
    assert message in error and error.count("\n") == 1
    assert {path.name for path in here.iterdir()} == before


# ---- choices --------------------------------------------------------------------------------------------------------


def test_held_out_texts_are_a_fraction_of_each_label():
    keys = [(f"text {n}", "ab"[n % 10 == 0]) for n in range(1000)]
    held = choose_heldout(keys, 0.1, 2000, "records")
    counts = {label: sum(text_hash(text) in held for text, other in keys if other == label) for label in "ab"}
    assert counts == {"a": 90, "b": 10}
    assert len(choose_heldout(keys, 0.1, 50, "records")) == 50


def test_sizes_follow_the_machine(monkeypatch):
    for device, pretrained in (("cpu", None), ("gpu", "x"), ("tpu", None)):
        machine = Machine(device, pretrained)
        lengths = [machine.sequence_length(characters) for characters in (10, 200, 2000, 100_000)]
        assert lengths == sorted(lengths) and all(length % 16 == 0 for length in lengths) and lengths[0] == 32
        assert lengths[-1] == (128 if device == "cpu" else 512)
    assert recipe.fine_tuning_epochs(Machine("gpu", "x"), 10_000) == 3
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert recipe.find_device() == "cpu"
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(recipe, "NVIDIA", "/dev/null")
    monkeypatch.setattr(recipe.importlib.util, "find_spec", lambda name: "cuda" in name)
    monkeypatch.setattr(recipe, "ACCEL", "/nowhere")
    assert recipe.find_device() == "gpu"


def test_hashes_do_not_change():
    assert text_hash(" a text\n") == int(hashlib.sha256(b"a text").hexdigest()[:16], 16)


def test_rare_labels_ids_and_odd_numbers_of_a_table_with_a_column_per_label(here, capsys):
    rows = [f"{n:04x}ff,{text},{n % 2}.0,{(n // 2) % 2}.0,{int(n == 1100)}.0" for n, text in enumerate(texts(1200))]
    (here / "toxic.csv").write_text("\n".join(["id,body_text,toxic,insult,threat", *rows]) + "\n")
    out = said(capsys, "init classify toxic.csv --pretrained none --device cpu")
    assert "text 'body_text', label 'toxic, insult, threat': 3 labels" in out and "threat (1)" in out
    assert load("classify.yaml").stages[0].data.preprocess.label_columns == ["toxic", "insult", "threat"]


def test_combinations_of_labels_that_occur_once_are_held_out_too(here, capsys):
    rng = random.Random(1)
    rows = [{"text": text, "labels": rng.sample("abcdefghijkl", 5)} for text in texts(200)]
    (here / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "held out 20 of 200 records" in said(capsys, "init classify a.jsonl --pretrained none --device cpu")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"labels": [n % 2, 0, 1.0]} for n in range(30)], "line 1: 'labels' holds 0 twice; a list names the labels"),
        ([{"labels": [float(n == i) for i in range(4)]} for n in range(30)], "line 1: 'labels' holds 0 twice"),
        (
            [{"label": "['a', 'b']" if n % 2 else "[]"} for n in range(30)],
            "holds lists that are written as texts (['a'",
        ),
        ([{"label": "x" if n % 2 else 3} for n in range(30)], "line 2: 'label' is a text in some records and a number"),
        (
            [{"label": f"c{n}"} for n in range(2000)],
            "--label: column 'label' has more than 1,000 different values, too",
        ),
    ],
)
def test_labels_that_would_be_misread_are_refused(here, capsys, records, message):
    (here / "a.jsonl").write_text("\n".join(json.dumps({"text": f"a text {n}"} | r) for n, r in enumerate(records)))
    assert message in said(capsys, "init classify a.jsonl --pretrained none --device cpu", 2)
    assert not (here / "classify.yaml").exists()
