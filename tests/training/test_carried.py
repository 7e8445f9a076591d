"""Heads that a stage does not train reach the next stages bit for bit, and every array of a start is accounted for."""

import json
from pathlib import Path

import numpy as np
import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.errors import StoppedSafely
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.predictors.masks import fill_mask
from bertjax.evaluation.restore import restore
from bertjax.tools.evaluate import evaluate_command
from bertjax.training import loop
from bertjax.training.checkpoint.locate import find
from bertjax.training.checkpoint.reader import CheckpointReader

THREE = """\
extends: {tiny}
run: {{root: {root}, name: three, log_every: 1, checkpoint: {{save_every: 1}}}}
tasks:
  labels: {{source: {{kind: jsonl, files: [labels.jsonl]}}, preprocess: {{kind: classify, sequence_length: 32}}}}
stages:
  - {{name: both, data: text, steps: 1, batch_size: 8, optimizer: {{learning_rate: 5e-2}}}}
  - {{name: adapt, data: text, steps: 2, batch_size: 8, objective: {{nsp_weight: 0}},
     optimizer: {{learning_rate: 5e-2}}}}
  - {{name: classify, data: labels, steps: 2, batch_size: 8, objective: {{kind: classification, num_labels: 3}},
     optimizer: {{learning_rate: 1e-30, weight_decay: 0}}}}
  - {{name: again, data: text, steps: 1, batch_size: 8, objective: {{nsp_weight: 0}},
     optimizer: {{learning_rate: 5e-2}}}}
"""
HEADS = ("heads/pooler/kernel", "heads/pooler/bias", "heads/nsp/kernel", "heads/nsp/bias")


@pytest.fixture(scope="module")
def project(tiny_project, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("three")
    for name in ("text.txt", "more.txt", "train.json", "heldout.json"):
        (home / name).symlink_to(tiny_project / name)
    rows = [{"text": f"the {word} sleeps", "label": word} for word in ("owl", "cat", "dog")] * 8
    (home / "labels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (home / "three.yaml").write_text(THREE.format(tiny=tiny_project / "tiny.yaml", root=home / "runs"))
    return home


@pytest.fixture(scope="module")
def run(project, once) -> Path:
    config = load(project / "three.yaml")
    with once():
        loop.train(config, project, build_evaluators)
    return config.run_dir


def arrays(run: Path, stage: str) -> dict[str, np.ndarray]:
    restored = restore(run, stage=stage)
    return {path: np.asarray(x) for path, x in restored.params.items()}


def starts(run: Path) -> dict[str, str]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {x["stage"]: x["init"] for x in found if x.get("event") == "start"}


def meta(run: Path, stage: str) -> dict:
    checkpoints = CheckpointReader(find(run, stage=stage))
    return checkpoints.meta()


def test_a_pooler_survives_a_stage_that_does_not_read_it(run):
    both, adapt, last = arrays(run, "both"), arrays(run, "adapt"), arrays(run, "classify")
    assert both["heads/pooler/kernel"].std() > 0
    for path in HEADS:
        np.testing.assert_array_equal(adapt[path], both[path])
    assert not np.array_equal(adapt["heads/mlm/bias"], both["heads/mlm/bias"])
    for path in HEADS[:2]:  # at a rate of nothing the classifier's pooler is the one it started with
        np.testing.assert_array_equal(last[path], both[path])
    np.testing.assert_array_equal(last["heads/mlm/bias"], adapt["heads/mlm/bias"])


def test_each_array_of_a_start_is_named(run):
    said = starts(run)
    assert said["adapt"] == (
        "34 of 34 arrays from stage 'both' (embeddings, layers 0..1, heads/mlm); "
        "carried on, not trained here: heads/nsp, heads/pooler"
    )
    assert said["classify"] == (
        "31 of 33 arrays from stage 'adapt' (embeddings, layers 0..1, heads/pooler); fresh: heads/classifier; "
        "carried on, not trained here: heads/mlm, heads/nsp"
    )
    assert said["again"].endswith("carried on, not trained here: heads/classifier, heads/nsp, heads/pooler")


def test_meta_tells_trained_heads_from_carried_ones(run):
    found = {name: meta(run, name) for name in ("both", "adapt", "classify", "again")}
    assert {name: (of["heads"], of["carried"]) for name, of in found.items()} == {
        "both": (["mlm", "nsp"], []),
        "adapt": (["mlm"], ["nsp"]),
        "classify": (["classifier"], ["mlm", "nsp"]),
        "again": (["mlm"], ["nsp", "classifier"]),
    }
    assert found["again"]["labels"] == found["classify"]["labels"] and len(found["again"]["labels"]) == 3
    assert found["again"]["num_labels"] == 3
    tree = json.loads((run / "checkpoints/01-adapt/2/digest/metadata").read_text())["leaves"]
    slots = [path for path in tree if path.startswith("opt/") and ("pooler" in path or "nsp" in path)]
    assert "params/heads/nsp/kernel" in tree and not slots


def test_a_stopped_stage_keeps_what_it_carries(project, run, once, stop_at):
    config = load(project / "three.yaml", ["run.name=stopped"])
    stop_at("adapt", 1)
    with once(), pytest.raises(StoppedSafely):
        loop.train(config, project, build_evaluators)
    stop_at("adapt", -1)
    with once():
        loop.train(config, project, build_evaluators)
    for stage in ("adapt", "classify"):
        one, two = arrays(run, stage), arrays(config.run_dir, stage)
        assert one.keys() == two.keys() and all(np.array_equal(one[path], two[path]) for path in one)


def test_commands_know_carried_heads(run, tmp_path, capsys):
    assert main(["inspect", str(run / "checkpoints" / "02-classify")]) == 0
    assert "carried heads, not trained here: mlm, nsp\n" in capsys.readouterr().out
    assert main(["inspect", str(run)]) == 0  # marks what trained, as the run's own table does
    assert (run / "model.txt").read_text() in capsys.readouterr().out
    (filled,) = fill_mask(run / "checkpoints" / "02-classify", ["The [MASK] sleeps."])
    assert len(filled["masks"]) == 1 and "the 'mlm' head" in capsys.readouterr().err
    assert main(["export", str(run / "checkpoints" / "02-classify" / "2"), str(tmp_path / "hf")]) == 0
    out = capsys.readouterr()
    assert out.err == "note: not exported, the Hugging Face class lacks them: heads/mlm, heads/nsp\n"
    described = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert described["architectures"] == ["BertForSequenceClassification"]


@pytest.mark.slow
def test_layers_that_a_start_has_too_many_are_named(project, run, once):
    config = load(
        project / "three.yaml",
        ["run.name=shallow", "model.num_hidden_layers=1", f"tokenizer.path={run / 'tokenizer'}",
         f"stages=[{{name: both, data: text, steps: 1, batch_size: 8, init_from: {run / 'checkpoints/00-both'}}}]"],
    )  # fmt: skip
    with once():
        loop.train(config, project, build_evaluators)
    assert starts(config.run_dir)["both"].endswith("; left unused: layer 1")


def test_a_carried_classifier_is_scored_by_its_own_classes(run, project, one_device, monkeypatch):
    """Stage 'again' trains another objective; its classifier has three classes and not the two of the default."""
    monkeypatch.chdir(project)
    rows = "data: {source: {kind: jsonl, files: [labels.jsonl]}, preprocess: {kind: classify, sequence_length: 32}}"
    scores = lambda stage: evaluate_command(  # noqa: E731
        run, None, stage, None, [f"stages.{stage}.evaluate=[{{kind: classification, {rows}}}]"]
    )["scores"]["classification"]  # fmt: skip
    assert scores("again").keys() == {"accuracy", "matthews", "macro_f1", "weighted_f1"}
