"""Training on frozen features in runs: kept or not the same losses; checkpoints, stages after them, refusals."""

import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from bertjax.config.loading.load import build, fingerprint, load
from bertjax.config.schema.model import BertConfig
from bertjax.errors import StoppedSafely, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.models.bert.flops import encoder_flops, row_flops
from bertjax.models.peft_options import PeftOptions
from bertjax.plan.compile import build_stage_program
from bertjax.plan.stages import _stage_info
from bertjax.tools import compare, convert_hf
from bertjax.tools.inspect import inspect_command
from bertjax.training import loop
from bertjax.training.checkpoint.locate import find
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.feature_cache import memory
from bertjax.training.monitor.tracking import Tracker, read_lines

STEPS = 20  # of 8 rows: more than the 90 that there are
WEIGHTED = {"kind": "features", "feature_layers": "weighted"}
HEADS = {"heads/qa/kernel", "heads/qa/bias"}
MIX = {"heads/layer_mix/weights", "heads/layer_mix/gamma"}


@pytest.fixture(scope="module")
def tree(tiny_project) -> Callable[[], dict[str, Any]]:
    return lambda: yaml.safe_load((tiny_project / "tiny.yaml").read_text().replace("5e-3", "0.005"))


@pytest.fixture(scope="module")
def train(tiny_project, tree, tmp_path_factory, once) -> Callable[..., Path]:
    """Trains the questions of tiny.yaml from a run, or only its pre-training -> the run folder."""
    root = tmp_path_factory.mktemp("features")

    def run(name: str, trainable: Any = None, base: Path | None = None, **stage: Any) -> Path:
        config = tree()
        config["run"] |= {"name": name, "root": str(root)}
        before, last = config["stages"]
        config["stages"] = [before | {"steps": 2, "evaluate": []}]
        if base is not None:
            last |= {"steps": STEPS, "evaluate": [], "trainable": trainable, "init_from": str(base)} | stage
            config |= {"tokenizer": {"path": str(root / "pretrained" / "tokenizer")}, "stages": [last]}
        with once(), chdir(tiny_project):
            loop.train(build(config), tiny_project, build_evaluators)
        return root / name

    return run


@pytest.fixture(scope="module")
def pretrained(train) -> Path:
    return train("pretrained")


@pytest.fixture(scope="module")
def weighted(train, pretrained) -> Path:
    return train("weighted", WEIGHTED, pretrained)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]


def events(run: Path) -> list[dict]:
    return [line for line in read_lines(run / "metrics.jsonl") if line.get("event") == "features"]


def held(run: Path) -> dict[str, list]:
    """{parameter: shape, dtype and digest} in the last checkpoint of a run."""
    checkpoints = CheckpointReader(find(run).folder)
    leaves = checkpoints.items(checkpoints.committed_steps()[-1])[0]["leaves"]
    return {path.removeprefix("params/"): x for path, x in leaves.items() if path.startswith("params/")}


def test_kept_features_give_the_losses_of_the_encoder(train, pretrained, weighted, stop_at, once):
    """Also after a stop in the middle; only the head and the mixture move, and checkpoints hold nothing else."""
    other = train("encoded", WEIGHTED | {"cache_features": False}, pretrained)
    (said,) = events(weighted)
    rows = said["rows"]
    assert 90 <= rows < STEPS * 8 and said["bytes"] == rows * 48 * 3 * 16 * 4  # S positions of L + 1 states of D floats
    assert not events(other) and len(losses(weighted)) == STEPS
    np.testing.assert_allclose(losses(weighted), losses(other), rtol=0, atol=1e-5)
    assert losses(weighted)[-1] < losses(weighted)[0]
    stop_at("qa", 7)
    with pytest.raises(StoppedSafely):
        train("stopped", WEIGHTED, pretrained)
    stop_at("qa", -1)
    again = train("stopped", WEIGHTED, pretrained)
    assert len(events(again)) == 2 and losses(again) == losses(weighted) and held(again) == held(weighted)
    assert held(weighted).keys() == HEADS | MIX
    with once():
        before, after = (jax.device_get(restore(run).params) for run in (pretrained, weighted))
    assert all(np.array_equal(before[path], after[path]) for path in before if not path.startswith("heads/"))
    assert np.any(after["heads/layer_mix/weights"]) and after["heads/layer_mix/gamma"] != 1


def test_features_that_are_not_kept_are_said_in_a_line(train, pretrained, weighted, monkeypatch):
    notes: list[str] = []
    monkeypatch.setattr(Tracker, "note", lambda self, text: notes.append(text))
    small = train("small", WEIGHTED | {"cache_gib": 1e-6}, pretrained)
    assert losses(small) == pytest.approx(losses(weighted), abs=1e-5) and not events(small)
    train("short", WEIGHTED, pretrained, steps=3)
    train("masked", "features", pretrained, data="text", objective={"kind": "mlm_nsp"}, steps=3)
    about = [note for note in notes if "not cached" in note]
    assert len(about) == 3 and all(note.startswith("qa: features are not cached, every step encodes") for note in about)
    assert "is more than" in about[0] and "stages.qa.trainable.cache_gib" in about[0]
    assert "the 24 rows to read are no more than" in about[1] and "rows are masked when they are read" in about[2]
    assert 0 < memory.free_memory()


def test_stages_after_a_mixture_and_export(train, pretrained, weighted, tmp_path, once):
    """A head that read a mixture is not given another layer; other heads are not carried through it."""
    with pytest.raises(
        UserError, match=r"its heads were trained on feature_layers: weighted; .*stages.qa.fresh=\[qa\]"
    ):
        train("refused", "all", weighted)
    assert held(train("fresh", "all", weighted, fresh=["qa"], steps=2)).keys() >= HEADS
    again = train("again", WEIGHTED, weighted, steps=2, optimizer={"learning_rate": 1e-30})
    with once():
        one, other = (jax.device_get(restore(run).params) for run in (weighted, again))
    assert one.keys() == other.keys() and all(np.allclose(one[path], other[path], atol=1e-7) for path in one)
    with once():
        with pytest.raises(
            UserError, match=r"a mixture of layers \(feature_layers: weighted\), for which transformers"
        ):
            convert_hf.export_checkpoint(weighted, tmp_path / "none")
        assert not (tmp_path / "none").exists()
        last = train("last", "features", pretrained, steps=2)
        convert_hf.export_checkpoint(last, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertForQuestionAnswering"]
    assert {path for path in held(last) if path not in HEADS} == {p for p in held(pretrained) if p.startswith("heads/")}


def test_inspect_and_compare(weighted, tiny_project, tree, train, pretrained, once):
    said = inspect_command(weighted, [], None, False)
    assert "(* trains: 38)" in said  # 2 D + 2 of the head, L + 1 shares and a factor
    config = load(weighted / "config.yaml")
    with once(), chdir(tiny_project):
        found = compare.measure_run(config, tiny_project)
    assert found["trained"] == 38 and found["share"] == pytest.approx(38 / found["parameters"])
    assert found["cache_seconds"] > 0 and found["optimizer_bytes"] == 2 * 38 * 4
    text = inspect_command(weighted / "config.yaml", [], None, False)
    assert "on features of the encoder (weighted)" in text and "trains 38 parameters: heads" in text


def test_a_plan_says_what_its_step_does(weighted):
    """It compiles the step without a cache, whose size depends on the data."""
    config = load(weighted / "config.yaml")
    opened = build_stage_program(config, config.stages[0], jax.devices()[:1])
    (note,) = _stage_info(opened)["notes"]
    assert "this step encodes its rows" in note and "9.22 kB a row" in note  # 48 positions of 3 states of 16 floats
    assert _stage_info(opened)["trained_parameters"] == 38


def test_flops_of_steps_that_read_features():
    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    widths = {"input_ids": 48}
    counted = lambda **more: row_flops(config, widths | more, ("qa",), ("heads",), PeftOptions(feature_layers="last"))  # noqa: E731
    assert counted() == encoder_flops(config, 48) and counted(features=48) == 0


@pytest.mark.parametrize(
    ("trainable", "stage", "words"),
    [
        ({"kind": "features", "feature_layers": "sum_last_four"}, {}, "needs 4 layers or more; the model has 2"),
        ("features", {"objective": {"kind": "sentence_embedding"}}, "features: the objective .* has no head"),
        ({"kind": "gradual", "unfreeze_ratio": 0.5, "episodes": 1}, {}, "unfreeze_ratio needs episodes of 2 or more"),
        ({"kind": "features", "feature_layers": "first"}, {}, "feature_layers"),
        ({"kind": "features", "cache_gib": 0}, {}, "cache_gib"),
    ],
)
def test_what_does_not_fit_is_refused(tree, trainable, stage, words):
    config = tree()
    config["stages"][1] |= {"trainable": trainable} | stage
    with pytest.raises(UserError, match=words) as caught:
        build(config)
    assert "\n" not in str(caught.value)


def test_a_t5_has_no_features(tiny_t5_project):
    with pytest.raises(UserError, match="trainable: features: not for a t5 model, only for encoders"):
        load(tiny_t5_project / "tiny.yaml", ["stages.qa.trainable=features"])


def test_how_features_are_kept_is_not_part_of_a_run(tree):
    def of(trainable: Any) -> str:
        config = tree()
        config["stages"][1]["trainable"] = trainable
        return fingerprint(build(config))

    assert (
        of("features") == of({"kind": "features", "cache_features": False}) == of({"kind": "features", "cache_gib": 2})
    )
    assert len({of("features"), of("head"), of(WEIGHTED)}) == 3
