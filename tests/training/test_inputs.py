"""Missing files: all of them, by the key that names them, before anything is prepared."""

import importlib.util
import os
from types import SimpleNamespace

import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.errors import UserError
from bertjax.evaluation.metrics import by_prompt
from bertjax.tools import evaluate
from bertjax.training import inputs
from bertjax.training.checkpoint.stage_files import run_stages

GONE = "stages.qa.evaluate.squad.data.source.0.files"


@pytest.fixture
def project(tiny_project, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_project)
    return tmp_path


def found(check, *overrides: str, root="nowhere") -> list[str]:
    config = load("tiny.yaml", [f"run.root={root}", *overrides])
    with pytest.raises(UserError) as caught:
        check(config)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("command", ["train", "prepare", "compare"])
def test_every_missing_file_of_every_stage_is_named_at_once_and_nothing_is_written(project, capsys, command):
    overrides = [
        "tasks.text.source.files=[text.txt, gone.txt, 'no/*.txt']",
        "stages.qa.evaluate.0.data.source.files=[heldout.json, gone.json]",
        "tokenizer.path=gone/vocab.txt",
        "compare=[{name: full, trainable: all}]",
    ]
    assert main([command, "tiny.yaml", f"run.root={project}/runs", *overrides]) == 2
    out, err = capsys.readouterr()
    lines, here = err.splitlines(), os.getcwd()
    assert lines[0].startswith(f"tokenizer.path: {here}/gone/vocab.txt: no such file")
    assert lines[1].startswith(f"tasks.text.source.0.files: {here}/gone.txt: no such file")
    assert lines[2].startswith(f"tasks.text.source.0.files: {here}/no/*.txt: no file matches")
    assert lines[3].startswith(f"{GONE}: {here}/gone.json: no such file")
    assert len(lines) == 4 and out == "" and not (project / "runs").exists()


def test_every_kind_of_source_start_and_place(project):
    (project / "folder").mkdir()
    (project / "empty.txt").touch()
    (project / "a.zip").write_text("x")
    (project / "file").write_text("x")
    names = {
        "{kind: jsonl, files: [gone.jsonl]}": "files: {here}/gone.jsonl: no such file",
        "{kind: parquet, files: ['{p}/folder']}": "files: {p}/folder: the folder is empty",
        "{kind: tsv, files: ['{p}/empty.txt']}": "files: {p}/empty.txt: the file is empty",
        "{kind: text, files: ['{p}/a.zip']}": "files: {p}/a.zip: .zip files are not read",
        "{kind: huggingface, name: ./gone}": "name: {here}/gone: no such file or folder",
        "{kind: huggingface, name: gone.csv}": "name: {here}/gone.csv: no such file or folder",
        "{kind: tfds, name: x, data_dir: gone}": "data_dir: {here}/gone: tfds data_dir: no such folder",
        "{kind: huggingface, name: someone/on-the-hub}": None,
        "{kind: tfds, name: glue}": None,
        "{kind: stdlib_docs}": None,
    }
    place = {"p": str(project), "here": os.getcwd()}
    fill = lambda text: text.replace("{p}", place["p"]).replace("{here}", place["here"])  # noqa: E731
    lines = found(
        lambda config: inputs.check_run(run_stages(config, inputs.Path.cwd())),
        f"tasks.text.source=[{', '.join(map(fill, names))}]",
        "stages.pretrain.init_from=gone",
        f"stages.qa.init_from={project}/folder",
        f"tokenizer.path={project}/folder",
        root=project / "file" / "runs",
    )
    expected = [f"run.root: {project}/file: is a file", "stages.pretrain.init_from: ", "stages.qa.init_from: "]
    expected += [f"tokenizer.path: {project}/folder: the folder holds none of"]
    said = [text and fill(text) for text in names.values()]
    expected += [f"tasks.text.source.{number}.{text}" for number, text in enumerate(said) if text]
    assert len(lines) == len(expected)
    assert all(line.startswith(text) for line, text in zip(lines, expected, strict=True)), lines


def test_files_that_may_not_be_read(project, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: "heldout" not in str(path))
    lines = found(lambda config: inputs.check_prepare(config, inputs.Path.cwd()))
    assert lines == [f"{GONE}: {os.getcwd()}/heldout.json: cannot be opened (permission denied); check its permissions"]


def test_what_a_finished_stage_read_may_be_gone(project):
    """A run that goes on in its second stage needs no evaluation and no start of the first one any more."""
    step = project / "tiny" / "checkpoints" / "01-qa" / "2"
    step.mkdir(parents=True)
    (step / "x").touch()
    gone = ["stages.pretrain.evaluate.0.data.source.files=[gone.txt]", "stages.qa.init_from=gone"]
    config = load("tiny.yaml", [f"run.root={project}", *gone])
    inputs.check_run(run_stages(config, inputs.Path.cwd()))
    assert inputs.has_begun(config)
    (step / "x").unlink()
    assert len(found(lambda config: inputs.check_run(run_stages(config, inputs.Path.cwd())), *gone, root=project)) == 2


def test_evaluate_asks_for_the_files_of_the_evaluations_that_it_runs(project, monkeypatch):
    def restored(path, **options):
        config = load("tiny.yaml", options["overrides"])
        ctx, program = SimpleNamespace(config=config, base=inputs.Path.cwd()), SimpleNamespace(heads=("qa",))
        return SimpleNamespace(ctx=ctx, stage=1, program=program, fitted={}, saved_config=config)

    monkeypatch.setattr(evaluate, "restore", restored)
    overrides = ["stages.qa.evaluate.0.data.source.files=[gone.json]"]
    with pytest.raises(UserError, match=rf"^{GONE}: .*/gone.json: no such file"):
        evaluate.evaluate_command(project, None, None, None, overrides)


@pytest.mark.parametrize("metric", ["bleu", "rouge"])
def test_a_metric_s_package_is_missed_before_the_run_and_not_after_its_first_stage(monkeypatch, metric):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"metric '{metric}' needs .*: pip install 'bertjax\[eval\]'"):
        by_prompt.check_metrics([metric], None, [])
