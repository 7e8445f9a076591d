"""Several labels for one text, and weights of classes: data, loss, checkpoints; folders beside transformers."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bertjax
from bertjax.cli.main import main
from bertjax.config.loading.load import build
from bertjax.config.schema.data import Classify, Task
from bertjax.config.schema.sources import Csv, JsonLines, Parquet
from bertjax.config.schema.training import ClassificationObjective
from bertjax.data.pipeline.loader import open_batches
from bertjax.data.pipeline.row_fields import stage_fields
from bertjax.data.preprocess.classify import check_classes
from bertjax.data.preprocess.label_survey import survey_labels, with_label_lists, with_label_names
from bertjax.data.preprocess.labels import build_label_encoder
from bertjax.data.preprocess.registry import Preview
from bertjax.data.sources.class_names import ClassSpec, names_from_source
from bertjax.data.sources.records import read_located
from bertjax.data.tokenizers import load
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.interop import hf_folder
from bertjax.objectives.class_weights import weigh_classes
from bertjax.parallel.mesh import make_mesh
from bertjax.tools import convert_hf
from bertjax.training import loop
from bertjax.training.checkpoint import layout
from bertjax.training.program import stage_program
from bertjax.training.state import init_state
from bertjax.training.step import compute_gradients

NAMES = ["toxic", "Obscene", "threat"]
WORDS = "good fine dull poor bright dark long short".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS[:2] for c in WORDS[4:6]]
SETS = [[name for at, name in enumerate(NAMES) if number >> at & 1] for number in range(8)] * 4  # [] among them
MULTI = {"kind": "classification", "num_labels": 3, "problem_type": "multi_label_classification"}
SPEC = ClassSpec(3, multi_label=True)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, one_device) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("vocab.txt").write_text("\n".join(PIECES) + "\n")
    return tmp_path


def write(name: str, rows: list[dict]) -> None:
    if name.endswith(".csv"):
        with open(name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def forms() -> dict[str, tuple[str, dict[str, Any]]]:
    """The same data as lists of names, as lists of ids, as texts with a delimiter and as a column for each label."""
    write("lists.jsonl", [{"text": t, "label": s} for t, s in zip(TEXTS, SETS, strict=True)])
    write(
        "ids.jsonl", [{"text": t, "label": [NAMES.index(one) for one in s]} for t, s in zip(TEXTS, SETS, strict=True)]
    )
    write("cells.csv", [{"text": t, "label": " | ".join(s)} for t, s in zip(TEXTS, SETS, strict=True)])
    columns = [{"text": t} | {name: int(name in s) for name in NAMES} for t, s in zip(TEXTS, SETS, strict=True)]
    write("columns.csv", columns)
    return {
        "lists": ("lists.jsonl", {"labels": NAMES}),
        "ids": ("ids.jsonl", {"labels": NAMES}),
        "cells": ("cells.csv", {"labels": NAMES, "label_delimiter": "|"}),
        "columns": ("columns.csv", {"label_columns": NAMES}),
    }


def stage(file: str, preprocess: dict | None = None, objective: dict | None = None, **options: Any) -> dict:
    source = {"kind": "csv" if file.endswith(".csv") else "jsonl", "files": [file]}
    data = {"source": source, "preprocess": {"kind": "classify", "sequence_length": 16} | (preprocess or {})}
    return {"name": "c", "data": data, "objective": objective or MULTI, "steps": 1, "batch_size": 8,
            "optimizer": {"kind": "adamw", "learning_rate": 1e-3, "warmup_steps": 0},
            "evaluate": [{"kind": "classification", "name": "score", "data": data}]} | options  # fmt: skip


def described(name: str, *stages: dict) -> dict[str, Any]:
    run = {"name": name, "root": "runs", "compute_dtype": "float32", "tensorboard": False, "prepare_workers": 1}
    run["compilation_cache_dir"] = None
    return {"model": SIZES, "tokenizer": {"path": "vocab.txt"}, "run": run, "stages": list(stages)}


def train(name: str, *stages: dict) -> Path:
    config = build(described(name, *stages))
    loop.train(config, Path.cwd(), build_evaluators)
    return config.run_dir


def sets_of(rows: list[dict], classes: ClassSpec = SPEC, **options: Any) -> list[Any]:
    """What the labels of each record become: a list of 0 and 1, or None where they are hidden."""
    section = Classify(**options)
    located = [(f"a.jsonl: line {n}", {"text": "a"} | row) for n, row in enumerate(rows, 1)]
    lists = with_label_lists(located, section)
    given = section.labels or section.label_columns
    if given:
        lists = with_label_names(lists, given, " labels" if section.label_columns else section.label)
    kept = list(lists)
    encoder = build_label_encoder(survey_labels(kept, section, given, "labels", several=True), classes)
    made = [encoder.encode(record[" labels" if section.label_columns else section.label]) for _, record in kept]
    return [row.tolist() if weight else None for row, weight in made]


# ---- data -----------------------------------------------------------------------------------------------------------


def test_all_forms_of_the_labels_give_the_same_rows():
    expected = [[int(name in labels) for name in NAMES] for labels in SETS]
    for form, (file, preprocess) in forms().items():
        config = build(described(form, stage(file, preprocess)))
        task, tokenizer = config.stages[0].data, load.from_file(Path("vocab.txt"))
        assert check_classes(Preview(task, Path.cwd(), SPEC)).names == tuple(NAMES), form
        batches = open_batches(config, config.stages[0], tokenizer, base=Path.cwd(), cache=Path("prepared"))
        assert batches.fields["labels"] == stage_fields(config, config.stages[0])["labels"]
        rows = np.concatenate([batches.epoch_batch(k)["labels"] for k in range(4)])
        assert rows[:, 0].tolist() == expected and batches.labels == NAMES, form


def test_hidden_and_empty_sets_are_told_apart():
    keep = ClassSpec(3, multi_label=True, keep_unlabeled=True)
    rows = [{"label": ["b"]}, {"label": []}, {"label": None}, {"label": ["a", "c", "a"]}]
    assert sets_of(rows, keep, labels=["a", "b", "c"]) == [[0, 1, 0], [0, 0, 0], None, [1, 0, 1]]
    columns = [{"a": "-1", "b": -1}, {"a": True, "b": "0.0"}, {"a": 0, "b": 0}, {"a": "", "b": None}]
    two = ClassSpec(2, multi_label=True, keep_unlabeled=True)
    assert sets_of(columns, two, label_columns=["a", "b"]) == [None, [1, 0], [0, 0], None]
    cells = [{"label": "a;;b"}, {"label": ""}, {"label": "c"}]
    assert sets_of(cells, label_delimiter=";") == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]  # sorted names


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"label": ["a", "x"]}], {"labels": ["a", "b", "c"]}, "line 1: label 'x' is not one of those: a, b, c"),
        ([{"label": [0]}, {"label": [3]}], {}, "line 2: 'label' is 3, but ids go from 0 to 2"),
        ([{"label": "a, b"}], {}, "line 1: 'label' is 'a, b'; a list of labels is needed, or preprocess.label_delim"),
        (
            [{"label": 1}],
            {"label_delimiter": "|"},
            r"'label' is the number 1; a text with labels between '\|' is needed",
        ),
        ([{"label": [None]}], {}, "line 1: 'label' holds nothing .null., which is no label"),
        ([{"label": [0.5]}], {}, "line 1: 'label' holds 0.5, which is no label"),
        ([{"label": [1]}, {"label": [-1]}], {}, "line 2: 'label' holds -1, which is no label"),
        ([{"label": ["-1", "0"]}], {}, "line 1: 'label' holds -1, which is no label"),
        ([{"label": ["-1"]}], {"labels": ["a", "b", "c"]}, "line 1: label '-1' is not one of those: a, b, c"),
        ([{"label": ["a", " "]}], {}, "line 1: 'label' holds ' ', which is no label"),
        ([{"label": [["a"]]}], {}, "line 1: 'label' holds a list, which is no label"),
        ([{"text": None, "label": []}], {}, "line 1: 'text' is not a text but nothing .null.; correct the record"),
        ([{"label": []}, {"label": None}], {}, "line 2: 'label' is null .an empty list means none.; leave out"),
        ([{"a": 1, "b": 2, "c": 0}], {"label_columns": ["a", "b", "c"]}, "column 'b' is the number 2, not 0 or 1"),
        ([{"a": 1, "b": "yes", "c": 0}], {"label_columns": ["a", "b", "c"]}, "column 'b' is 'yes', not 0 or 1"),
        ([{"a": 1, "b": float("nan"), "c": 0}], {"label_columns": ["a", "b", "c"]}, "column 'b' is the number nan"),
        ([{"a": 1, "b": -1, "c": 0}], {"label_columns": ["a", "b", "c"]}, "column 'b' is the number -1, not 0 or 1"),
        ([{"a": 1, "b": 0}], {"label_columns": ["a", "b", "c"]}, "label column 'c' is missing; it has: text, a, b"),
    ],
)
def test_sets_that_do_not_fit_are_refused_by_record(rows, options, message):
    with pytest.raises(UserError, match=message):
        sets_of(rows, **options)


@pytest.mark.parametrize("kind", ["List", "Sequence"])
def test_a_list_of_class_labels_has_their_names(tmp_path, kind):
    """As `datasets` writes go_emotions: ids in the file, names in the schema."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    feature = {"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": kind}
    about = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": feature}}}
    table = pa.table({"text": ["good", "fine", "dull"], "label": [[2, 0], [], [1]]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "a.parquet")
    section = Classify()
    task = Task(source=Parquet(files=["a.parquet"]), preprocess=section)
    assert check_classes(Preview(task, tmp_path, SPEC)).names == tuple(NAMES)
    names = names_from_source(task.source[0], tmp_path, "label")
    lists = with_label_lists(read_located(task.source[0], tmp_path), section)
    assert [record["label"] for _, record in with_label_names(lists, names, "label")] == [
        ["threat", "toxic"], [], ["Obscene"],
    ]  # fmt: skip


def test_a_list_for_one_label_names_the_option():
    with pytest.raises(UserError, match="'label' is not a text or a number but a list; .*problem_type=multi_label"):
        survey_labels([("a: line 1", {"text": "a", "label": ["x"]})], Classify(), None, None)


def test_the_classes_of_data_without_a_configuration_are_seen_in_the_first_record(tmp_path):
    write("a.jsonl", [{"text": "good", "label": ["x", "y"]}, {"text": "fine", "label": []}])
    task = Task(source=JsonLines(files=["a.jsonl"]), preprocess=Classify())
    assert check_classes(Preview(task, tmp_path, None)).multi_label
    write("b.csv", [{"text": "good", "label": "x"}])
    plain = Task(source=Csv(files=["b.csv"]), preprocess=Classify())
    with pytest.raises(UserError, match="2 labels|label"):
        check_classes(Preview(plain, tmp_path, ClassSpec(2)))


@pytest.mark.parametrize(
    ("objective", "preprocess", "message"),
    [
        (
            {"num_labels": 1, "problem_type": "multi_label_classification"},
            {},
            "num_labels of 2 or more; 1 is regression",
        ),
        ({"num_labels": 3, "problem_type": "regression"}, {}, "problem_type regression needs num_labels: 1 .got 3."),
        ({"num_labels": 1, "class_weights": "balanced"}, {}, "class_weights: a regression has no classes"),
        ({"num_labels": 3, "class_weights": [1.0, 2.0]}, {}, "class_weights: lists 2 weights and num_labels is 3"),
        ({"num_labels": 3, "class_weights": {"a": 0}}, {}, "class_weights"),
        ({"num_labels": 3}, {"label_delimiter": "|"}, "label_delimiter needs objective.problem_type: multi_label"),
        (
            {**MULTI, "num_labels": 2},
            {"label_columns": NAMES},
            "label_columns has 3 columns .*set objective.num_labels=3",
        ),
        (MULTI, {"label_columns": ["a", "A", "b"]}, "label_columns: two of them are 'a'"),
        (MULTI, {"label_columns": NAMES, "labels": NAMES}, "give either label_columns or labels"),
    ],
)
def test_options_that_do_not_fit_are_refused(objective, preprocess, message):
    with pytest.raises(UserError, match=message):
        build(described("x", stage("a.jsonl", preprocess, {"kind": "classification", **objective})))


def test_a_threshold_is_for_several_labels():
    plain = stage("a.jsonl", None, {"kind": "classification", "num_labels": 3})
    plain["evaluate"][0]["threshold"] = 0.3
    with pytest.raises(UserError, match="evaluate.score.threshold needs objective.problem_type: multi_label"):
        build(described("x", plain))
    assert build(described("x", plain | {"objective": MULTI})).stages[0].evaluate[0].threshold == 0.3


def test_a_problem_type_that_the_labels_imply_changes_nothing():
    plain = {"kind": "classification", "num_labels": 3}
    said = build(described("x", stage("a.jsonl", None, plain | {"problem_type": "single_label_classification"})))
    assert said == build(described("x", stage("a.jsonl", None, plain)))
    assert "problem_type" not in said.model_dump_json()


# ---- weights of classes ---------------------------------------------------------------------------------------------


class Rows:
    """A store of labels."""

    def __init__(self, labels: np.ndarray, weights: np.ndarray) -> None:
        self.labels, self.weights = labels, weights

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: np.ndarray) -> Any:
        return {"labels": self.labels[indices, None], "label_weights": self.weights[indices, None]}


def test_balanced_weights_are_those_of_sklearn():
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = np.repeat([0, 1, 2], [5, 70, 25])
    section = ClassificationObjective(num_labels=3, class_weights="balanced")
    rows = Rows(np.append(labels, 0), np.append(np.ones(100), 0))  # a row without a label does not count
    found, line = weigh_classes(section, ["a", "b", "c"], [rows])  # type: ignore[list-item]
    np.testing.assert_allclose(found.class_weights, compute("balanced", classes=np.arange(3), y=labels))
    assert line == "class weights: a 6.67, b 0.476, c 1.33"


def test_balanced_weights_of_several_labels_are_negatives_by_positives():
    section = ClassificationObjective.model_validate(MULTI | {"class_weights": "balanced"})
    labels = np.zeros((10, 3), np.uint8)
    labels[:2, 0] = labels[:, 1] = 1  # the second is always there, the third never
    found, _ = weigh_classes(section, None, [Rows(labels, np.ones(10))])  # type: ignore[list-item]
    assert found.class_weights == [4.0, 1.0, 1.0]


def test_weights_by_name_and_a_name_that_is_none():
    section = ClassificationObjective(num_labels=3, class_weights={"B": 4, "c": 0.5})
    assert weigh_classes(section, ["a", "b", "c"], [])[0].class_weights == [1.0, 4.0, 0.5]
    with pytest.raises(UserError, match="'B' is not one of the classes: x, y, z"):
        weigh_classes(section, ["x", "y", "z"], [])


# ---- beside torch ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of torch that gives a text several labels."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("torch") / "several"
    torch.manual_seed(0)
    about = {"id2label": dict(enumerate(NAMES)), "label2id": {name: n for n, name in enumerate(NAMES)}}
    about["problem_type"] = "multi_label_classification"
    config = transformers.BertConfig(**SIZES, initializer_range=0.5, **about)
    transformers.BertForSequenceClassification(config).save_pretrained(out)
    (out / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return out


def test_the_loss_and_gradients_are_those_of_transformers(folder):
    """One fine-tuning step of BertForSequenceClassification with problem_type multi_label_classification."""
    import torch
    from transformers import BertForSequenceClassification

    config = build(described("x", stage("a.jsonl")))
    model = config.model
    program = stage_program(config, config.stages[0], make_mesh(config.mesh), 1)
    params = hf_folder.load_params(folder, model)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (4, 3))
    lengths = np.array([3, 7, 5, 16])
    there = np.arange(16) < lengths[:, None]
    ids = np.where(there, rng.integers(5, len(PIECES), (4, 16)), 0)
    batch = {
        "input_ids": ids, "token_type_ids": 0 * ids, "segment_ids": there.astype(int),
        "positions": np.arange(16) * there, "cls_positions": np.zeros((4, 1), int),
        "labels": labels[:, None].astype(np.uint8), "label_weights": np.ones((4, 1), np.float32),
    }  # fmt: skip
    theirs = BertForSequenceClassification.from_pretrained(folder)
    out = theirs(torch.tensor(ids), attention_mask=torch.tensor(there.astype(int)), labels=torch.tensor(labels).float())
    out.loss.backward()
    state = init_state(params, tuple(sorted({"embeddings", "layers/0", "heads"})), program.tx, jax.random.key(0))
    grads, terms, loss = compute_gradients(program, state, {k: np.asarray(v) for k, v in batch.items()})
    assert float(loss) == pytest.approx(out.loss.item(), rel=1e-5)
    assert float(terms["label"].loss / terms["label"].weight) == pytest.approx(out.loss.item(), rel=1e-5)
    for ours, tensor in (
        ("heads/classifier/kernel", theirs.classifier.weight.grad.T),
        ("heads/pooler/kernel", theirs.bert.pooler.dense.weight.grad.T),
        ("embeddings/word/embedding", theirs.bert.embeddings.word_embeddings.weight.grad),
    ):
        np.testing.assert_allclose(np.asarray(grads[ours]), tensor.numpy(), atol=2e-6, err_msg=ours)


def test_probabilities_are_those_of_the_pipeline_and_travel_there_and_back(folder, capsys):
    """Import, predict, export, and transformers' text-classification pipeline on both folders."""
    import torch
    from transformers import BertForSequenceClassification, BertTokenizerFast, pipeline

    convert_hf.import_folder(folder, Path("runs/imported"))
    assert restore("runs/imported").program.is_multi_label
    convert_hf.export_checkpoint(Path("runs/imported"), Path("back"))
    assert json.loads(Path("back/config.json").read_text())["problem_type"] == "multi_label_classification"
    texts = TEXTS[:6]
    for place in (folder, Path("back")):
        with torch.no_grad():
            tag = pipeline(
                "text-classification", BertForSequenceClassification.from_pretrained(place),
                tokenizer=BertTokenizerFast(str(folder / "vocab.txt")), top_k=None, device="cpu",
            )  # fmt: skip
            expected = [{one["label"]: one["score"] for one in found} for found in tag(texts)]
        found = bertjax.open(place).classify(texts, threshold=0.4)
        for one, wanted in zip(found, expected, strict=True):
            assert {entry["label"]: entry["probability"] for entry in one["labels"]} == pytest.approx(wanted, abs=1e-5)
            assert set(one["predicted"]) == {name for name, chance in wanted.items() if chance >= 0.4}
    capsys.readouterr()
    assert main(["predict", "classify", str(folder), texts[0], "--threshold", "1e-6", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sorted(printed[0]["predicted"]) == sorted(NAMES)


def test_the_best_checkpoint_is_pointed_out_and_used(capsys):
    """As load_best_model_at_end of transformers, but asked for: the last step is the default."""
    file, preprocess = forms()["lists"]
    first = stage(file, preprocess, steps=4)
    first["evaluate"][0]["every"] = 2
    given = described("best", first)
    given["run"]["checkpoint"] = {"save_every": 2, "keep_best": "score/micro_f1"}
    config = build(given)
    loop.train(config, Path.cwd(), build_evaluators)
    run, score = config.run_dir, "score/micro_f1"
    for step, value in ((2, 99.0), (4, 1.0)):
        layout.write_scores(run / "checkpoints/00-c", step, {score: value})
    capsys.readouterr()
    chances = {}
    for how in ([], ["--best", score]):
        assert main(["predict", "classify", str(run), TEXTS[0], "--json", *how]) == 0
        out, err = capsys.readouterr()
        assert (f"step 4 is the last one; step 2 has the best {score}: --best {score}" in err) == (not how)
        chances[bool(how)] = {one["label"]: one["probability"] for one in json.loads(out)[0]["labels"]}
    for is_best, step in ((False, 4), (True, 2)):
        wanted = bertjax.open(run, step=step).classify(TEXTS[0])
        assert chances[is_best] == pytest.approx({x["label"]: x["probability"] for x in wanted["labels"]}, abs=1e-4)
    assert chances[True] != chances[False]
    assert main(["export", str(run), "folder", "--best", score]) == 0
    exported = hf_folder.load_params(Path("folder"), config.model)
    for path, value in restore(run, step=2).params.items():
        np.testing.assert_array_equal(exported[path], value)
    assert main(["export", "folder", "again", "--best", score]) == 2
    assert "is a Hugging Face model, without steps; leave out --best" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_keeps_what_it_is_through_stages_files_and_folders(capsys):
    """Trained from columns: scores, a next stage without the head, predictions to files, an exported folder."""
    file, preprocess = forms()["columns"]
    first = stage(file, preprocess, MULTI | {"class_weights": "balanced"}, epochs=30, steps=None)
    run = train("several", first)
    content = json.loads(next(run.glob("evaluations/*/score.json")).read_text())
    assert content["scores"]["micro_f1"] > 60 and content["classes"]["multi_label"]["without"] == 4
    assert "class weights: toxic 1, Obscene 1, threat 1" in capsys.readouterr().out
    write("new.csv", [{"id": "7", "text": TEXTS[0]}, {"id": "8", "text": ""}])
    for out in ("out.jsonl", "out.csv"):
        assert main(["predict", "classify", str(run), "--file", "new.csv", "--output", out]) == 0
    (one, _) = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert list(one) == ["id", "text", "predicted_labels", "probabilities"] and set(one["probabilities"]) == set(NAMES)
    (row, _) = csv.DictReader(Path("out.csv").read_text().splitlines())
    assert json.loads(row["predicted_labels"]) == one["predicted_labels"]
    convert_hf.export_checkpoint(run, Path("folder"))
    again = bertjax.open("folder").classify(TEXTS[0])
    assert {x["label"]: x["probability"] for x in again["labels"]} == pytest.approx(one["probabilities"], abs=1e-5)
