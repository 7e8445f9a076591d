"""A run of a T5 from end to end: a mixture, then gradual unfreezing; stopped anywhere it continues bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertjax.config.loading.load import load
from bertjax.errors import StoppedSafely
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.tools.evaluate import evaluate_command
from bertjax.training import loop

pytestmark = pytest.mark.usefixtures("one_device")
TIMES = {"tokens_per_second", "step_seconds", "data_wait", "mfu", "memory_bytes", "elapsed"}
STOPS = [("pretrain", 3), ("qa", 2), ("qa", 3), ("qa", 5)]  # in the mixture, in an episode, between two, in the last


@pytest.fixture(scope="module")
def train(tiny_t5_project, tmp_path_factory, once) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("runs")

    def run(name: str) -> Path:
        config = load(tiny_t5_project / "tiny.yaml", [f"run.root={root}", f"run.name={name}"])
        with once():
            loop.train(config, tiny_t5_project, build_evaluators)
        return config.run_dir

    return run


@pytest.fixture(scope="module")
def whole(train) -> Path:
    return train("whole")


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found if line["kind"] == kind]


def arrays(run: Path, stage: str, step: int) -> dict[str, Any]:
    path = run / "checkpoints" / stage / str(step) / "digest" / "metadata"
    return json.loads(path.read_text())["leaves"]


def test_what_a_run_records(whole):
    train_lines = lines(whole, "train")
    assert [(line["stage"], line["step"]) for line in train_lines] == [
        *(("pretrain", step) for step in range(1, 6)), *(("qa", step) for step in range(1, 7)),
    ]  # fmt: skip
    assert all(line["target_loss"] > 0 for line in train_lines)
    assert all("target_loss/spans" in line and "share/questions" in line for line in train_lines[:5])
    assert not any("target_loss/spans" in line for line in train_lines[5:])
    episodes = [line for line in lines(whole, "event") if line["event"] == "episode" and line["stage"] == "qa"]
    first, last = (set(episode["groups"]) for episode in episodes)
    assert first == last - {f"{s}/layers/0{k}" for s in ("encoder", "decoder") for k in ("", "/norms")}
    assert {"embeddings", "encoder/shared", "decoder/shared/norms"} <= first
    scores = {line["name"]: line["scores"] for line in lines(whole, "eval")}
    assert scores["loss"]["target_loss"] > 0 and scores["text_to_text"]["examples"] == 24


def test_frozen_layers_keep_their_bits(whole):
    before, after = arrays(whole, "00-pretrain", 5), arrays(whole, "01-qa", 2)
    frozen = [path for path in before if path.startswith("params/") and "coder/layers/0/" in path]
    trained = [path for path in before if path.startswith("params/") and "coder/layers/1/" in path]
    assert frozen and all(before[path] == after[path] for path in frozen)
    assert trained and all(before[path] != after[path] for path in trained)


def test_stops_in_a_mixture_and_in_an_episode_change_no_bit(whole, train, monkeypatch):
    for stage, step in STOPS:
        asked = lambda self, now, at=(stage, step): (self.name, now) == at  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(loop.StageRunner, "should_stop", asked)
            with pytest.raises(StoppedSafely):
                train("stopped")
    stopped = train("stopped")
    assert [(line["stage"], line["step"]) for line in lines(stopped, "event") if line["event"] == "resume"] == STOPS
    assert lines(stopped, "train") == lines(whole, "train")
    assert [line["scores"] for line in lines(stopped, "eval")] == [line["scores"] for line in lines(whole, "eval")]
    for stage, last in (("00-pretrain", 5), ("01-qa", 6)):
        assert arrays(stopped, stage, last) == arrays(whole, stage, last)


def test_a_checkpoint_scores_what_training_scored(whole, tiny_t5_project, monkeypatch):
    monkeypatch.chdir(tiny_t5_project)
    told = {line["name"]: line["scores"] for line in lines(whole, "eval") if line["stage"] == "qa"}
    assert evaluate_command(whole, None, None, None, [])["scores"] == told
    assert restore(whole).program.model.family == "t5"
