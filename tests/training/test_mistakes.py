"""Runs that go wrong: numbers that are none, stages that cannot start, data that cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertjax.cli.main import main
from bertjax.data.pipeline.loader import Batches
from bertjax.errors import DivergedError, StoppedSafely
from bertjax.evaluation.restore import restore
from bertjax.training.checkpoint.layout import committed_steps

pytestmark = pytest.mark.usefixtures("one_device")


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def digests(run: Path, stage: str, step: int) -> dict[str, Any]:
    """Shape, dtype and digest of every array of a checkpoint: parameters, slots, key."""
    return json.loads((run / "checkpoints" / stage / str(step) / "digest" / "metadata").read_text())["leaves"]


# ---- numbers that are none ------------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch) -> Callable[..., None]:
    """NaN as the weight of every masked token of the batches of these steps."""
    batch = Batches.batch

    def install(*steps: int) -> None:
        def poisoned(self: Batches, k: int, *given: object) -> dict[str, np.ndarray]:
            found = batch(self, k, *given)
            if k + 1 in steps and "masked_weights" in found:
                found["masked_weights"][:] = np.nan
            return found

        monkeypatch.setattr(Batches, "batch", poisoned)

    return install


def test_a_step_that_is_not_finite_is_skipped(whole, train, poison, stop_at):
    poison(2, 3)
    for step in (3, 4):
        stop_at("pretrain", step)
        with pytest.raises(StoppedSafely):
            train("skipped", "run.checkpoint.save_every=1", "run.checkpoint.keep_last=9")
    found = lines(train.root / "skipped", "train")
    assert [line["loss"] is None for line in found] == [False, True, True, False]
    assert [line.get("bad_steps", 0) for line in found] == [0, 1, 2, 0]
    saved = committed_steps(train.root / "skipped" / "checkpoints" / "00-pretrain")
    assert saved == [1, 3, 4]  # 3 because of the stop: no other step that is not finite is saved
    one, three, four = (digests(train.root / "skipped", "00-pretrain", step) for step in saved)
    same = [path for path in one if path.startswith(("params/", "opt/", "key"))]
    assert all(one[path] == three[path] for path in same)
    assert any(four[path] != three[path] for path in same)


def test_three_such_steps_end_the_run_and_nothing_bad_is_saved(
    train, poison, stop_at, tiny_project, monkeypatch, capsys
):
    monkeypatch.chdir(tiny_project)
    command = ["train", "tiny.yaml", f"run.root={train.root}", "run.name=diverged", "run.checkpoint.save_every=1"]
    poison(3, 4, 5)
    stop_at("pretrain", 4)
    assert main(command) == 75  # the count of bad steps is part of the state, and goes on from there
    stop_at("", 0)
    assert main(command) == 3
    folder = train.root / "diverged" / "checkpoints" / "00-pretrain"
    said = "step 2, 4 was moved to quarantine/, and the last checkpoint, step 1, is good"
    assert said in capsys.readouterr().err  # step 2 is what step 3 could not go on from, step 4 the stop after it
    assert committed_steps(folder) == [1] and {p.name for p in (folder / "quarantine").iterdir()} == {"2", "4"}
    for step in committed_steps(folder):
        params = restore(folder, step=step).params
        assert all(np.isfinite(np.asarray(x)).all() for x in params.values())
    with pytest.raises(DivergedError, match=r"stage 'pretrain' step 5: .*not finite 3 steps in a row"):
        train("diverged", "run.checkpoint.save_every=1")
    poison()
    train("diverged", "run.checkpoint.save_every=1")  # the cause is gone: the same run goes on


def test_weights_that_exploded_are_not_what_a_run_goes_on_from(train, stop_at):
    """A step of enormous size leaves finite parameters from which every next step is not finite."""
    options = ["run.checkpoint.save_every=1", "run.checkpoint.keep_last=9", "stages.pretrain.optimizer.warmup_steps=2"]
    folder = train.root / "exploded" / "checkpoints" / "00-pretrain"
    stop_at("pretrain", 2)
    with pytest.raises(StoppedSafely):
        train("exploded", *options)
    stop_at("", 0)
    explode = [*options, "stages.pretrain.optimizer.learning_rate=1e30"]
    said = (
        r"step 5: .* not finite 3 steps in a row; step 2 was moved to quarantine/, and the last checkpoint, step 1, is"
    )
    with pytest.raises(DivergedError, match=said):  # the learning rate of step 1 is 0
        train("exploded-at-once", *explode)
    other = train.root / "exploded-at-once" / "checkpoints" / "00-pretrain"
    assert committed_steps(other) == [1]  # and none while steps are not finite: parameters there are those of step 2
    largest = lambda step: max(np.abs(np.asarray(x)).max() for x in restore(step).params.values())  # noqa: E731
    assert largest(other / "1") < 10 and 1e20 < largest(other / "quarantine" / "2") < np.inf
    assert committed_steps(folder) == [1, 2]  # the control: finite steps are saved


# ---- where a stage starts -------------------------------------------------------------------------------------------

ONE_STAGE = "stages=[{name: s, data: text, steps: 1, batch_size: 8, init_from: %s}]"


def test_init_from_a_run_a_stage_and_a_step(whole, train):
    step = whole / "checkpoints" / "00-pretrain" / "4"
    sources = ((whole, "38 of 38 arrays"), (step, "arrays from"), ("scratch", "fresh parameters"))
    for number, (source, fresh) in enumerate(sources):
        run = train(f"from-{number}", ONE_STAGE % source)
        assert fresh in lines(run, "event")[0]["init"]
    assert lines(train.root / "from-1", "train")[0]["loss"] < lines(train.root / "from-2", "train")[0]["loss"] - 0.3


@pytest.mark.parametrize(
    ("overrides", "mentions"),
    [
        (["stages.pretrain.init_from=nowhere"], "nowhere: no such folder"),
        (["stages.qa.init_from=nowhere"], "stages.qa.init_from: "),
        (["stages.qa.init_from=."], "holds no checkpoint"),
        (["stages.qa.init_from=tiny.yaml"], "tiny.yaml: no such folder"),
        (["stages.pretrain.init_from={whole}", "model.hidden_size=32"], "has shape [16], the model here needs [32]"),
        (["stages.pretrain.init_from={whole}", "model.num_hidden_layers=3"], "has no parameter 'layers/2/"),
        (["stages.pretrain.init_from={whole}", "tokenizer.vocab_size=110"], "another tokenizer; set tokenizer.path to"),
        (["stages.qa.init_from={whole}/checkpoints/00-pretrain/3"], "stages.qa.init_from: "),
        (["stages.qa.evaluate=[]", "tasks.questions.source.files=[none.json]"], "none.json"),
        (["stages.qa.evaluate.0.data.source.files=[none.json]"], "none.json"),
        (["stages.qa.data=text"], "objective span_qa reads rows made by span_qa; task 'text' has"),
        (["stages.qa.trainable.episodes=3"], "trainable.episodes: 3 is more than the 2 layers"),
    ],
)
def test_a_mistake_in_any_stage_shows_before_the_run_folder_is_there(
    whole, train, tiny_project, monkeypatch, capsys, overrides, mentions
):
    monkeypatch.chdir(tiny_project)
    before = {p.name for p in train.root.iterdir()}
    overrides = [override.format(whole=whole) for override in overrides]
    assert main(["train", "tiny.yaml", f"run.root={train.root}", "run.name=mistaken", *overrides]) == 2
    err = capsys.readouterr().err
    assert mentions in err and err.count("\n") == 1 and len(err) <= 301, err
    assert {p.name for p in train.root.iterdir()} == before


@pytest.mark.parametrize("content", ["", "\n\n", None])
def test_bad_data_leave_no_folder(tmp_path, tiny_project, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    config = (tiny_project / "tiny.yaml").read_text().replace("run: {", "tokenizer: {path: vocab.txt}\nrun: {")
    (tmp_path / "tiny.yaml").write_text(config)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    for name in ("train.json", "more.txt", "heldout.json"):
        (tmp_path / name).write_bytes((tiny_project / name).read_bytes())
    if content is not None:
        (tmp_path / "text.txt").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", "tiny.yaml"]) == 2
    assert "text" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
