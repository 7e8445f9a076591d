"""Labels become ids: by the names of the classifier, by the source's own names, by number; and what is refused."""

import importlib.resources
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertjax.config.schema.data import Classify, Task
from bertjax.config.schema.sources import HuggingFaceData, JsonLines, Parquet, TfdsData, Tsv
from bertjax.data.jobs.job_plan import PrepareContext
from bertjax.data.preprocess.classify import plan_classify
from bertjax.data.preprocess.label_survey import survey_labels, with_label_names
from bertjax.data.preprocess.labels import LabelEncoder, build_label_encoder, report_lines
from bertjax.data.sources.class_names import ClassSpec, find_class_id, names_from_source
from bertjax.errors import UserError

HEAD = ("positive", "Neutral", "bad")  # the ids of a classifier, in no alphabetical order


def decided(labels: Sequence[Any], classes: ClassSpec, given: Sequence[str] | None = None) -> LabelEncoder:
    located = [(f"a.jsonl: line {n}", {"text": "a", "label": label}) for n, label in enumerate(labels, 1)]
    found = with_label_names(located, given, "label") if given else located
    return build_label_encoder(survey_labels(found, Classify(), given, "labels" if given else None), classes)


def ids(labels: Sequence[Any], classes: ClassSpec, given: Sequence[str] | None = None) -> list[float | None]:
    """Of each label the id or number; None where it is hidden."""
    found = decided(labels, classes, given)
    named = [given[n] if given and isinstance(n, int) and n >= 0 else n for n in labels]
    made = [found.encode(label) for label in named]
    return [number if weight else None for number, weight in made]


@pytest.mark.parametrize(
    ("labels", "classes", "given", "expected"),
    [
        (["bad", "positive", "neutral"], ClassSpec(3, HEAD), None, [2, 0, 1]),
        ([" BAD ", "Positive"], ClassSpec(3, HEAD), None, [2, 0]),  # case and outer space apart
        ([0, 1, 2], ClassSpec(3, HEAD), None, [0, 1, 2]),
        ([0, 1, 2], ClassSpec(3, HEAD), ["bad", "neutral", "positive"], [2, 1, 0]),  # a ClassLabel in another order
        ([0.0, 2.0], ClassSpec(3, HEAD), None, [0, 2]),
        (["0", "2.0"], ClassSpec(3, HEAD), None, [0, 2]),
        ([True, False], ClassSpec(2, ("true", "false")), None, [0, 1]),
        ([True, False], ClassSpec(2, ("no", "yes"), required=True), None, [1, 0]),
        ([1, 5], ClassSpec(5, ("1", "2", "3", "4", "5")), None, [0, 4]),  # names that are numbers are names
        ([-1, 2], ClassSpec(4, ("-1", "0", "1", "2")), None, [0, 3]),
        (["yes", "no"], ClassSpec(2), None, [1, 0]),  # without a head: sorted
        (["no"], ClassSpec(2), ["yes", "no"], [1]),  # named by the configuration: a sample may lack one
        ([1.0, 0.0], ClassSpec(2), None, [1, 0]),
        (["1", "0"], ClassSpec(2), None, [1, 0]),
        (["1", "10", "2"], ClassSpec(3), None, [0, 2, 1]),  # ratings, in the order of numbers
        (["-1", "1", "0"], ClassSpec(3), None, [0, 2, 1]),
        (["LABEL_1", "LABEL_0"], ClassSpec(2, None, required=True), None, [1, 0]),
        ([True, False], ClassSpec(2), None, [1, 0]),
        ([1, -1, None, 0], ClassSpec(2, keep_unlabeled=True), None, [1, None, None, 0]),
        (["a", "", "-1", "b"], ClassSpec(2, ("b", "a"), True, keep_unlabeled=True), None, [1, None, None, 0]),
        (["1", "-1", "0"], ClassSpec(2, keep_unlabeled=True), None, [1, None, 0]),
        (["a", "-1", "b", -1], ClassSpec(2, keep_unlabeled=True), None, [0, None, 1, None]),
        (["4.500", "2", "0.0"], ClassSpec(1), None, [4.5, 2, 0]),  # STS-B's own TSV
        ([1, 0.5, -1.0], ClassSpec(1), None, [1, 0.5, -1]),
        ([3.8, 0, 5.0], ClassSpec(), None, [3.8, 0, 5]),
    ],
)
def test_ids(labels, classes, given, expected):
    assert ids(labels, classes, given) == expected


@pytest.mark.parametrize(
    ("labels", "classes", "given", "message"),
    [
        (["bad", "good"], ClassSpec(3, HEAD, required=True), None, "line 2: label 'good' is not one of those: pos"),
        (["a", "b"], ClassSpec(2, None, required=True), None, "its labels are texts, the training data's were numbers"),
        ([0, 3], ClassSpec(3), None, "line 2: 'label' is 3, but ids go from 0 to 2 .*, or set objective.num_labels=4"),
        ([0, 3], ClassSpec(3, HEAD, required=True), None, "line 2: label '3' is not one of those"),
        ([0, 7], ClassSpec(2), ["a", "b"], "line 2: label '7' is not one of those: a, b"),
        ([0, -2], ClassSpec(2), None, "line 2: 'label' is -2"),
        ([0, -1], ClassSpec(2), None, "line 2: 'label' is -1; leave out records without a label"),
        (["a", "", "b"], ClassSpec(2), None, "line 2: 'label' is empty or null; leave out records without a label"),
        ([-1, -1], ClassSpec(2, keep_unlabeled=True), None, "none of the 2 records has a label"),
        ([-1.0, -1.0], ClassSpec(1, keep_unlabeled=True), None, "none of the 2 records has a label"),
        ([0, 0.5], ClassSpec(3), None, "num_labels is 3 but .*line 2 has label 0.5, .*; set objective.num_labels=1"),
        (["0.5", "1.5", "2"], ClassSpec(2), None, "the data have 3 labels .*=3, or to 1 for regression"),
        (["a", "b"], ClassSpec(3), None, "the data have 2 labels .a, b.*=2, or name all of them: preprocess.labels"),
        (["1", "x"], ClassSpec(1), None, "regression. but the labels are texts .'x' at a.jsonl: line 2"),
        ([1.0, float("nan")], ClassSpec(1), None, "line 2: 'label' is nan"),
        (["1.0", "nan"], ClassSpec(1), None, "regression. but the labels are texts"),
        ([1, "x"], ClassSpec(2), None, "a text in some records and a number in others"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused_by_record(labels, classes, given, message):
    with pytest.raises(UserError, match=message) as caught:
        ids(labels, classes, given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 260


def test_other_names_than_the_heads_are_taken_for_another_task():
    found = decided(["up", "down", "up"], ClassSpec(2, ("yes", "no")))
    assert found.names == ("down", "up") and found.decided_by == "data"
    part = decided([0, 1], ClassSpec(3, HEAD), ["bad", "neutral", "mixed"])  # the third class alone is another one
    assert part.names == ("bad", "neutral", "mixed") and part.decided_by == "labels"
    assert decided(["Yes", "yes"], ClassSpec(2, ("Yes", "no"))).decided_by == "start"  # two spellings of one class


def test_names_that_are_alike_but_for_case_are_told_apart_by_spelling():
    assert [find_class_id(label, ("a", "b")) for label in ("1e999", float("inf"), 10**400, "1.0")] == [None] * 3 + [1]
    assert [find_class_id(name, ("Us", "us")) for name in ("us", "Us", "US")] == [1, 0, None]


# ---- names in data sets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def class_label(tmp_path_factory) -> Path:
    """A data set with a ClassLabel, saved as a folder and as Parquet; its third label is hidden."""
    datasets = pytest.importorskip("datasets")
    home = tmp_path_factory.mktemp("class-label")
    features = datasets.Features({
        "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "neutral", "positive"]),
    })  # fmt: skip
    rows = {"text": ["a", "b", "c"], "label": [0, 2, -1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(str(home / "saved"))
    data.to_parquet(str(home / "rows.parquet"))
    return home


@pytest.mark.parametrize(
    "source", [HuggingFaceData(name="saved"), HuggingFaceData(name="rows.parquet"), Parquet(files=["rows.parquet"])]
)
def test_a_class_label_is_matched_by_its_names(class_label, source):
    assert names_from_source(source, class_label, "label") == ("bad", "neutral", "positive")
    assert (
        names_from_source(source, class_label, "text") is None
        and names_from_source(source, class_label, "none") is None
    )
    task = Task(source=source, preprocess=Classify())
    classes = ClassSpec(3, HEAD, required=True, keep_unlabeled=True)
    work = PrepareContext(task, "t", None, 0, class_label, class_label, 1, classes, print)  # type: ignore[arg-type]
    plan = plan_classify(work)
    (records,) = plan.arguments
    assert [plan.shared.labels.encode(record["label"]) for record in records] == [(2, 1), (0, 1), (0, 0)]
    assert plan.facts["labels"] == list(HEAD) and plan.facts["hidden"] == 1
    assert report_lines(plan.facts, training=False) == [
        "labels matched by name: the data have the order bad, neutral, positive; ids here are bad=2, neutral=1, "
        "positive=0",
        "1 of 3 records have no label and are left out of the scores",
    ]


def test_names_of_the_configuration_go_before_those_of_the_data_set(class_label):
    task = Task(source=HuggingFaceData(name="saved"), preprocess=Classify(labels=["x", "y", "z"]))
    classes = ClassSpec(3, ("z", "y", "x"), keep_unlabeled=True)
    work = PrepareContext(task, "t", None, 0, class_label, class_label, 1, classes, print)  # type: ignore[arg-type]
    plan = plan_classify(work)
    (records,) = plan.arguments
    assert [plan.shared.labels.encode(record["label"]) for record in records] == [(2, 1), (0, 1), (0, 0)]


def test_the_limit_takes_classes_from_all_of_a_sorted_file(tmp_path: Path):
    rows = "".join(f"text {n}\t{int(n >= 500)}\n" for n in range(1000))
    (tmp_path / "sst2.tsv").write_text("sentence\tlabel\n" + rows)
    task = Task(source=Tsv(files=["sst2.tsv"]), preprocess=Classify(text_a="sentence"), limit=64)
    made = []
    for seed in (1, 1, 2):
        work = PrepareContext(task, "t", None, seed, tmp_path, tmp_path, 1, ClassSpec(2), print)  # type: ignore[arg-type]
        (records,) = plan_classify(work).arguments
        assert np.bincount([int(record["label"]) for record in records]).min() > 16
        made.append([record["sentence"] for record in records])
    assert made[0] == made[1] != made[2] and len(made[0]) == 64
    assert made[0] == sorted(made[0], key=lambda text: int(text.split()[1]))


def test_a_source_without_names_has_none(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n')
    assert names_from_source(JsonLines(files=["a.jsonl"]), tmp_path, "label") is None
    assert names_from_source(HuggingFaceData(name="a.jsonl"), tmp_path, "label") is None


@pytest.mark.slow
def test_a_class_label_of_tfds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)  # as in test_sources

    class Mood(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["bad", "neutral", "positive"])
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": ((n, {"text": f"t{n}", "label": n % 3}) for n in range(6))}

        def _generate_examples(self):
            raise NotImplementedError

    Mood(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = TfdsData(name="mood", data_dir=str(tmp_path))
    assert names_from_source(source, tmp_path, "label") == ("bad", "neutral", "positive")
    work = PrepareContext(
        Task(source=source, preprocess=Classify()), "t", None, 0, tmp_path, tmp_path, 1, ClassSpec(3, HEAD), print
    )  # type: ignore[arg-type]
    plan = plan_classify(work)
    (records,) = plan.arguments
    ids = {record["text"]: plan.shared.labels.encode(record["label"])[0] for record in records}
    assert ids == {f"t{n}": [2, 1, 0][n % 3] for n in range(6)} and plan.facts["labels_by"] == "start"
