"""Labels travel with the classifier: from folders, from stage to stage, into checkpoints and out again."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import build, load
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.tools import convert_hf
from bertjax.tools.evaluate import evaluate_command
from bertjax.training import loop
from bertjax.training.checkpoint import locate
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.checkpoint.stage_files import StageFiles

NAMES = ["positive", "Neutral", "bad"]  # by id; no alphabetical order
WORDS = "good fine dull poor bright dark long short".split()
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS[:4] for c in WORDS[4:6]]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, one_device) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, labels: list[Any]) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=False)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def stage(name: str, file: str, num_labels: int = 3, preprocess: dict | None = None, **options: Any) -> dict:
    source = {"kind": "huggingface", "name": file} if Path(file).is_dir() else {"kind": "jsonl", "files": [file]}
    data = {"source": source, "preprocess": {"kind": "classify", "sequence_length": 16} | (preprocess or {})}
    still = {"kind": "adamw", "learning_rate": 1e-12, "warmup_steps": 0, "weight_decay": 0.0}
    objective = {"kind": "classification", "num_labels": num_labels}
    scored = [{"kind": "classification", "name": "score", "data": data}]
    return {"name": name, "data": data, "objective": objective, "steps": 1, "batch_size": 8, "optimizer": still,
            "evaluate": scored} | options  # fmt: skip


def train(name: str, *stages: dict, vocabulary: str = "vocab.txt") -> Path:
    run = {"name": name, "root": "runs", "compute_dtype": "float32", "tensorboard": False}
    run["compilation_cache_dir"] = None
    Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    config = build({
        "model": SIZES, "tokenizer": {"path": vocabulary}, "run": run | {"prepare_workers": 1}, "stages": list(stages),
    })  # fmt: skip
    loop.train(config, Path.cwd(), build_evaluators)
    return config.run_dir


def accuracy(run: Path, of: str) -> float:
    (found,) = run.glob(f"evaluations/*-{of}/score.json")
    return json.loads(found.read_text())["scores"]["accuracy"]


def started(run: Path, of: str) -> str:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line["init"] for line in lines if line.get("event") == "start" and line["stage"] == of)


def classifier(run: Path, of: str) -> np.ndarray:
    return np.asarray(restore(run, stage=of).params["heads/classifier/kernel"])


# ---- a folder of transformers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, list[int]]:
    """A 3-class model that torch made, and its own predictions on TEXTS."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("torch") / "three"
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: n for n, name in enumerate(NAMES)}}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, initializer_range=0.5, **names))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    ids = torch.tensor([[2, *(vocabulary.index(word) for word in text.split()), 3] for text in TEXTS])
    with torch.no_grad():
        logits = model.eval()(ids).logits
        model.classifier.bias -= logits.mean(0)
        predicted = model(ids).logits.argmax(-1).tolist()
    model.save_pretrained(out)
    (out / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    assert min(np.bincount(predicted)) > 5
    return out, predicted


def save_class_label(name: str, order: list[str], labels: list[str]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=order)})
    rows = {"text": TEXTS, "label": [order.index(label.lower()) for label in labels]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(name)


def forms(predicted: list[int]) -> list[str]:
    """The folder's predictions as texts in another case, as ids and as a ClassLabel in another order."""
    write("text.jsonl", [NAMES[n].upper() for n in predicted])
    write("ids.jsonl", predicted)
    save_class_label("saved", ["bad", "neutral", "positive"], [NAMES[n] for n in predicted])
    return ["text.jsonl", "ids.jsonl", "saved"]


def test_an_imported_folder_scores_its_own_predictions_as_right(folder, capsys):
    """transformers' torch model is the reference: labelled by it, accuracy is 100 in every form of the labels."""
    source, predicted = folder
    convert_hf.import_folder(source, Path("runs/imported"))
    assert restore("runs/imported").labels == NAMES
    for file in forms(predicted):
        scored = json.dumps(stage("x", file)["evaluate"])
        changes = [f"stages.import.evaluate={scored}", "run.compute_dtype=float32"]
        found = evaluate_command("runs/imported", None, None, None, changes)
        assert found["scores"]["score"]["accuracy"] == 100, file
    assert "ids here are bad=2, neutral=1, positive=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "form", ["text.jsonl", *(pytest.param(form, marks=pytest.mark.slow) for form in ("ids.jsonl", "saved"))]
)
def test_training_from_a_folder_keeps_its_ids(folder, form, capsys):
    source, predicted = folder
    forms(predicted)
    run = train("fine", stage("c", form, init_from=str(source)), vocabulary=str(source / "vocab.txt"))
    assert accuracy(run, "c") == 100 and "fresh" not in started(run, "c")
    assert "c: labels" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_exported_predicts_the_same_names_in_torch(folder):
    """From names of a ClassLabel: a checkpoint, a folder, transformers' pipeline of names."""
    import torch
    from transformers import AutoModelForSequenceClassification

    source, predicted = folder
    save_class_label("saved", ["bad", "neutral", "positive"], [NAMES[n] for n in predicted])
    run = train("named", stage("c", "saved"))
    convert_hf.export_checkpoint(run, Path("out"))
    config = json.loads(Path("out/config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "neutral", "2": "positive"}
    assert config["label2id"] == {"bad": 0, "neutral": 1, "positive": 2}
    model = AutoModelForSequenceClassification.from_pretrained("out").eval()
    vocabulary = Path("out/vocab.txt").read_text().splitlines()
    ids = torch.tensor([[2, *(vocabulary.index(word) for word in text.split()), 3] for text in TEXTS])
    with torch.no_grad():
        names = [model.config.id2label[n] for n in model(ids).logits.argmax(-1).tolist()]
    write("theirs.jsonl", names)
    scored = json.dumps(stage("c", "theirs.jsonl")["evaluate"])
    found = evaluate_command(run, None, None, None, [f"stages.c.evaluate={scored}"])
    assert found["scores"]["score"]["accuracy"] == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "id2label does not name the ids 0 to 2"),
        ({"id2label": {"0": "a", "1": "b", "5": "c"}}, "id2label does not name the ids 0 to 2"),
        ({"problem_type": "ranking"}, "problem_type: is not known"),
        ({"problem_type": "regression"}, "problem_type 'regression' with 3 outputs"),
    ],
)
def test_folders_whose_names_do_not_fit_are_refused(folder, changes, message):
    changed(folder[0], changes)
    with pytest.raises(UserError, match=message):
        convert_hf.import_folder(Path("changed"), Path("runs/imported"))


def changed(source: Path, changes: dict) -> None:
    Path("changed").mkdir()
    for path in source.iterdir():
        (Path("changed") / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (Path("changed") / "config.json").write_text(json.dumps(config | changes))


def test_id2label_decides_where_label2id_says_otherwise(folder, capsys):
    changed(folder[0], {"label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}})
    convert_hf.import_folder(Path("changed"), Path("runs/imported"))
    assert restore("runs/imported").labels == NAMES
    assert "label2id is not the inverse of id2label: id2label decides" in capsys.readouterr().err


# ---- stage after stage ----------------------------------------------------------------------------------------------


def test_a_stage_with_other_labels_gets_a_fresh_classifier(capsys):
    write("first.jsonl", ["yes", "no"] * 32)
    write("same.jsonl", [1, 0] * 32)
    write("other.jsonl", ["up", "down"] * 32)
    run = train(
        "stages",
        stage("first", "first.jsonl", 2),
        stage("same", "same.jsonl", 2, {"labels": ["YES", "NO"]}),
        stage("other", "other.jsonl", 2),
    )
    out = capsys.readouterr().out
    assert "same: labels matched by name: the data have the order YES, NO; ids here are YES=1, NO=0" in out
    assert "stage 'other': the classifier starts fresh: the data have labels down, up, stage 'same' has no, yes" in out
    assert "fresh:" not in started(run, "same") and "fresh: heads/classifier" in started(run, "other")
    assert [restore(run, stage=name).labels for name in ("first", "same")] == [["no", "yes"]] * 2
    assert restore(run, stage="other").labels == ["down", "up"]
    first, same, other = (classifier(run, name) for name in ("first", "same", "other"))
    assert np.abs(first - same).max() < 1e-6 and np.abs(same - other).max() > 1e-3
    assert accuracy(run, "first") == accuracy(run, "same")  # ids 1, 0 are YES, NO: the rows have the same labels


def test_another_number_of_classes_needs_a_fresh_classifier():
    write("three.jsonl", [0, 1, 2, 0] * 16)
    write("two.jsonl", [0, 1] * 32)
    first = stage("first", "three.jsonl")
    with pytest.raises(UserError, match=r"its classifier has 3 outputs, this stage's 2; .*stages.second.fresh=\[class"):
        train("refused", first, stage("second", "two.jsonl", 2))
    assert not Path("runs/refused").exists()
    run = train("fresh", first, stage("second", "two.jsonl", 2, fresh=["classifier"]))
    assert "fresh: heads/classifier" in started(run, "second") and classifier(run, "second").shape == (16, 2)


@pytest.mark.slow
def test_another_number_of_classes_by_other_names_starts_fresh(capsys):
    write("three.jsonl", [0, 1, 2, 0] * 16)
    write("named.jsonl", ["a", "b", "c", "d"] * 16)
    named = stage("first", "three.jsonl", 3, {"labels": ["x", "y", "z"]})
    run = train("names", named, stage("second", "named.jsonl", 4))
    assert "fresh: heads/classifier" in started(run, "second") and classifier(run, "second").shape == (16, 4)
    assert "stage 'first' has x, y, z" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_has_begun_keeps_its_own_names(monkeypatch):
    """A checkpoint of before, whose ids were given in sorted order: its data are not mapped to the start's ids."""
    write("first.jsonl", ["yes", "no"] * 32)
    first = train("start", stage("c", "first.jsonl", 2, {"labels": ["yes", "no"]}))
    second = stage("c", "first.jsonl", 2, init_from="runs/start", steps=2, fresh=["classifier"])
    train("old", second)
    folder = locate.find("runs/old").folder
    config = load("runs/old/config.yaml")
    from bertjax.training.checkpoint import label_mapping

    files = StageFiles(config, 0, Path.cwd())
    assert label_mapping.saved_names(files) == ("no", "yes")
    checkpoints = CheckpointReader(folder)
    assert checkpoints.meta()["labels"] == ["no", "yes"]
    ctx = restore("runs/old").ctx
    plan = loop.open_stage(ctx, files, None)
    assert plan.labels.names == ["no", "yes"] and restore(first).labels == ["yes", "no"]
    assert jax.process_count() == 1 and re.fullmatch(r"\d\d-c", folder.name)


def test_rows_without_a_label_are_left_out_of_the_scores_and_refused_in_training(capsys):
    write("first.jsonl", ["yes", "no"] * 32)
    run = train("first", stage("c", "first.jsonl", 2))
    write("hidden.jsonl", ["yes", "no", None, "", -1] * 12)
    lines = Path("hidden.jsonl").read_text().splitlines()
    Path("seen.jsonl").write_text("\n".join(line for line in lines if '"yes"' in line or '"no"' in line))
    scores = {}
    for name in ("hidden", "seen"):
        scored = json.dumps(stage("c", f"{name}.jsonl")["evaluate"])
        scores[name] = evaluate_command(run, None, None, None, [f"stages.c.evaluate={scored}"])["scores"]["score"]
    assert scores["hidden"] == scores["seen"]
    assert "36 of 60 records have no label and are left out of the scores" in capsys.readouterr().err
    with pytest.raises(UserError, match="hidden.jsonl: line 3: 'label' is empty or null; leave out records"):
        train("refused", stage("c", "hidden.jsonl", 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.c.fresh=[clasifier]", "did you mean 'classifier'?"),
        (
            "stages.c.fresh=[qa]; stages.c.init_from=x",
            "fresh: a stage of classification has no 'qa'; it has: classifier, pooler",
        ),
        ("stages.c.fresh=[classifier]", "fresh: needs init_from; without it everything starts"),
        ("stages.c.data.preprocess.labels=[a, b]", "labels has 2 names and objective.num_labels is 3"),
        ("stages.c.data.preprocess.labels=[a, b, A]", "two of them are 'a'"),
    ],
)
def test_settings_that_cannot_be(change: str, message: str, capsys: pytest.CaptureFixture[str]):
    write("first.jsonl", [0, 1, 2] * 12)
    Path("c.yaml").write_text(json.dumps({"model": SIZES, "stages": [stage("c", "first.jsonl")]}))
    assert main(["train", "c.yaml", *change.split("; ")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
