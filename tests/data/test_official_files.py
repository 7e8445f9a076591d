"""The benchmarks' own files through their prompts.

Records are in the layouts published at super.gluebenchmark.com and gluebenchmark.com. Expected texts are those of t5's
preprocessors on what tensorflow/datasets (super_glue_dataset_builder.py) makes of these records.
"""

import json
from pathlib import Path

import pytest

from bertjax.config.schema.data import Task, TextToText
from bertjax.config.schema.sources import HuggingFaceData, JsonLines, Tsv
from bertjax.data.preprocess.text_to_text import read_examples
from bertjax.errors import UserError

MULTIRC = {
    "idx": 7, "version": 1.1,
    "passage": {
        "text": "<b>Sent 1: </b>Rome is old.<br><b>Sent 2: </b>It is big.<br>",
        "questions": [
            {"question": "What is old?", "idx": 21,
             "answers": [{"text": "Rome", "idx": 90, "label": 1}, {"text": "Bonn", "idx": 91, "label": 0}]},
            {"question": "What is big?", "idx": 22, "answers": [{"text": "It", "idx": 92, "label": 1}]},
        ],
    },
}  # fmt: skip
RECORD = {
    "source": "Daily mail", "idx": 3,
    "passage": {
        "text": "Ada met Bob.\n@highlight\nAda left Rome",
        "entities": [{"start": start, "end": end} for start, end in ((8, 10), (0, 2), (24, 26), (33, 36))],
    },
    "qas": [
        {"query": "@placeholder left.", "idx": 11,
         "answers": [{"start": 24, "end": 26, "text": "Ada"}, {"start": 0, "end": 2, "text": "Ada"}]},
        {"query": "@placeholder is old.", "idx": 12, "answers": [{"start": 33, "end": 36, "text": "Rome"}]},
    ],
}  # fmt: skip
WSC = {
    "text": "Mark told Pete many lies, which Pete included.", "idx": 0, "label": True,
    "target": {"span2_index": 5, "span1_index": 0, "span1_text": "Mark", "span2_text": "which"},
}  # fmt: skip


def examples(tmp_path: Path, prompt: str, *records: dict, training: bool = False, **options):
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    task = Task(source=JsonLines(files=["val.jsonl"]), preprocess=TextToText(prompt=prompt, **options))
    return [(e.inputs, e.targets) for e in read_examples(task, tmp_path, training=training)]


def test_multirc_as_published(tmp_path: Path) -> None:
    paragraph = "paragraph: Sent 1: Rome is old. Sent 2: It is big. "
    expected = [
        ("multirc question: What is old? answer: Rome " + paragraph, "True"),
        ("multirc question: What is old? answer: Bonn " + paragraph, "False"),
        ("multirc question: What is big? answer: It " + paragraph, "True"),
    ]
    assert examples(tmp_path, "super_glue_multirc", MULTIRC) == expected
    task = Task(source=JsonLines(files=["val.jsonl"]), preprocess=TextToText(prompt="super_glue_multirc"))
    found = list(read_examples(task, tmp_path))
    assert [example.extra["group"] for example in found] == [21, 21, 22]
    assert found[1].extra["id"] == {"paragraph": 7, "question": 21, "answer": 91}
    flat = {"paragraph": "Rome.", "question": "q", "answer": "a", "label": 1, "idx": {"question": 0}}  # TFDS's
    assert examples(tmp_path, "super_glue_multirc", flat) == [
        ("multirc question: q answer: a paragraph: Rome.", "True")
    ]


def test_record_as_published(tmp_path: Path) -> None:
    passage = "entities: Ada, Bob, Rome passage: Ada met Bob. Ada left Rome"
    expected = [
        (f"record query: @placeholder left. {passage}", "Ada"),
        (f"record query: @placeholder is old. {passage}", "Rome"),
    ]
    assert examples(tmp_path, "super_glue_record", RECORD) == expected
    assert examples(tmp_path, "super_glue_record", RECORD, training=True) == expected
    hidden = RECORD | {"qas": [{"query": "@placeholder left.", "idx": 11}]}  # as in test.jsonl
    assert [targets for _, targets in examples(tmp_path, "super_glue_record", hidden)] == ["<unk>"]


PUBLISHED = {
    "super_glue_boolq": (
        {"question": "is it old", "passage": "Rome -- it is.", "idx": 0, "label": True},
        ("boolq passage: Rome -- it is. question: is it old", "True"),
    ),
    "super_glue_cb": (
        {"premise": "p", "hypothesis": "h", "label": "neutral", "idx": 0}, ("cb hypothesis: h premise: p", "neutral"),
    ),
    "super_glue_copa": (
        {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1, "idx": 0},
        ("copa choice1: a choice2: b premise: p question: cause", "choice2"),
    ),
    "super_glue_rte": (
        {"premise": "p", "hypothesis": "h", "label": "not_entailment", "idx": 0},
        ("rte hypothesis: h premise: p", "not_entailment"),
    ),
    "super_glue_wic": (
        {"word": "w", "sentence1": "a", "sentence2": "b", "idx": 0, "label": False, "start1": 1, "version": 1.1},
        ("wic sentence1: a sentence2: b word: w", "False"),
    ),
    "super_glue_wsc": (WSC, ("wsc: Mark told Pete many lies, *which* Pete included.", "Mark")),
    "super_glue_axb": (
        {"sentence1": "a", "sentence2": "b", "idx": 0, "label": "entailment", "logic": "Negation"},
        ("rte hypothesis: b premise: a", "entailment"),
    ),
    "super_glue_axg": (
        {"premise": "p", "hypothesis": "h", "idx": 0, "label": "entailment", "pair_id": 1},
        ("rte hypothesis: h premise: p", "entailment"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("prompt", PUBLISHED)
def test_the_other_files_of_superglue(tmp_path: Path, prompt: str) -> None:
    record, expected = PUBLISHED[prompt]
    assert examples(tmp_path, prompt, record) == [expected]
    unlabelled = {key: value for key, value in record.items() if key != "label"}  # as in test.jsonl
    (found,) = examples(tmp_path, prompt, unlabelled)
    assert found == (expected[0], expected[1] if prompt == "super_glue_wsc" else "<unk>")
    if prompt != "super_glue_wsc":
        with pytest.raises(UserError, match=r"val\.jsonl: line 1: no field 'label'"):
            examples(tmp_path, prompt, unlabelled, training=True)


GLUE = {  # prompt: header and a row as published, the example
    "glue_sst2": ("sentence\tlabel\nit 's \"fine\t1\n", ("sst2 sentence: it 's \"fine", "positive")),
    "glue_mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\t\"a\tb\"\n",
        ('mrpc sentence1: "a sentence2: b"', "equivalent"),
    ),
    "glue_qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta?\tb?\t0\n",
        ("qqp question1: a? question2: b?", "not_duplicate"),
    ),
    "glue_stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tmain\tf\t2012\t1\tnone\tnone\ta\tb\t3.25\n",
        ("stsb sentence1: a sentence2: b", "3.2"),
    ),
    "glue_mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n0\t1\t1n\tg\t(\t(\t(\t(\tp\th\tneutral\tneutral\n",
        ("mnli hypothesis: h premise: p", "neutral"),
    ),
    "glue_qnli": ("index\tquestion\tsentence\tlabel\n0\tq\ts\tentailment\n",
                  ("qnli question: q sentence: s", "entailment")),
    "glue_rte": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n",
                 ("rte sentence1: a sentence2: b", "not_entailment")),
    "glue_ax": ("index\tsentence1\tsentence2\n0\tp\th\n", ("mnli hypothesis: h premise: p", "<unk>")),
}  # fmt: skip


@pytest.mark.parametrize("prompt", GLUE)
def test_the_tables_of_glue(tmp_path: Path, prompt: str) -> None:
    text, expected = GLUE[prompt]
    (tmp_path / "dev.tsv").write_text(text)
    for source in (Tsv(files=["dev.tsv"]), HuggingFaceData(name="dev.tsv")):
        task = Task(source=source, preprocess=TextToText(prompt=prompt))
        assert [(e.inputs, e.targets) for e in read_examples(task, tmp_path)] == [expected]


def test_cola_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("gj04\t1\t\tIt is.\ngj04\t0\t*\tIs it it.\n")
    task = Task(source=Tsv(files=["dev.tsv"]), preprocess=TextToText(prompt="glue_cola"))
    with pytest.raises(UserError, match=r"dev\.tsv: line 2: .*'fields: \[source, label, mark, sentence\]'"):
        list(read_examples(task, tmp_path))
    task = Task(
        source=Tsv(files=["dev.tsv"], fields=["source", "label", "mark", "sentence"]), preprocess=task.preprocess
    )
    found = [(e.inputs, e.targets) for e in read_examples(task, tmp_path)]
    assert found == [("cola sentence: It is.", "acceptable"), ("cola sentence: Is it it.", "unacceptable")]


def test_fields_that_are_missing_are_named_with_the_line_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: no field 'sentence1'; .* preprocess\.fields\.sentence1=FIELD"):
        examples(tmp_path, "glue_mrpc", {"a": "x", "b": "y", "label": 1})
    given = {"a": "x", "b": "y", "label": 1}
    fields = {"sentence1": "a", "sentence2": "b"}
    assert examples(tmp_path, "glue_mrpc", given, fields=fields) == [("mrpc sentence1: x sentence2: y", "equivalent")]


BROKEN = [
    ("super_glue_multirc", {"passage": {}}, "passage: 'text' is missing"),
    ("super_glue_multirc", {"passage": {"text": "a", "questions": [3]}}, "question 1 is a int, not an object"),
    ("super_glue_multirc", {"passage": {"text": "a", "questions": [{"question": "q", "answers": [{"text": 1}]}]}},
     "question 1, answer 1: 'text' is a int"),
    ("super_glue_record", {"passage": {"text": "a", "entities": [{"start": "0", "end": 1}]}}, "'start' is a str"),
    ("super_glue_record", {"passage": {"text": "a", "entities": []}, "qas": [{"query": "q", "answers": "a"}]},
     "question 1: 'answers' is a str, not a list"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "record", "says"), BROKEN)
def test_broken_passages(tmp_path: Path, prompt: str, record: dict, says: str) -> None:
    with pytest.raises(UserError) as caught:
        examples(tmp_path, prompt, record)
    assert "val.jsonl: line 1: " in str(caught.value) and says in str(caught.value)


def test_real_tables(shared_data) -> None:
    """As many records as the files have lines, and the labels that their lines begin or end with."""
    folder = shared_data / "nc" / "mrpc"
    for name, source in {
        "msr-para-train.tsv": Tsv(files=["msr-para-train.tsv"]),
        "msr-para-val.tsv": HuggingFaceData(name="msr-para-val.tsv"),
    }.items():
        rows = (folder / name).read_text("utf-8-sig").removesuffix("\n").split("\n")[1:]
        task = Task(source=source, preprocess=TextToText(prompt="glue_mrpc"))
        found = list(read_examples(task, folder))
        assert len(found) == len(rows) in (3576, 500)
        assert [example.extra["label"] for example in found] == [int(row[0]) for row in rows]
        cells = [row.rstrip("\r").split("\t") for row in rows]
        assert [e.inputs for e in found] == [f"mrpc sentence1: {c[3]} sentence2: {c[4]}" for c in cells]
    source = HuggingFaceData(name=str(shared_data / "glue" / "WNLI" / "train.tsv"))
    found = list(read_examples(Task(source=source, preprocess=TextToText(prompt="glue_wnli")), folder))
    assert len(found) == 565
