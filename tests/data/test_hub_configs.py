"""The tasks of the multi-task configurations give the same examples from `datasets` as from TFDS.

Folders are made with the features that the Hub's and TFDS's data sets have: names and orders of fields and classes are
those of nyu-mll/glue, aps/super_glue, rajpurkar/squad, abisee/cnn_dailymail and wmt/*, and of glue, super_glue, squad,
cnn_dailymail and wmt*_translate in tensorflow_datasets 4.9.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from tfds_folder import write_tfds

from bertjax.config.loading.load import load
from bertjax.config.schema.data import Task
from bertjax.config.schema.sources import HuggingFaceData, Parquet, TfdsData
from bertjax.data.preprocess.text_to_text import read_examples
from bertjax.data.sources.class_names import names_from_source
from bertjax.data.sources.records import read_records
from bertjax.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "t5"
ENTAILMENT = ["entailment", "not_entailment"]
FALSE_TRUE = ["False", "True"]
PAIR = {"sentence1": "text", "sentence2": "text"}
ANSWERS = {"text": ["sequence", "text"], "answer_start": ["sequence", "int"]}
SCHEMAS: dict[str, dict[str, Any]] = {
    "cola": {"sentence": "text", "label": ["unacceptable", "acceptable"], "idx": "int"},
    "sst2": {"sentence": "text", "label": ["negative", "positive"], "idx": "int"},
    "mrpc": {**PAIR, "label": ["not_equivalent", "equivalent"], "idx": "int"},
    "qqp": {"question1": "text", "question2": "text", "label": ["not_duplicate", "duplicate"], "idx": "int"},
    "stsb": {**PAIR, "label": "float", "idx": "int"},
    "mnli": {
        "premise": "text", "hypothesis": "text", "label": ["entailment", "neutral", "contradiction"], "idx": "int"
    },
    "qnli": {"question": "text", "sentence": "text", "label": ENTAILMENT, "idx": "int"},
    "rte": {**PAIR, "label": ENTAILMENT, "idx": "int"},
    "boolq": {"question": "text", "passage": "text", "idx": "int", "label": FALSE_TRUE},
    "cb": {"premise": "text", "hypothesis": "text", "idx": "int", "label": ["entailment", "contradiction", "neutral"]},
    "copa": {
        "premise": "text", "choice1": "text", "choice2": "text", "question": "text", "idx": "int",
        "label": ["choice1", "choice2"],
    },
    "multirc": {
        "paragraph": "text", "question": "text", "answer": "text",
        "idx": {"paragraph": "int", "question": "int", "answer": "int"}, "label": FALSE_TRUE,
    },
    "record": {
        "passage": "text", "query": "text", "entities": ["sequence", "text"], "answers": ["sequence", "text"],
        "idx": {"passage": "int", "query": "int"},
    },
    "wic": {
        "word": "text", **PAIR, "start1": "int", "start2": "int", "end1": "int", "end2": "int", "idx": "int",
        "label": FALSE_TRUE,
    },
    "wsc": {
        "text": "text", "span1_index": "int", "span2_index": "int", "span1_text": "text", "span2_text": "text",
        "idx": "int", "label": FALSE_TRUE,
    },
    "squad": {"id": "text", "title": "text", "context": "text", "question": "text", "answers": ANSWERS},
    "cnn_dailymail": {"article": "text", "highlights": "text", "id": "text"},
    "en_de": {"de": "text", "en": "text"},
    "en_fr": {"en": "text", "fr": "text"},
    "en_ro": {"en": "text", "ro": "text"},
}  # fmt: skip


def _value(kind: Any, field: str, number: int) -> Any:
    if isinstance(kind, dict):
        return {name: _value(one, name, number) for name, one in kind.items()}
    if isinstance(kind, list) and kind[0] == "sequence":
        return [_value(kind[1], field, number), _value(kind[1], field, number)]
    if isinstance(kind, list):
        return number % len(kind)
    special = {"question": ["cause", "effect"][number % 2], "query": "Who is @placeholder ?"}
    texts = {"text": special.get(field, f"The {field} {number} ."), "int": number, "float": number * 0.8}
    return texts[kind]


def _records(task: str) -> list[dict[str, Any]]:
    found = [{field: _value(kind, field, n) for field, kind in SCHEMAS[task].items()} for n in range(4)]
    for record in found if task == "wsc" else ():
        record |= {"text": "Mark told Pete many lies .", "span1_text": "Mark", "span1_index": 0}
        record |= {"span2_text": "Pete", "span2_index": 2}
    return found


def _features(kind: Any) -> Any:
    import datasets

    if isinstance(kind, dict):
        return {field: _features(one) for field, one in kind.items()}
    if isinstance(kind, list):
        return datasets.List(_features(kind[1])) if kind[0] == "sequence" else datasets.ClassLabel(names=kind)
    return datasets.Value({"text": "string", "int": "int32", "float": "float32"}[kind])


def _save(folder: Path, schema: dict[str, Any], records: list[dict[str, Any]]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(records, features=datasets.Features(_features(schema)))
    datasets.DatasetDict({"train": made}).save_to_disk(str(folder))
    return made


def test_every_task_gives_the_same_examples_from_both(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    ours, theirs = (load(CONFIGS / f"multitask_base{end}.yaml", ["tokenizer.path=x"]).tasks for end in ("", "_hub"))
    assert ours.keys() == theirs.keys() == SCHEMAS.keys() | {"c4"}
    for name, schema in SCHEMAS.items():
        records = _records(name)
        write_tfds(tmp_path / "tfds", f"own_{name}", schema, {"train": records})
        if name.startswith("en_"):  # one field with both languages there
            records, schema = [{"translation": record} for record in records], {"translation": schema}
        _save(tmp_path / name, schema, records)
        sources = [
            TfdsData(name=f"own_{name}", data_dir="tfds"),
            HuggingFaceData(name=f"./{name}", **theirs[name].source[0].model_dump(include={"split"})),
        ]
        assert [task.source[0].kind for task in (ours[name], theirs[name])] == ["tfds", "huggingface"]
        for training in (True, False):
            tasks = [
                Task(source=[source], preprocess=task[name].preprocess)
                for source, task in zip(sources, (ours, theirs), strict=True)
            ]
            first, second = (list(read_examples(task, tmp_path, training=training)) for task in tasks)
            assert first and [(e.inputs, e.targets) for e in first] == [(e.inputs, e.targets) for e in second], name
            assert [e.references for e in first] == [e.references for e in second]
    assert "tensorflow" not in sys.modules


def test_a_folder_made_by_hand_is_read_without_tensorflow(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    schema = {"text": "text", "label": ["no", "yes"], "n": "int", "score": "float", "answers": ANSWERS}
    records = [
        {"text": f"t{n} ünï", "label": n % 2, "n": n - 3, "score": n / 2, "answers": {"text": ["a"] * n,
         "answer_start": [n] * n}} for n in range(10)
    ]  # fmt: skip
    home = write_tfds(tmp_path, "hand", schema, {"train": records, "test": records[:2]})
    read = lambda split, where=tmp_path: list(  # noqa: E731
        read_records(TfdsData(name="hand", data_dir=str(where), split=split), tmp_path)
    )
    assert read("train") == read("train", home) == records and read("test") == records[:2]
    assert read("train[:80%]") + read("train[80%:]") == records and len(read("train[:80%]")) == 8
    assert names_from_source(TfdsData(name="hand", data_dir=str(home)), tmp_path, "label") == ("no", "yes")
    with pytest.raises(UserError, match="has no split 'dev'; it has: "):
        read("dev")
    assert "tensorflow" not in sys.modules


def test_class_names_of_folders_files_and_parquet(tmp_path: Path) -> None:
    """ClassLabel names are label names, from every file that `datasets` writes them to."""
    schema = {"text": "text", "label": ["never", "always"]}
    made = _save(tmp_path / "saved", schema, [{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    (tmp_path / "folder").mkdir()
    made.to_parquet(tmp_path / "folder" / "train-00000-of-00001.parquet")
    for source in (
        HuggingFaceData(name="./saved"),
        HuggingFaceData(name="./saved", split="train[:1]"),
        HuggingFaceData(name="./folder"),
        HuggingFaceData(name="./folder/train-00000-of-00001.parquet"),
        Parquet(files=["folder/*.parquet"]),
        Parquet(files=["folder/*.parquet"], split="[1:]"),
    ):
        assert names_from_source(source, tmp_path, "label") == ("never", "always"), source
        assert names_from_source(source, tmp_path, "text") is None
