"""The training loop on a tiny model: what a run leaves, and every way to stop and continue it, bit for bit."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.data.sources.registry import fingerprint, rules_version
from bertjax.errors import StoppedSafely, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.training import loop
from bertjax.training.checkpoint.layout import committed_steps
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.stage.plan import check_sources

pytestmark = pytest.mark.usefixtures("one_device")
TIMES = {"tokens_per_second", "step_seconds", "data_wait", "mfu", "memory_bytes", "elapsed"}


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def learnt(run: Path) -> list[dict[str, Any]]:
    """All numbers of all steps, times apart; JSON keeps every bit of a float."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines(run, "train")]


def digests(run: Path, stage: str, step: int) -> dict[str, Any]:
    """Shape, dtype and digest of every array of a checkpoint: parameters, slots, key."""
    return json.loads((run / "checkpoints" / stage / str(step) / "digest" / "metadata").read_text())["leaves"]


def assert_same_run(one: Path, other: Path) -> None:
    """Every loss, parameter and optimizer slot, to the last bit."""
    assert learnt(one) == learnt(other)
    assert [line["scores"] for line in lines(one, "eval")] == [line["scores"] for line in lines(other, "eval")]
    for stage, last in (("00-pretrain", 5), ("01-qa", 6)):
        assert digests(one, stage, last) == digests(other, stage, last)
    (a, b) = (restore(run).params for run in (one, other))
    assert a.keys() == b.keys()
    assert all(np.asarray(a[path]).tobytes() == np.asarray(b[path]).tobytes() for path in a)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def damage(step: Path) -> None:
    """A bit in every 256 bytes: a single one may lie where nothing is read (test_checkpoint_storms.py flips those)."""
    path = max((p for p in step.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 256):
        content[place] ^= 4
    path.write_bytes(content)


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_a_mixture_tells_the_loss_and_the_share_of_each_task(train, capsys):
    more = "{source: {kind: text, files: [more.txt], layout: sentences}, preprocess: {sequence_length: 32}}"
    mixture = "{mixture: {text: 0.75, more: 0.25}, rate: explicit}"
    run = train("mixed", f"tasks.more={more}", f"stages.pretrain.data={mixture}", "stages.pretrain.grad_accum=2")
    steps = [line for line in lines(run, "train") if line["stage"] == "pretrain"]
    assert [(line["share/text"], line["share/more"]) for line in steps] == [(0.75, 0.25)] * 5
    for line in steps:  # one masked token in eight rows more or less: the mean lies between the two tasks' losses
        low, high = sorted((line["mlm_loss/text"], line["mlm_loss/more"]))
        assert low <= line["mlm_loss"] <= high
    assert "text: planned 75.00%, seen 75.00%; more: planned 25.00%, seen 25.00%" in capsys.readouterr().out
    assert not any("/" in key for line in lines(run, "train") if line["stage"] == "qa" for key in line)


def test_a_run_from_end_to_end(whole, tiny_project):
    assert {p.name for p in whole.iterdir()} == {
        "config.yaml", "environment.json", "model.txt", "tokenizer", "metrics.jsonl", "train.log", "goodput.jsonl",
        "checkpoints", "evaluations",
    }  # fmt: skip
    assert load(whole / "config.yaml").stages == load(tiny_project / "tiny.yaml").stages
    assert {"versions", "devices", "mesh"} <= json.loads((whole / "environment.json").read_text()).keys()
    assert {p.name for p in (whole / "tokenizer").iterdir()} == {"tokenizer.json", "vocab.txt", "sha256.json"}
    assert committed_steps(whole / "checkpoints" / "00-pretrain") == [2, 4, 5]
    assert committed_steps(whole / "checkpoints" / "01-qa") == [2, 4, 6]
    assert {p.name for p in (whole / "evaluations" / "01-qa").iterdir()} == {
        "squad.json", "squad.predictions.json", "squad.nbest.json",
    }  # fmt: skip
    assert not list(whole.rglob("*.partial"))
    checkpoints = CheckpointReader(whole / "checkpoints" / "01-qa")
    meta = checkpoints.meta()
    assert (meta["stage"], meta["stage_name"], meta["step"], meta["steps"], meta["heads"]) == (1, "qa", 6, 6, ["qa"])
    assert load(whole / "config.yaml").model_dump(mode="json") == meta["config"]


def test_every_line_of_the_record(whole):
    steps = [(line["stage"], line["step"]) for line in lines(whole, "train")]
    assert steps == [("pretrain", n) for n in range(1, 6)] + [("qa", n) for n in range(1, 7)]
    first, last = lines(whole, "train")[0], lines(whole, "train")[-1]
    assert {"loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "grad_norm"} <= first.keys()
    assert TIMES | {"learning_rate", "episode", "trainable_parameters"} <= first.keys()
    assert first["loss"] == pytest.approx(first["mlm_loss"] + first["nsp_loss"], rel=1e-5)
    assert abs(first["mlm_loss"] - np.log(128)) < 0.5  # an untrained model knows nothing
    assert last["loss"] == pytest.approx(last["span_loss"], rel=1e-6)
    assert last["tokens_per_second"] > 0 and last["step_seconds"] > 0 and 0 <= last["data_wait"] <= 1
    qa = [line for line in lines(whole, "train") if line["stage"] == "qa"]
    assert [line["episode"] for line in qa] == [0, 0, 0, 1, 1, 1]
    assert qa[0]["trainable_parameters"] < qa[-1]["trainable_parameters"] < first["trainable_parameters"]
    events = [(line["stage"], line["event"], line["step"]) for line in lines(whole, "event")]
    assert [e for e in events if e[1] != "checkpoint"] == [
        ("pretrain", "start", 0), ("pretrain", "episode", 0), ("pretrain", "stage_end", 5),
        ("qa", "start", 0), ("qa", "episode", 0), ("qa", "episode", 3), ("qa", "stage_end", 6),
    ]  # fmt: skip
    assert [e[2] for e in events if e[1] == "checkpoint"] == [2, 4, 5, 2, 4, 6]
    start = next(line for line in lines(whole, "event") if (line["stage"], line["event"]) == ("qa", "start"))
    assert start["init"] == (
        "29 of 31 arrays from stage 'pretrain' (embeddings, layers 0..1); fresh: heads/qa; "
        "carried on, not trained here: heads/mlm, heads/nsp, heads/pooler"
    )
    evaluations = {line["name"]: line["scores"] for line in lines(whole, "eval")}
    assert evaluations["squad"]["total"] == 24 and evaluations["mlm"]["mlm_perplexity"] > 1
    kept = json.loads((whole / "evaluations" / "01-qa" / "squad.json").read_text())
    assert kept["scores"] == evaluations["squad"] and kept["step"] == 6


def test_frozen_parameters_keep_their_bits_and_slots_appear_as_layers_thaw(whole):
    before = digests(whole, "00-pretrain", 5)
    early, late = digests(whole, "01-qa", 2), digests(whole, "01-qa", 6)
    frozen = [path for path in early if path.startswith(("params/embeddings/", "params/layers/0/"))]
    assert frozen and all(early[path] == before[path] != late[path] for path in frozen if "token_type" not in path)
    slots = lambda leaves: {path.split("/")[1] for path in leaves if path.startswith("opt/")}  # noqa: E731
    assert slots(early) == {"layers.1", "heads"}
    assert slots(late) == {"layers.0", "layers.1", "heads", "embeddings"}


def test_a_finished_run_is_left_as_it_is(whole, train, tiny_project, monkeypatch, capsys):
    before = snapshot(whole.parent)
    monkeypatch.setattr(loop, "open_stage", None)  # nothing is prepared or compiled for it
    train("whole")
    monkeypatch.chdir(tiny_project)
    assert main(["train", "tiny.yaml", f"run.root={train.root}", "run.name=whole", "run.log_every=3"]) == 0
    assert capsys.readouterr().out.count("whole: every stage is finished\n") == 2
    assert snapshot(whole.parent) == before


@pytest.mark.parametrize(
    ("override", "mentions"),
    [
        ("stages.qa.optimizer.learning_rate=1e-3", "stages.1.optimizer.learning_rate: 0.005 -> 0.001"),
        ("model.hidden_dropout_prob=0.2", "model.hidden_dropout_prob: 0.1 -> 0.2"),
        ("run.seed=3", "seed: 0 -> 3"),
        ("tasks.text.source.files=[more.txt]", "tasks.text.source"),
    ],
)
def test_other_settings_are_refused(whole, train, tiny_project, monkeypatch, capsys, override, mentions):
    before = snapshot(whole.parent)
    monkeypatch.chdir(tiny_project)
    assert main(["train", "tiny.yaml", f"run.root={train.root}", "run.name=whole", override]) == 2
    err = capsys.readouterr().err
    assert "whole/config.yaml: this run has other settings" in err and mentions in err
    assert err.count("\n") == 1 and len(err) <= 301
    assert snapshot(whole.parent) == before


# ---- stopping and continuing ----------------------------------------------------------------------------------------


STOPS = {
    ("pretrain", 3): [2, 3], ("pretrain", 4): [2, 3, 4], ("qa", 2): [2], ("qa", 3): [2, 3], ("qa", 5): [3, 4, 5],
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped(train) -> Path:
    """A run stopped in a stage, in an episode and exactly between two, and continued each time; not to be changed.

    Beside it are copies of how each stop left it, `at-STAGE-STEP`, for tests to damage.
    """
    for (stage, step), kept in STOPS.items():
        with pytest.MonkeyPatch.context() as patch:
            asked = lambda self, now, at=(stage, step): (self.name, now) == at  # noqa: E731
            patch.setattr(loop.StageRunner, "should_stop", asked)
            with pytest.raises(StoppedSafely, match=rf"stopped at step {step} of stage '{stage}'") as caught:
                train("stopped")
        assert caught.value.exit_code == 75
        assert committed_steps(next((train.root / "stopped" / "checkpoints").glob(f"*-{stage}"))) == kept
        shutil.copytree(train.root / "stopped", train.root / f"at-{stage}-{step}")
    return train("stopped")


def test_stops_in_a_stage_in_an_episode_and_at_its_end_change_no_bit(whole, stopped):
    assert_same_run(whole, stopped)
    resumed = [(line["stage"], line["step"]) for line in lines(stopped, "event") if line["event"] == "resume"]
    assert resumed == list(STOPS)


def test_what_was_trained_after_the_last_checkpoint_is_trained_again(whole, train, monkeypatch):
    """A crash: no chance to save anything."""

    class Crash(BaseException):
        pass

    write = Tracker.train
    for stage, step in (("pretrain", 1), ("pretrain", 3), ("qa", 1), ("qa", 5)):

        def crash(self: Tracker, *line: Any, at: tuple[str, int] = (stage, step)) -> None:
            write(self, *line)
            if line[:2] == at:
                raise Crash

        monkeypatch.setattr(Tracker, "train", crash)
        with pytest.raises(Crash):
            train("crashed")
    monkeypatch.setattr(Tracker, "train", write)
    assert_same_run(whole, train("crashed"))


def test_sigterm_saves_and_leaves_with_75(whole, train, tiny_project, monkeypatch, capsys):
    monkeypatch.chdir(tiny_project)
    command = ["train", "tiny.yaml", f"run.root={train.root}", "run.name=terminated"]
    write = Tracker.train

    def terminate(self: Tracker, stage: str, step: int, metrics: Any) -> None:
        write(self, stage, step, metrics)
        if (stage, step) == ("pretrain", 1):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Tracker, "train", terminate)
    handler = signal.getsignal(signal.SIGTERM)
    assert main(command) == 75
    step = committed_steps(train.root / "terminated" / "checkpoints" / "00-pretrain")[-1]
    assert step in (1, 2) and "run the same command again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == handler
    monkeypatch.setattr(Tracker, "train", write)
    assert main(command) == 0
    assert_same_run(whole, train.root / "terminated")


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copy", "stage", "damaged", "left"),
    [
        ("at-pretrain-3", "00-pretrain", (3,), 2),
        ("at-qa-5", "01-qa", (5, 4), 3),  # back over the boundary at step 3: the fallback has fewer slots
        ("at-qa-2", "00-pretrain", (5,), 4),  # not read again: the later stage stands on its own
    ],
)
def test_a_damaged_checkpoint_is_passed_over(whole, stopped, train, caplog, copy, stage, damaged, left):
    run = train.root / copy
    for step in damaged:
        damage(run / "checkpoints" / stage / str(step))
    train(copy)
    quarantine = run / "checkpoints" / stage / "quarantine"
    if copy == "at-qa-2":
        assert not quarantine.exists()
        flip = run / "checkpoints" / stage / "5"
        shutil.rmtree(flip)
        shutil.copytree(whole / "checkpoints" / stage / "5", flip)
    else:
        assert {p.name for p in quarantine.iterdir()} == {str(step) for step in damaged}
        warnings = [r.getMessage() for r in caplog.records if "is damaged" in r.getMessage()]
        assert len(warnings) == len(damaged) and all(f"step {left} is used" in w for w in warnings)
    assert_same_run(whole, run)


def test_damage_between_two_stages_is_made_good_before_the_next_one_begins(whole, train):
    """The last checkpoint of a stage is what the next one starts from: an older one will not do."""
    shutil.copytree(whole, train.root / "between")
    shutil.rmtree(train.root / "between" / "checkpoints" / "01-qa")
    damage(train.root / "between" / "checkpoints" / "00-pretrain" / "5")
    assert_same_run(whole, train("between"))


def test_damaged_files_of_a_run_do_not_decide_over_its_checkpoints(whole, stopped, train, capsys):
    """A run resumes by its checkpoints; what they do not confirm in its small files is reported and written again."""
    run = train.root / "small-files"
    shutil.copytree(train.root / "at-qa-3", run)
    config = (run / "config.yaml").read_text().replace("name: at-qa-3", "name: small-files")
    (run / "config.yaml").write_text(config.replace("hidden_dropout_prob: 0.1", "hidden_dropout_prob: 0.3"))
    tokenizer = (run / "tokenizer" / "tokenizer.json").read_bytes()
    (run / "tokenizer" / "tokenizer.json").write_bytes(tokenizer.replace(b'"##e"', b'"##d"'))
    metrics = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    event = next(i for i, line in enumerate(metrics) if b'"episode"' in line)
    metrics[event] = metrics[event].replace(b'"kind"', b'"k\x00nd"')
    (run / "metrics.jsonl").write_bytes(b"".join(metrics))
    with pytest.raises(UserError, match="this run has other settings"):  # the control: what is asked for differs
        train("small-files", "model.hidden_dropout_prob=0.3")
    capsys.readouterr()
    train("small-files")
    err = "".join(capsys.readouterr())
    assert "config.yaml: damaged (it differs from the checkpoints); it is written again" in err
    assert "tokenizer: incomplete or damaged; it is written again" in err
    assert "1 line is damaged; moved to metrics-damaged.jsonl" in err
    assert (run / "tokenizer" / "tokenizer.json").read_bytes() == tokenizer
    assert (run / "metrics-damaged.jsonl").read_bytes() == metrics[event]
    assert_same_run(whole, run)


def test_a_damaged_configuration_beside_checkpoints_of_other_stages(whole, train):
    shutil.copytree(whole, train.root / "other-stages")
    (train.root / "other-stages" / "config.yaml").write_text("damaged: [")
    rename = ["stages.pretrain.name=first", "stages.qa.name=second"]
    with pytest.raises(UserError, match=r"config.yaml: damaged .* of other stages \(pretrain, qa\); give this run ano"):
        train("other-stages", *rename)


def test_a_run_of_a_version_that_reads_the_same_source_otherwise(tiny_project):
    """Its finished stages are taken as they are; one that is under way is refused, and the source is not blamed."""
    config = load(tiny_project / "tiny.yaml")
    stage, source = config.stages[1], config.tasks["questions"].source[0]
    by = lambda version: {"questions": [fingerprint(source, tiny_project, version=version)]}  # noqa: E731
    batches, program = SimpleNamespace(source_fingerprints=by(rules_version(source))), SimpleNamespace(steps=6)
    plan = SimpleNamespace(stage=stage, batches=batches, program=program)
    check = partial(check_sources, SimpleNamespace(config=config, base=tiny_project), plan)
    check(by(rules_version(source)), Path("01-qa"), 4)
    check(by(1), Path("01-qa"), 6)
    with pytest.raises(UserError, match="begun by an earlier version .* with init_from: 01-qa"):
        check(by(1), Path("01-qa"), 4)
    with pytest.raises(UserError, match="the source of task 'questions' is not what it was"):
        check(by(0), Path("01-qa"), 6)


def test_data_or_tokenizer_changed_under_a_run_are_refused(whole, train, tiny_project, tmp_path):
    for name in ("text.txt", "more.txt", "train.json", "heldout.json", "tiny.yaml"):
        shutil.copy(tiny_project / name, tmp_path / name)
    for run in ("fewer", "other"):
        shutil.copytree(whole, train.root / run)
        shutil.rmtree(train.root / run / "checkpoints" / "01-qa" / "6")
    again = lambda run: loop.train(  # noqa: E731
        load(tiny_project / "tiny.yaml", [f"run.root={train.root}", f"run.name={run}"]), tmp_path, build_evaluators
    )
    questions = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(questions | {"data": questions["data"][1:]}))
    with pytest.raises(UserError, match="stage 'qa': the source of task 'questions' is not what it was"):
        again("fewer")
    (tmp_path / "text.txt").write_text("Now there are zebras.\nThey walk.\n\nAnd they are striped.\nSo it is.\n" * 9)
    with pytest.raises(UserError, match="this run has another tokenizer"):
        again("other")
