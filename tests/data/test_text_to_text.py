"""Text to text: templates, and reading every kind of source, real data too."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.config.schema.data import Task, TextToText
from bertjax.config.schema.sources import JsonLines, StdlibQa
from bertjax.data.preprocess.text_to_text import class_names, read_examples, template_prompt
from bertjax.errors import UserError


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def task(files: str = "data.jsonl", limit: int | None = None, **options) -> Task:
    return Task(source=JsonLines(files=[files]), preprocess=TextToText(**options), limit=limit)


# ---- templates ------------------------------------------------------------------------------------------------------


def filled(record: dict, **options):
    (example,) = template_prompt(TextToText(**({"inputs": "i", "targets": "t"} | options)))(record)
    return example


def test_a_template():
    example = filled(
        {"question": "Who?", "n": 3, "share": 0.5, "sure": True, "parts": ["a", "b"], "id": 8, "in": {"deep": "D"}},
        inputs="ask: {question} {n}/{share} {{x}} {sure} {parts} {in/deep}",
        targets="{n}",
    )
    assert example.inputs == "ask: Who? 3/0.5 {x} True a b D"
    assert (example.targets, example.references, example.extra) == ("3", ("3",), {"id": 8})


@given(st.text(max_size=20), st.text(max_size=20))
def test_braces_are_escaped_by_doubling(before, value):
    template = before.replace("{", "{{").replace("}", "}}") + "{field}"
    assert filled({"field": value}, inputs=template).inputs == before + value


@pytest.mark.parametrize("template", ["{", "a } b", "{a{b}", "{}"])
def test_a_lone_brace_is_refused(template):
    with pytest.raises(UserError, match=r"preprocess.inputs: .* has a lone '[{}]'"):
        filled({"a": "1"}, inputs=template)


def test_every_answer_of_a_list_is_a_reference():
    example = filled({"answers": ["Ann", "Bo", "Ann"], "place": "Rome"}, targets="{place}: {answers}")
    assert (example.targets, example.references) == ("Rome: Ann", ("Rome: Ann", "Rome: Bo"))
    nobody = filled({"answers": [], "place": "Rome"}, targets="{place}: {answers}")
    assert (nobody.targets, nobody.references) == ("", ())
    squad = filled({"answers": {"text": ["x", "y"], "answer_start": [0, 1]}}, targets="{answers}")
    assert squad.references == ("x", "y")


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["bad", "good"], [1, "1", 1.0, "1.0", "Good"]),
        ({"0": "bad", "1": "good"}, [1, "1", 1.0]),
        ({"False": "bad", "True": "good"}, [True]),
        ({"false": "bad", "true": "good"}, [True, "true"]),
    ],
)
def test_labels_by_value_or_by_number(labels, values):
    options = {"targets": "{label} film", "labels": labels}
    for value in values:
        example = filled({"label": value}, **options)
        assert (example.targets, example.extra) == ("good film", {"label": 1})
    assert class_names(TextToText(inputs="i", **options)) == ("bad", "good")
    for wrong in (7, "fine", -2):
        with pytest.raises(UserError, match=f"label '{wrong}' is not in 'labels'"):
            filled({"label": wrong}, **options)
    with pytest.raises(UserError, match="need a {field} in the targets"):
        filled({}, targets="always", labels=labels)


def test_labels_and_fields_of_a_prompt(tmp_path: Path):
    write(tmp_path / "data.jsonl", [{"a": "P", "b": "H", "judgment": "NO"}, {"a": "P", "b": "H", "judgment": "YES"}])
    options = {
        "prompt": "super_glue_rte",
        "fields": {"premise": "a", "hypothesis": "b", "label": "judgment"},
        "labels": {"YES": "entailment", "NO": "not_entailment"},
    }
    found = list(read_examples(task(**options), tmp_path))
    assert [(e.inputs, e.targets, e.extra["label"]) for e in found] == [
        ("rte hypothesis: H premise: P", "not_entailment", 1),
        ("rte hypothesis: H premise: P", "entailment", 0),
    ]
    assert class_names(TextToText(**options)) == ("entailment", "not_entailment")
    assert class_names(TextToText(prompt="squad")) is None


# ---- reading --------------------------------------------------------------------------------------------------------

ROWS = [{"question": "Who?", "answer": "Ann"}, {"question": "Where?", "answer": "Rome"}]


def formats(folder: Path) -> dict[str, dict]:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(folder / "a.jsonl", ROWS)
    (folder / "a.json").write_text(json.dumps(ROWS, indent=1))
    (folder / "a.tsv").write_text("question\tanswer\n" + "".join("\t".join(row.values()) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    found: dict[str, dict] = {kind: {"kind": kind, "files": [f"a.{kind}"]} for kind in ("jsonl", "json", "tsv")}
    found["parquet"] = {"kind": "parquet", "files": ["a.parquet"]}
    found["huggingface"] = {"kind": "huggingface", "name": "saved"}
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_format_gives_the_same_examples(tmp_path: Path):
    template = TextToText(inputs="question: {question}", targets="{answer}")
    for source in formats(tmp_path).values():
        found = list(read_examples(Task(source=source, preprocess=template), tmp_path))
        assert [(e.inputs, e.targets, e.references) for e in found] == [
            ("question: Who?", "Ann", ("Ann",)),
            ("question: Where?", "Rome", ("Rome",)),
        ], source


def test_squad_files(tiny_project: Path):
    squad = TextToText(prompt="squad")
    source = {"kind": "squad", "files": ["heldout.json"]}
    example = next(iter(read_examples(Task(source=source, preprocess=squad), tiny_project)))
    assert example.inputs.startswith("question: Where is the ") and " ? context: The " in example.inputs
    assert example.extra["id"].startswith("3-0-") and example.references == (example.targets,)
    template = TextToText(inputs="{title}|{question}", targets="{answers}")
    templated = next(iter(read_examples(Task(source=source, preprocess=template), tiny_project)))
    assert templated.inputs.startswith("t0|Where") and templated.extra == {"id": example.extra["id"]}


@pytest.mark.slow
def test_stdlib_questions(tmp_path: Path):
    stdlib = Task(source=StdlibQa(split="heldout"), preprocess=TextToText(prompt="squad"), limit=3)
    assert len(list(read_examples(stdlib, tmp_path))) == 3


def test_sources_are_read_one_after_another_and_the_limit_counts_records(tmp_path: Path):
    write(tmp_path / "data.jsonl", [{"q": str(n)} for n in range(3)])
    two = Task(
        source=[JsonLines(files=["data.jsonl"])] * 2, preprocess=TextToText(inputs="{q}", targets="{q}"), limit=5
    )
    found = [[e.inputs for e in read_examples(two, tmp_path, seed=seed)] for seed in range(20)]
    everything = ["0", "1", "2", "0", "1", "2"]
    left_out = [everything[:n] + everything[n + 1 :] for n in range(6)]  # in the order of the source
    assert all(inputs in left_out for inputs in found) and len(set(map(tuple, found))) > 3


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ('{"q": "Q"}', "data.jsonl: line 2: no field 'a'; there are: q"),
        ('{"q": null, "a": "A"}', "data.jsonl: line 2: field 'q' holds nothing"),
        ('{"q": "\\ud800", "a": "A"}', "data.jsonl: line 2: 'q' holds a lone surrogate"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, record: str, says: str):
    (tmp_path / "data.jsonl").write_text('{"q": "Q", "a": "A"}\n' + record + "\n")
    with pytest.raises(UserError) as caught:
        list(read_examples(task(inputs="{q}", targets="{a}"), tmp_path))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_source_without_fields_is_refused(tmp_path: Path):
    plain = Task(source={"kind": "stdlib_docs"}, preprocess=TextToText(prompt="squad"))
    with pytest.raises(UserError, match="source of kind 'stdlib_docs': has no fields"):
        list(read_examples(plain, tmp_path))


def test_what_is_trained_on_and_what_is_scored(tmp_path: Path):
    wsc = {"text": "Mitchell asked Tom if he could lend some money.", "span2_text": "he", "span2_index": 4}
    write(tmp_path / "wsc.jsonl", [wsc | {"span1_text": name, "label": name == "Tom"} for name in ("Mitchell", "Tom")])
    cloze = {"query": "@placeholder ran.", "entities": ["Ann", "Bo"], "passage": "P.", "answers": ["Ann", "Bo"]}
    write(tmp_path / "record.jsonl", [cloze])
    for name, training, expected in (
        ("wsc", True, ["Tom"]),
        ("wsc", False, ["Mitchell", "Tom"]),
        ("record", True, ["Ann", "Bo"]),
        ("record", False, ["Ann"]),
    ):
        found = read_examples(task(f"{name}.jsonl", prompt=f"super_glue_{name}"), tmp_path, training=training)
        assert [e.targets for e in found] == expected


# ---- real data ------------------------------------------------------------------------------------------------------

REAL = {
    "SQuAD": (
        {"kind": "squad", "files": ["squad/dev-v1.1.first-half.json.gz"]}, {"prompt": "squad"}, 5696,
        "question: Which NFL team represented the AFC at Super Bowl 50 ? context: Super Bowl 50 was an American "
        "football game to determine the champion of the National Football League ( NFL ) for the 2015 season . ",
        "Denver Broncos",
    ),
    "WNLI": (
        {"kind": "tsv", "files": ["glue/WNLI/dev.tsv"]}, {"prompt": "glue_wnli", "fields": {"id": "index"}}, 70,
        "wsc: Jackson was greatly influenced by Arnold, though *he* lived two centuries earlier.", "Arnold",
    ),
    "MRPC": (
        {"kind": "tsv", "files": ["nc/mrpc/msr-para-val.tsv"]},
        {"prompt": "glue_mrpc", "fields": {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}},
        500,
        "mrpc sentence1: Stocks have rallied sharply for more than three months in anticipation of a rebound in the "
        "second half of the year. sentence2: Stocks have rallied ", "equivalent",
    ),
    "SICK": (
        {"kind": "tsv", "files": ["nc/sick/SICK_trial.txt"]},
        {"prompt": "glue_stsb", "fields": {"sentence1": "sentence_A", "sentence2": "sentence_B",
                                           "label": "relatedness_score", "id": "pair_ID"}}, 500,
        "stsb sentence1: The young boys are playing outdoors and the man is smiling nearby sentence2: There is no boy ",
        "3.6",
    ),
    "sentence polarity": (
        {"kind": "tsv", "files": ["classification/sentence_polarity/dev.tsv.gz"]}, {"prompt": "glue_sst2"}, 1042,
        "sst2 sentence: it's so laddish and juvenile , only teenage boys could possibly find it funny .", "negative",
    ),
    "SciTLDR": (
        {"kind": "jsonl", "files": ["summarization/scitldr/dev.jsonl.gz"]},
        {"prompt": "summarize", "fields": {"document": "source", "summary": "target"}}, 618,
        "summarize: Mixed precision training (MPT) is becoming a practical technique to improve the speed and energy "
        "efficiency of training deep neural networks by leveraging the fast hardware support for IEEE half-precision "
        "floating point that is available in existing GPUs. MPT is typically used",
        "We devise adaptive loss scaling to improve mixed precision training that surpass the state-of-the-art "
        "results.",
    ),
    "XQuAD": (
        {"kind": "jsonl", "files": ["translation/xquad_*.gz"]},
        {"prompt": "translate", "languages": ["English", "German"]}, 752,
        "translate English to German: The Panthers defense gave up just 308 points,", None,
    ),
    "WebQuestions": (
        {"kind": "json", "files": ["closed_book_qa/webquestions/val.json"]},
        {"inputs": "wq question: {qText}", "targets": "{answers}"}, 755,
        "wq question: what kind of money to take to bahamas?", "Bahamian dollar",
    ),
    "NQ-open": (
        {"kind": "jsonl", "files": ["closed_book_qa/nq_open/NQ-open.dev.jsonl"]},
        {"inputs": "nq question: {question}", "targets": "{answer}"}, 3608,
        "nq question: when was the last time anyone was on the moon", "14 December 1972 UTC",
    ),
    "OpenTriviaQA": (
        {"kind": "jsonl", "files": ["closed_book_qa/opentriviaqa.jsonl.xz"]}, {"prompt": "trivia_qa_closed_book"},
        44031,
        "trivia_qa question: Three of these animals hibernate. Which one does not?", "Sloth",
    ),
    "BLiMP": (
        {"kind": "jsonl", "files": ["classification/blimp/blimp_57.jsonl.xz"]},
        {"inputs": "{UID}: {sentence_bad}", "targets": "{sentence_good}"}, 57000,
        "anaphor_gender_agreement: Katherine can't help himself.", "Katherine can't help herself.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_data(shared_data: Path, name: str):
    source, options, records, inputs, targets = REAL[name]
    found = list(read_examples(Task(source=source, preprocess=TextToText(**options)), shared_data))
    assert len(found) == records
    assert found[0].inputs.startswith(inputs) and targets in (found[0].targets, None)
    assert all(example.references and example.targets == example.references[0] for example in found)
