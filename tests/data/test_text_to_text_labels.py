"""Labels of text-to-text tasks: names of a ClassLabel, ids out of range, hidden labels."""

import json
from pathlib import Path

import pytest

from bertjax.config.schema.data import Task, TextToText
from bertjax.config.schema.sources import HuggingFaceData, JsonLines
from bertjax.data.preprocess.text_to_text import read_examples
from bertjax.errors import UserError
from bertjax.evaluation.metrics.by_prompt import score

TEMPLATE = {"inputs": "review: {sentence}", "targets": "{label}"}


def class_label(folder: Path, order: list[str], labels: list[int]) -> HuggingFaceData:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=order)})
    rows = {"sentence": [f"s{n}" for n in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "saved"))
    return HuggingFaceData(name="saved")


@pytest.mark.parametrize(
    ("order", "options", "expected"),
    [
        (["positive", "negative"], {"prompt": "glue_sst2"}, ["positive", "negative"]),  # not the prompt's order
        (["Positive", "NEGATIVE"], {"prompt": "glue_sst2"}, ["positive", "negative"]),
        (["neg", "pos"], {"prompt": "glue_sst2"}, ["negative", "positive"]),  # names that say nothing to the prompt
        (["neg", "pos"], TEMPLATE, ["neg", "pos"]),
        (["neg", "pos"], TEMPLATE | {"labels": ["bad", "good"]}, ["bad", "good"]),  # the configuration goes first
    ],
)
def test_the_names_of_a_class_label_are_the_targets(tmp_path, order, options, expected):
    task = Task(source=class_label(tmp_path, order, [0, 1]), preprocess=TextToText(**options))
    for training in (True, False):
        assert [e.targets for e in read_examples(task, tmp_path, training=training)] == expected


@pytest.mark.parametrize("options", [{"prompt": "glue_sst2"}, TEMPLATE | {"labels": ["bad", "good"]}])
@pytest.mark.parametrize("hidden", [-1, None, "", "-1"])
def test_hidden_labels_are_left_out_of_scores_and_refused_in_training(tmp_path, options, hidden):
    rows = [{"sentence": "a", "label": 1}, {"sentence": "b", "label": hidden}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(source=JsonLines(files=["a.jsonl"]), preprocess=TextToText(**options))
    examples = list(read_examples(task, tmp_path))
    found = score(["accuracy"], examples, [examples[0].targets, "anything"], ("bad", "good"))
    assert found == {"accuracy": 100.0, "examples": 1}
    with pytest.raises(UserError, match="a.jsonl: line 2: its label or answer is hidden; train on records that have"):
        list(read_examples(task, tmp_path, training=True))


@pytest.mark.parametrize(("options", "label"), [({"prompt": "glue_sst2"}, 2), (TEMPLATE | {"labels": ["a", "b"]}, 2)])
def test_ids_out_of_range_are_refused_by_line(tmp_path, options, label):
    (tmp_path / "a.jsonl").write_text(json.dumps({"sentence": "a", "label": label}))
    with pytest.raises(UserError, match=r"a.jsonl: line 1: label '2' is (none of|not in)"):
        list(read_examples(Task(source=JsonLines(files=["a.jsonl"]), preprocess=TextToText(**options)), tmp_path))
