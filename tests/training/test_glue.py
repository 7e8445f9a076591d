"""`bertjax glue`: reading the official files, averages, the runs, their results, and the files for the server."""

import csv
import json
import math
import warnings
import zipfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glue_files import QUOTED, rows_of, write_glue
from hf_folders import bert_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from report_page import Page

from bertjax.cli.main import main
from bertjax.errors import UserError
from bertjax.evaluation.metrics.glue_average import DEV_METRICS, bert_paper_average, leaderboard_average
from bertjax.evaluation.metrics.matthews import matthews_correlation
from bertjax.tools.convert_hf import export_checkpoint
from bertjax.tools.glue import data as glue_data
from bertjax.tools.glue import submission
from bertjax.tools.glue.results import Result, summarize
from bertjax.tools.glue.runs import Request, make_runs, parse_grid
from bertjax.tools.glue.submission import submitted
from bertjax.tools.glue.tasks import FILES, TASKS
from bertjax.training import loop

# ---- averages and metrics -------------------------------------------------------------------------------------------

# Table 1 of arXiv 1810.04805: MNLI-m, -mm, QQP, QNLI, SST-2, CoLA, STS-B, MRPC, RTE, and the average
BERT_TABLE = [
    ((82.1, 81.4, 70.3, 87.4, 91.3, 45.4, 80.0, 82.3, 56.0), 75.1),  # OpenAI GPT
    ((84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4), 79.6),  # BERT-base
    ((86.7, 85.9, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1), 82.1),  # BERT-large
]


def bert_scores(columns: tuple[float, ...]) -> dict[str, dict[str, float]]:
    matched, mismatched, qqp, qnli, sst2, cola, stsb, mrpc, rte = columns
    return {
        "mnli": {"accuracy_matched": matched, "accuracy_mismatched": mismatched}, "qqp": {"f1": qqp},
        "qnli": {"accuracy": qnli}, "sst2": {"accuracy": sst2}, "cola": {"matthews": cola}, "stsb": {"spearman": stsb},
        "mrpc": {"f1": mrpc}, "rte": {"accuracy": rte},
    }  # fmt: skip


@pytest.mark.parametrize(("columns", "average"), BERT_TABLE)
def test_the_average_of_the_bert_paper(columns, average):
    found = bert_paper_average(bert_scores(columns) | {"wnli": {"accuracy": 1.0}})
    assert round(found["average"] + 1e-9, 1) == average and (found["of"], found["missing"]) == (9, [])
    part = bert_paper_average({"cola": {"matthews": 50.0}, "mrpc": {"f1": 80.0, "accuracy": 10.0}})
    assert part["average"] == 65.0 and part["missing"] == ["sst2", "stsb", "qqp", "mnli", "qnli", "rte"]


def test_the_average_of_the_leaderboard():
    """BERT-large on gluebenchmark.com ("BERT: 24-layers, 16-heads, 1024-hidden"): 80.5."""
    scores = {
        "cola": {"matthews": 60.5}, "sst2": {"accuracy": 94.9}, "mrpc": {"f1": 89.3, "accuracy": 85.4},
        "stsb": {"pearson": 87.6, "spearman": 86.5}, "qqp": {"f1": 72.1, "accuracy": 89.3},
        "mnli": {"accuracy_matched": 86.7, "accuracy_mismatched": 85.9}, "qnli": {"accuracy": 92.7},
        "rte": {"accuracy": 70.1}, "wnli": {"accuracy": 65.1},
    }  # fmt: skip
    found = leaderboard_average(scores)
    assert round(found["average"], 1) == 80.5 and (found["of"], found["missing"]) == (9, [])
    del scores["wnli"], scores["mrpc"]["accuracy"]
    assert leaderboard_average(scores)["missing"] == ["mrpc", "wnli"]
    assert leaderboard_average({})["average"] is None and list(TASKS) == list(DEV_METRICS)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_matthews_correlation_is_scikit_learns(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, guesses = np.array(pairs).T
    with warnings.catch_warnings(action="ignore"):  # of scikit-learn, for a single label
        expected = metrics.matthews_corrcoef(labels, guesses)
    assert math.isclose(matthews_correlation(labels, guesses), expected, abs_tol=1e-12)


# ---- data -----------------------------------------------------------------------------------------------------------


def copied(data: Path, name: str, out: Path, limit: int | None = None) -> dict[str, list[dict[str, Any]]]:
    (found,), _ = glue_data.find_data(str(data), [name], True)
    glue_data.copy_data(found, out / name, limit)
    return {path.stem: glue_data.read_copy(path) for path in (out / name).glob("*.jsonl")}


def expected_records(name: str, rows: list, labelled: bool, text: str = "{}") -> list[dict[str, Any]]:
    task = TASKS[name]
    return [
        {field: text.format(one) for field, one in zip(task.texts, texts, strict=True)}
        | ({"label": label} if labelled else {})
        | {"index": number}
        for number, (texts, label) in enumerate(rows)
    ]


@pytest.mark.parametrize("name", TASKS)
def test_official_files(tmp_path, name):
    """Quotes are characters; CoLA has no header; MRPC is divided by ids; broken lines of QQP are counted."""
    rows = write_glue(tmp_path / "GLUE", [name])[name]
    found = copied(tmp_path / "GLUE", name, tmp_path / "out")
    task = TASKS[name]
    assert found.keys() == task.splits.keys()
    for key, split in task.splits.items():
        text = "{} " if name == "sst2" and split in ("train", "validation") else "{}"
        assert found[key] == expected_records(name, rows[split], not split.startswith("test"), text), key
    assert found["train"][0][task.texts[0]].startswith(QUOTED)
    manifest = json.loads((tmp_path / "out" / name / "manifest.json").read_text())
    lost = {"qqp": {"train": {"lines with fewer than 6 columns": 2}}}
    lost["mnli"] = {key: {"without a gold label": 1} for key in ("matched", "mismatched")}
    assert manifest["left_out"] == lost.get(name, {})
    assert manifest["rows"] == {key: len(records) for key, records in found.items()}


@pytest.mark.parametrize("name", ["sst2", "stsb", "qqp", "qnli", "rte"])
def test_official_files_as_the_data_set_script_of_the_hub_reads_them(tmp_path, name):
    """glue.py of `datasets`: csv.DictReader(delimiter="\\t", quoting=QUOTE_NONE), records of QQP with None left out."""
    write_glue(tmp_path / "GLUE", [name])
    found, task = copied(tmp_path / "GLUE", name, tmp_path / "out"), TASKS[name]
    names = {"label": {"stsb": "score", "qqp": "is_duplicate"}.get(name, "label")}
    with (tmp_path / "GLUE" / task.title / "train.tsv").open(encoding="utf-8") as file:
        records = [r for r in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if None not in r.values()]
    texts = [tuple(record[field] for field in task.texts) for record in records]
    assert [tuple(record[field] for field in task.texts) for record in found["train"]] == texts
    said = [record[names["label"]] for record in records]
    if task.labels:
        ids = [label if label in task.labels else task.labels[int(label)] for label in said]
        assert [record["label"] for record in found["train"]] == ids
    else:
        assert [record["label"] for record in found["train"]] == [float(label) for label in said]


@pytest.mark.parametrize("form", ["saved", "parquet"])
@pytest.mark.parametrize("name", ["mrpc", "stsb", "mnli"])
def test_folders_of_the_hubs_data_set(tmp_path, name, form):
    datasets = pytest.importorskip("datasets")
    rows, task = rows_of(name), TASKS[name]
    label = datasets.ClassLabel(names=list(task.labels)) if task.labels else datasets.Value("float32")
    features = datasets.Features({field: datasets.Value("string") for field in task.texts} | {"label": label})

    def table(split: str) -> Any:
        hidden = -1 if task.labels else -1.0
        shown = lambda y: hidden if split.startswith("test") or split == "ax" else y  # noqa: E731
        columns: dict[str, list] = {field: [t[i] for t, _ in rows[split]] for i, field in enumerate(task.texts)}
        columns["label"] = [shown(task.labels.index(y) if task.labels else y) for _, y in rows[split]]
        return datasets.Dataset.from_dict(columns, features=features)

    splits = {split: table(split) for split in task.splits.values() if split != "ax"}
    if form == "saved":
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "GLUE" / name)
    else:
        (tmp_path / "GLUE" / name).mkdir(parents=True)
        for split, one in splits.items():
            one.to_parquet(tmp_path / "GLUE" / name / f"{split}-00000-of-00001.parquet")
    if name == "mnli":
        (tmp_path / "GLUE" / "ax").mkdir()
        table("ax").to_parquet(tmp_path / "GLUE" / "ax" / "test-00000-of-00001.parquet")
    found = copied(tmp_path / "GLUE", name, tmp_path / "out")
    for key, split in task.splits.items():
        expected = expected_records(name, rows[split], not split.startswith("test") and split != "ax")
        if name == "stsb":
            expected = [r | {"label": float(np.float32(r["label"]))} if "label" in r else r for r in expected]
        assert found[key] == expected, key


def test_on_the_hub(tmp_path, monkeypatch):
    """The configuration of a task is its name, that of the diagnostic set is `ax`."""
    asked = []

    def read(source: Any, base: Path) -> Any:
        asked.append((source.name, source.config, source.split))
        return iter([("row 0", {"premise": "bad", "hypothesis": "cab", "label": 1, "idx": 0})])

    monkeypatch.setattr(glue_data, "read_located", read)
    monkeypatch.setattr(glue_data, "names_from_source", lambda *about: TASKS["mnli"].labels)
    found, missing = glue_data.find_data("nyu-mll/glue", ["mnli"], False)
    glue_data.copy_data(found[0], tmp_path / "mnli", None)
    splits = ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
    assert asked == [*(("nyu-mll/glue", "mnli", s) for s in splits), ("nyu-mll/glue", "ax", "test")] and not missing
    assert glue_data.read_copy(tmp_path / "mnli" / "train.jsonl")[0]["label"] == "neutral"
    monkeypatch.setattr(glue_data, "names_from_source", lambda *about: ("contradiction", "neutral", "entailment"))
    with pytest.raises(UserError, match="MNLI: the labels are contradiction, neutral, entailment, not entailment"):
        glue_data.copy_data(found[0], tmp_path / "other", None)


def test_a_limit_is_a_sample_in_order(tmp_path):
    write_glue(tmp_path / "GLUE", ["rte"])
    whole = copied(tmp_path / "GLUE", "rte", tmp_path / "whole")
    some = copied(tmp_path / "GLUE", "rte", tmp_path / "some", 7)
    numbers = [record["index"] for record in some["train"]]
    assert len(numbers) == 7 and numbers == sorted(numbers) and len(some["dev"]) == 7
    assert some["train"] == [whole["train"][number] for number in numbers] and some["test"] == whole["test"]
    assert len(copied(tmp_path / "GLUE", "rte", tmp_path / "some", 9)["train"]) == 9, "another limit: copied again"


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "rte",
            "train.tsv",
            "\tentailment\n",
            "\tmaybe\n",
            "the label is 'maybe'; the labels of RTE are 0=ent",
        ),
        ("rte", "train.tsv", "\tnot_entailment\n", "\n", "3 columns, not 4 as in line 1; correct the line"),
        ("rte", "dev.tsv", "sentence2", "text2", "no column sentence2; the first line of the file names: index, sent"),
        ("stsb", "dev.tsv", "\t0.000\n", "\t7.5\n", "the score is '7.5'; it must be a number from 0 to 5"),
        ("wnli", "train.tsv", "\t1\n", "\t2\n", "the label is '2'; the labels of WNLI are 0=not_entailment, 1=ent"),
        ("mrpc", "dev_ids.tsv", "10", "99", "pairs are not in the data, such as 99"),
        ("qnli", "test.tsv", "\n3\t", "\nx\t", "index is 'x'; it must be a number"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path, name, file, old, new, message):
    write_glue(tmp_path / "GLUE", [name])
    path = tmp_path / "GLUE" / TASKS[name].title / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as error:
        copied(tmp_path / "GLUE", name, tmp_path / "out")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out" / name / "manifest.json").exists()


def test_incomplete_folders(tmp_path):
    write_glue(tmp_path / "GLUE", ["rte", "mrpc"])
    found, missing = glue_data.find_data(str(tmp_path / "GLUE"), list(TASKS), False)
    assert [one.task.name for one in found] == ["mrpc", "rte"] and "cola" in missing and len(missing) == 7
    with pytest.raises(UserError, match="has no folder for CoLA; it has: MRPC, RTE"):
        glue_data.find_data(str(tmp_path / "GLUE"), ["cola", "rte"], True)
    (tmp_path / "GLUE" / "MRPC" / "dev_ids.tsv").unlink()
    with pytest.raises(UserError, match="dev_ids.tsv is missing, the list of pairs for development"):
        glue_data.find_data(str(tmp_path / "GLUE"), ["mrpc"], True)
    (tmp_path / "GLUE" / "RTE" / "dev.tsv").unlink()
    with pytest.raises(UserError, match="RTE: has no dev.tsv"):
        glue_data.find_data(str(tmp_path / "GLUE"), ["rte"], True)
    for data, message in (("/none/GLUE", "no such folder"), (__file__, "is a file; name the folder")):
        with pytest.raises(UserError, match=message):
            glue_data.find_data(data, ["rte"], True)


# ---- the runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("start") / "bert", ("mlm", "nsp", "pooler"))


SHORT = ("sequence_length=32",)  # the most that the tiny model reads is 64


def test_settings_of_all_tasks_and_of_one(start, tmp_path):
    request = Request(
        str(start), "GLUE", tmp_path, seeds=(4, 5), options={"epochs": "2.0", "learning_rate": "1e-3"},
        grid=parse_grid("learning_rate=2e-5,3e-5 batch_size=16,32"), select="best",
        settings=("sequence_length=32", "rte.epochs=10", "rte.learning_rate=7e-5", "trainable=gradual", "stsb.steps=9"),
    )  # fmt: skip
    runs = make_runs(request, TASKS["rte"])  # its own learning rate is not in the grid
    assert [run.name for run in runs] == [f"rte-batch{b}-seed{s}" for b in (16, 32) for s in (4, 5)]
    stage = runs[0].config.stages[0]
    assert (stage.epochs, stage.optimizer.learning_rate, stage.batch_size) == (10, 7e-5, 16)
    assert stage.trainable.kind == "gradual"
    assert stage.data.preprocess.sequence_length == stage.evaluate[0].data.preprocess.sequence_length == 32
    assert stage.data.preprocess.labels == ["entailment", "not_entailment"] and stage.objective.num_labels == 2
    assert stage.fresh == ["classifier"] and stage.init_from == str(start) and runs[1].config.run.seed == 5
    assert runs[0].config.run.checkpoint.best_metrics == ("dev/accuracy",)
    stsb = make_runs(request, TASKS["stsb"])
    assert len(stsb) == 8 and stsb[0].name == "stsb-lr2e-5-batch16-seed4" and stsb[-1].point["learning_rate"] == "3e-5"
    assert (stsb[0].config.stages[0].steps, stsb[0].config.stages[0].objective.num_labels) == (9, 1)
    mnli = make_runs(request, TASKS["mnli"])[0].config.stages[0]
    assert [e.name for e in mnli.evaluate] == ["matched", "mismatched"] and mnli.epochs == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.seed=3", "run.seed: cannot be set here: use --seeds"),
        ("rte.init_from=x", "init_from: cannot be set here: use --init"),
        ("epoch=3", "epoch: unknown key; did you mean 'epochs'?"),
        ("trainable=nothing", "stages.rte.trainable"),
    ],
)
def test_settings_that_are_refused(start, tmp_path, setting, message):
    with pytest.raises(UserError) as error:
        make_runs(Request(str(start), "GLUE", tmp_path, settings=(*SHORT, setting)), TASKS["rte"])
    assert message in str(error.value)
    for grid in ("learning_rate", "epochs=1,1", "epochs=1,,2"):
        with pytest.raises(UserError, match="--grid: .*expected key=value,value"):
            parse_grid(grid)


def result(run: Any, **scores: float) -> Result:
    return Result(run, 10, scores) if scores else Result(run, None, {}, diverged="loss is nan")


def test_medians_points_and_the_run_that_is_submitted(start, tmp_path):
    request = Request(str(start), "GLUE", tmp_path, seeds=(1, 2, 3), grid={"epochs": ["1", "2"]}, settings=SHORT)
    runs = make_runs(request, TASKS["mrpc"])
    scores = [(70, 99), (90, 99), (50, 99), (80, 60), (75, 62), ()]
    found = [result(run, **dict(zip(("f1", "accuracy"), s, strict=False))) for run, s in zip(runs, scores, strict=True)]
    summary = summarize(TASKS["mrpc"], found)
    assert [one.run.point for one in summary.results] == [{"epochs": "2"}] * 3, "the best median of F1"
    assert summary.medians == {"f1": 77.5, "accuracy": 61} and summary.statistics("f1")["min"] == 75
    assert summary.chosen("median").scores["f1"] == 75 and summary.chosen("best").scores["f1"] == 80
    assert len(summary.as_json()["other_points"]) == 3 and summary.as_json()["grid"] == {"epochs": "2"}


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_the_median_run_is_one_of_the_runs_with_the_median_rank(values):
    class Run:
        task, point = TASKS["rte"], {}

    chosen = summarize(TASKS["rte"], [result(Run(), accuracy=v) for v in values]).chosen("median").choosing
    assert sum(v < chosen for v in values) <= (len(values) - 1) // 2 <= sum(v <= chosen for v in values) - 1


def test_predictions_as_the_server_takes_them():
    assert [submitted(TASKS["stsb"], v) for v in (-0.2, 2.34567, 6.0)] == ["0.000", "2.346", "5.000"]
    assert [submitted(TASKS[name], "entailment") for name in ("mnli", "qnli", "rte")] == ["entailment"] * 3
    assert submitted(TASKS["wnli"], "entailment") == submitted(TASKS["cola"], "acceptable") == "1"
    assert set(FILES) == {"CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"}


# ---- the command ----------------------------------------------------------------------------------------------------

# no text is cut: transformers' tokenizers cut pairs by another rule than run_classifier.py
FAST = (
    "epochs=1 batch_size=8 sequence_length=56 learning_rate=1e-3 run.compilation_cache_dir=null run.tensorboard=false "
    "run.prepare_workers=1 run.compute_dtype=float32"
).split()


def glue(home: Path, start: Path, *more: str, code: int = 0) -> None:
    with chdir(home):
        assert main(["glue", "--init", str(start), "--data", "GLUE", "--output", "out", *more, *FAST]) == code


def test_a_dry_run_writes_nothing(tmp_path, start, capsys):
    write_glue(tmp_path / "GLUE", ["rte", "qqp"])
    glue(tmp_path, start, "--dry-run", "--seeds", "1,2", "rte.epochs=4")
    out = capsys.readouterr().out
    assert "| QQP  | qqp-seed1, qqp-seed2 |    24 |          10 |   10 |              3 |" in out
    assert "| RTE  | rte-seed1, rte-seed2 |    24 |          10 |   10 |             12 |" in out
    assert "4 runs, 30 steps together" in out and "no data: CoLA, SST-2, MRPC, STS-B, MNLI, QNLI, WNLI" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "rte,cb"], "--tasks: 'cb' is not a task of GLUE; they are: cola, sst2"),
        (["--tasks", "RTE,STS-B"], "--data: GLUE: has no folder for STS-B"),
        (["--seeds", "1,1"], "bertjax glue: argument --seeds: must be different numbers (got '1,1')"),
        (["--intermediate", "mnli"], "--intermediate mnli: needs the task mnli"),
        (["cola.epochs=3"], "command line: cola.*: the task CoLA is not among those to run"),
        (["--init", "nowhere/at/all"], "bertjax glue: --init is given twice"),
    ],
)
def test_mistakes_write_nothing(tmp_path, start, capsys, more, message):
    write_glue(tmp_path / "GLUE", ["rte"])
    glue(tmp_path, start, *more, code=2)
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith(message) and not (tmp_path / "out").exists()


def test_a_start_that_is_missing_writes_nothing(tmp_path, capsys):
    write_glue(tmp_path / "GLUE", ["rte"])
    glue(tmp_path, Path("nowhere/at/all"), code=2)
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("--init: nowhere/at/all: no such folder")
    assert not (tmp_path / "out").exists()


T5 = {
    "model_type": "t5", "vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3,
    "feed_forward_proj": "relu",
}  # fmt: skip


def test_a_model_without_a_classifier_is_refused(tmp_path, capsys):
    write_glue(tmp_path / "GLUE", ["rte"])
    start = tmp_path / "t5"
    start.mkdir()
    (start / "config.json").write_text(json.dumps(T5))
    glue(tmp_path, start, code=2)
    assert "is a t5, which has no classifier; name one of: bert, distilbert" in capsys.readouterr().err


def scored(home: Path) -> dict[str, Any]:
    return json.loads((home / "out" / "glue.json").read_text())


@pytest.mark.slow
def test_runs_are_trained_once_and_go_on_where_they_stopped(tmp_path, start, capsys, monkeypatch, one_device):
    """Stopped in the second run and started again, the scores are those of runs that nothing stopped."""
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    for home in (stopped, straight):
        write_glue(home / "GLUE", ["stsb"])
    more = ["--seeds", "1,2", "run.checkpoint.save_every=1"]
    with monkeypatch.context() as patch:
        here = ("stsb-seed2", 2)
        patch.setattr(loop.StageRunner, "should_stop", lambda run, step: (run.ctx.config.run.name, step) == here)
        glue(stopped, start, *more, code=75)
    assert not (stopped / "out" / "glue.json").exists(), "no task is finished"
    first = (stopped / "out" / "stsb-seed1" / "metrics.jsonl").read_bytes()
    glue(stopped, start, *more)
    lines = (stopped / "out" / "stsb-seed2" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"resume"' in line] == [2]
    glue(straight, start, *more)
    found = scored(stopped)
    assert found["tasks"]["stsb"]["metrics"] == scored(straight)["tasks"]["stsb"]["metrics"]
    test = Path("out") / "submission" / "STS-B.tsv"
    assert (stopped / test).read_bytes() == (straight / test).read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(submission, "open_classifier", None)  # nothing is left to predict
    glue(stopped, start, *more)
    assert scored(stopped) == found
    assert (stopped / "out" / "stsb-seed1" / "metrics.jsonl").read_bytes() == first, "trained again"
    assert "PARTIAL, without CoLA" in capsys.readouterr().out
    for change, message in [
        (["stsb.epochs=2"], "out/stsb-seed1/config.yaml: this run has other settings (stages.0.epochs: 1.0 -> 2.0)"),
        (["--select", "best"], "out: was begun with other options (--select last -> best)"),
    ]:
        glue(stopped, start, *more, *change, code=2)
        assert message in capsys.readouterr().err
    path = stopped / "GLUE" / "STS-B" / "train.tsv"
    path.write_text(path.read_text().replace("bad", "fed"))
    glue(stopped, start, *more, code=2)
    assert "'train' has changed since out/data/stsb was made of it" in capsys.readouterr().err


@pytest.fixture(scope="module")
def all_tasks(tmp_path_factory, start, once) -> Path:
    """A folder in which all tasks were run with two seeds."""
    home = tmp_path_factory.mktemp("all")
    write_glue(home / "GLUE", train=48)
    with once():
        glue(home, start, "--seeds", "1,2", "--intermediate", "mnli")
    return home


@pytest.mark.slow
def test_all_tasks(all_tasks):
    """Scores of every task, both averages, the diagnostic set, and a complete archive with the server's layout."""
    found = scored(all_tasks)
    assert list(found["tasks"]) == list(TASKS) and found["missing"] == []
    for name, about in found["tasks"].items():
        assert about["metrics"].keys() == TASKS[name].metrics.keys() and len(about["runs"]) == 2
        for metric, values in about["metrics"].items():
            of_runs = [one["scores"][metric] for one in about["runs"]]
            assert values == {"median": sum(of_runs) / 2, "min": min(of_runs), "max": max(of_runs)}
    medians = {n: {m: v["median"] for m, v in about["metrics"].items()} for n, about in found["tasks"].items()}
    assert found["averages"] == {"bert_paper": bert_paper_average(medians), "glue": leaderboard_average(medians)}
    assert [one["ax"].keys() for one in found["tasks"]["mnli"]["runs"]] == [{"matthews", "accuracy"}] * 2
    config = (all_tasks / "out" / "rte-seed1" / "config.yaml").read_text()
    assert "init_from: out/mnli-seed" in config or "checkpoints/00-mnli/" in config
    submission = all_tasks / "out" / "submission"
    with zipfile.ZipFile(submission / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.tsv" for name in FILES)
        for name in FILES:
            head, *lines = archive.read(f"{name}.tsv").decode().splitlines()
            assert head == "index\tprediction"
            assert [line.split("\t")[0] for line in lines] == [str(i) for i in range(10)]
            said = {line.split("\t")[1] for line in lines}
            words = {"MNLI-m", "MNLI-mm", "AX"}, {"QNLI", "RTE"}
            if name in words[0]:
                assert said <= {"entailment", "neutral", "contradiction"}
            elif name in words[1]:
                assert said <= {"entailment", "not_entailment"}
            elif name != "STS-B":
                assert said <= {"0", "1"}
    page = Page((all_tasks / "out" / "glue.html").read_text())
    assert page.chart("Training loss")["series"]
    assert "BERT paper's average" in page.text and "mnli-seed2" in page.text
    assert "| MNLI" in (all_tasks / "out" / "glue.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cola", "mrpc", "mnli"])
def test_scores_are_those_of_transformers_and_scikit_learn(all_tasks, tmp_path, name):
    """As run_glue.py evaluates: AutoModelForSequenceClassification and its tokenizer on the exported folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    metrics = pytest.importorskip("sklearn.metrics")
    task, about = TASKS[name], scored(all_tasks)["tasks"][name]
    with chdir(all_tasks):
        chosen = scored(all_tasks)["submission"]["runs"][next(iter(task.tests))]
        export_checkpoint(chosen, tmp_path / "hf")
    own = next(one for one in about["runs"] if one["run"] == chosen)["scores"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()

    def logits(split: str) -> tuple[np.ndarray, list[dict[str, Any]]]:
        records = glue_data.read_copy(all_tasks / "out" / "data" / name / f"{split}.jsonl")
        texts = [[record[field] for record in records] for field in task.texts]
        with torch.no_grad():
            batch = tokenizer(*texts, padding=True, truncation=True, max_length=56, return_tensors="pt")
            return model(**batch).logits.numpy(), records

    found = {}
    for evaluation in task.evaluations:
        values, records = logits(evaluation)
        found[evaluation] = [task.labels.index(r["label"]) for r in records], values.argmax(1)
    if name == "mnli":
        expected = {f"accuracy_{key}": metrics.accuracy_score(*pair) for key, pair in found.items()}
    elif name == "cola":
        expected = {"matthews": metrics.matthews_corrcoef(*found["dev"])}
    else:
        expected = {"f1": metrics.f1_score(*found["dev"]), "accuracy": metrics.accuracy_score(*found["dev"])}
    for metric, value in expected.items():
        assert own[metric] == pytest.approx(100 * value, abs=1e-9), metric
    file, split = next(iter(task.tests.items()))
    values, _ = logits(split)
    lines = (all_tasks / "out" / "submission" / f"{file}.tsv").read_text().splitlines()[1:]
    said = [line.split("\t")[1] for line in lines]
    assert said == [submitted(task, task.labels[row.argmax()]) for row in values]


def test_a_damaged_list_of_saved_splits(tmp_path):
    from bertjax.tools.glue.data import _saved_splits

    path = tmp_path / "dataset_dict.json"
    for text in ("{", "[]", "1", '{"splits": 1}', '{"splits": null}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UserError, match=r"dataset_dict.json: "):
            _saved_splits(path)
    path.write_text('{"splits": ["train"]}')
    assert _saved_splits(path) == ["train"]
