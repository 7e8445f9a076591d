"""The best checkpoint of each task: kept while training, and restored by the name of its score."""

import json
from pathlib import Path

import pytest

from bertjax.cli import main
from bertjax.config.loading.load import load
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.training import loop
from bertjax.training.checkpoint.layout import SCORES as SCORES_FILE
from bertjax.training.checkpoint.layout import committed_steps
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.loop import Evaluator

DATA = "data: {source: {kind: text, files: [more.txt], layout: sentences}, preprocess: {sequence_length: 32}}"
EVALUATE = f"[{{kind: mlm, name: cola, every: 1, {DATA}}}, {{kind: mlm, name: squad, every: 2, {DATA}}}]"
SCORES = {"cola": {1: 1.0, 2: 9.0, 3: 2.0, 4: 3.0, 5: 4.0}, "squad": {2: 1.0, 4: 7.0, 5: 6.0}}  # by step
OVERRIDES = [f"stages.pretrain.evaluate={EVALUATE}", "run.checkpoint.keep_last=1", "run.checkpoint.save_every=5"]


def told(ctx, index, program, labels):
    """Evaluations whose scores are known before."""
    made = []
    for evaluator in build_evaluators(ctx, index, program, labels) if index else ctx.config.stages[0].evaluate:
        of = SCORES.get(getattr(evaluator, "name", ""))
        made.append(Evaluator(evaluator, lambda _, step, of=of: {"mlm_accuracy": of[step]}) if of else evaluator)
    return made


@pytest.fixture
def run(tiny_project, tmp_path, one_device) -> Path:
    keep = "run.checkpoint.keep_best=[cola/mlm_accuracy,squad/mlm_accuracy]"
    config = load(tiny_project / "tiny.yaml", [f"run.root={tmp_path}", "run.name=best", keep, *OVERRIDES])
    loop.train(config, tiny_project, told)
    return config.run_dir


def test_each_task_keeps_its_best_step(run, tiny_project, monkeypatch, capsys):
    folder = run / "checkpoints" / "00-pretrain"
    assert committed_steps(folder) == [2, 4, 5]  # the best of cola, the best of squad, and the last
    scores = {}
    checkpoints = CheckpointReader(folder)
    for step in (2, 4, 5):
        scores[step] = json.loads((folder / str(step) / SCORES_FILE).read_text())
    assert (checkpoints.best_step("cola/mlm_accuracy"), checkpoints.best_step("squad/mlm_accuracy")) == (2, 4)
    assert scores == {step: {f"{name}/mlm_accuracy": of[step] for name, of in SCORES.items()} for step in (2, 4, 5)}
    monkeypatch.chdir(tiny_project)
    for score, step in (("cola/mlm_accuracy", 2), ("squad/mlm_accuracy", 4)):
        assert restore(run, stage="pretrain", best=score).step == step
        assert main.main(["evaluate", str(run), "--stage", "pretrain", "--best", score, "--name", "cola"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["step"] == step and found["scores"].keys() == {"cola"}
    with pytest.raises(
        UserError, match="no checkpoint has a score 'cola/em'; their scores: cola/mlm_accuracy, squad/mlm_accuracy"
    ):
        restore(run, stage="pretrain", best="cola/em")
    with pytest.raises(UserError, match="step 2 is named already"):
        restore(folder / "2", best="squad/mlm_accuracy")


def test_a_score_no_evaluation_gives_is_refused(tiny_project):
    for wrong in ("squda/f1", "squad"):
        with pytest.raises(UserError, match=f"no evaluation gives '{wrong}'; the scores are "):
            load(tiny_project / "tiny.yaml", [f"run.checkpoint.keep_best=[{wrong}]"])
