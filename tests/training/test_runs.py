"""What a person may name as a checkpoint: a run, a stage's folder or a step, wherever they were copied to."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bertjax.cli.main import main
from bertjax.config.loading.pretrained import read_model_fields
from bertjax.errors import UserError
from bertjax.evaluation.restore import restore
from bertjax.report.record import read_run
from bertjax.tools.inspect import inspect_checkpoint
from bertjax.training.checkpoint import locate
from bertjax.training.checkpoint.locate import find, find_run_dir
from bertjax.training.checkpoint.reader import CheckpointReader


@pytest.fixture(scope="module")
def lone(whole, tmp_path_factory) -> Path:
    """Copies of a step under other names, of a stage and of all stages, with nothing else of the run."""
    home = tmp_path_factory.mktemp("lone")
    step = whole / "checkpoints" / "01-qa" / "6"
    for name in ("copied", "6", "150", "two words"):
        shutil.copytree(step, home / name)
    shutil.copytree(whole / "checkpoints" / "01-qa", home / "stage-copy")
    shutil.copytree(whole / "checkpoints", home / "every")
    (home / "link").symlink_to(step)
    (home / "empty").mkdir()
    (home / "config.yaml").write_text("model: {hidden_size: 99}\n")  # of something else
    return home


NAMES = [
    "copied",
    "6",
    "150",
    "two words",
    "stage-copy",
    "stage-copy/6",
    "every",
    "every/01-qa",
    "link",
    "copied/",
    "6/.",
]


def test_a_copy_opens_by_a_relative_path(lone, one_device, monkeypatch):
    monkeypatch.chdir(lone)
    assert restore(Path("copied")).params


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_what_it_was(whole, lone, name):
    found = find(f"{lone}/{name}")
    ours = CheckpointReader(found)
    theirs = CheckpointReader(find(whole))
    assert ours.meta(found.step) == theirs.meta()
    assert find_run_dir(found.folder) == (whole if name == "link" else None)
    assert inspect_checkpoint(lone / name, None)["step"] == 6
    assert read_model_fields(lone / name)["hidden_size"] == 16


def test_the_current_folder_is_a_checkpoint(lone, monkeypatch):
    monkeypatch.chdir(lone / "copied")
    assert find(".").path == (lone / "copied").resolve()


def test_its_parameters_are_the_same(whole, lone, one_device):
    wanted = restore(whole)
    for name in ("copied", "150", "stage-copy"):
        found = restore(lone / name)
        assert found.step == 6 and found.params.keys() == wanted.params.keys()
        assert all(np.array_equal(found.params[path], x) for path, x in wanted.params.items())


def test_a_run_below_a_folder_called_checkpoints(whole, tmp_path):
    moved = tmp_path / "checkpoints" / "mine"
    moved.parent.mkdir()
    moved.symlink_to(whole)
    assert find(moved).folder == moved / "checkpoints" / "01-qa"


REFUSED = [
    ("copied", {"step": 5}, "is step 6; leave out --step 5, or name the folder above it$"),
    ("copied", {"stage": "pretrain"}, "is a step of stage 'qa'; leave out --stage pretrain, or name the run folder$"),
    ("stage-copy", {"stage": "pretrain"}, "holds stage 'qa' alone; leave out --stage, or name the run folder$"),
    ("empty", {}, "holds no checkpoint; is it a run folder"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED)
def test_what_a_path_has_decided_is_not_decided_again(lone, name, options, words):
    with pytest.raises(UserError, match=words):
        find(lone / name, **options)
    assert find(lone / "copied", stage="qa", step=6).step == 6


@pytest.mark.parametrize("part", ["meta", "digest", "state"])
def test_a_step_that_lost_a_part_says_which(lone, tmp_path, one_device, part):
    broken = shutil.copytree(lone / "copied", tmp_path / "broken")
    shutil.rmtree(broken / part)
    with pytest.raises(UserError, match=re.escape(str(broken))) as error:
        restore(broken)
    assert "\n" not in str(error.value) and "copy" in str(error.value)


# ---- where an evaluation is kept ------------------------------------------------------------------------------------


def kept_in(out: str) -> Path:
    return Path(re.search(r"kept in (.*)$", out, re.M)[1])


@pytest.mark.parametrize("name", ["copied", "two words"])
def test_scores_are_kept_beside_a_lone_checkpoint(whole, lone, tiny_project, one_device, monkeypatch, capsys, name):
    monkeypatch.chdir(tiny_project)
    before = sorted(p for p in (lone / name).rglob("*"))
    assert main(["evaluate", str(lone / name)]) == 0
    out = capsys.readouterr()
    folder = lone / f"{name.replace(' ', '_')}-evaluation"
    assert kept_in(out.err) == folder
    kept = json.loads((folder / "evaluations" / "01-qa" / "squad.json").read_text())
    assert kept["scores"] == json.loads(out.out)["scores"]["squad"]
    assert kept["scores"] == json.loads((whole / "evaluations" / "01-qa" / "squad.json").read_text())["scores"]
    assert sorted(p for p in (lone / name).rglob("*")) == before


def test_where_nothing_can_be_written_the_current_folder_is_used(lone, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).startswith(str(lone)))
    monkeypatch.chdir(tmp_path)
    assert locate.results_folder(find(lone / "copied")) == (tmp_path / "copied-evaluation", False)


def test_data_that_are_not_here_are_one_line(lone, tmp_path, one_device, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(lone / "copied")]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(err) == 1 and "heldout.json" in err[0] and "stages.qa.evaluate.squad.data.source" in err[0]


def test_a_report_needs_a_run(lone):
    with pytest.raises(UserError, match="is a checkpoint, and only a run folder has a report"):
        read_run(lone / "copied")


def test_export_and_start_from_a_lone_step(lone, tiny_project, one_device, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tiny_project)
    assert main(["export", str(lone / "150"), str(tmp_path / "hf")]) == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["hidden_size"] == 16
    start = f"init_from: {lone / '150'}, optimizer: {{learning_rate: 5e-3}}"
    stage = f"{{name: more, data: text, steps: 5, batch_size: 8, {start}}}"
    assert main(["train", "tiny.yaml", f"run.root={tmp_path}", "run.name=again", f"stages=[{stage}]"]) == 0
    assert f"38 of 38 arrays from {lone / '150'} (" in capsys.readouterr().out
