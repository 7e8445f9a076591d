"""Checkpoints by time, early stopping and the steps of evaluations."""

import json
from pathlib import Path

import pytest

from bertjax.config.loading.load import load
from bertjax.config.schema.evaluation import EarlyStopping
from bertjax.errors import StoppedSafely, UserError
from bertjax.report.record import read_run
from bertjax.tools.inspect import inspect_command
from bertjax.training import loop
from bertjax.training.checkpoint.layout import committed_steps
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.loop import Evaluator
from bertjax.training.triggers.early_stopping import stops_at
from bertjax.training.triggers.evaluation_steps import intervals
from bertjax.training.triggers.save_timer import SaveTimer

# ---- checkpoints by time ---------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def saves(seconds_of_steps: list[float], minutes: float | None, *, every_step: bool) -> tuple[list[int], int]:
    """-> (the steps that are saved, how often the processes had to agree)."""
    clock, asked = Clock(), 0

    def agree(make):
        nonlocal asked
        asked += 1
        return json.loads(json.dumps(make()))

    timer, saved = SaveTimer(minutes, 0, clock=clock, agree=agree, every_step=every_step), []
    for step, seconds in enumerate(seconds_of_steps, start=1):
        clock.now += seconds
        if timer.due(step):
            saved.append(step)
            timer.saved(step)
    return saved, asked


def test_a_checkpoint_is_due_when_the_last_one_is_old():
    assert saves([1.0] * 200, 1.0, every_step=True)[0] == [60, 120, 180]
    assert saves([100.0] * 3, 1.0, every_step=True)[0] == [1, 2, 3]
    assert saves([1.0] * 200, None, every_step=True) == ([], 0)


def test_several_processes_agree_at_few_steps():
    saved, asked = saves([0.125] * 4800, 5.0, every_step=False)
    assert saved == [2400, 4800] and asked < 80
    slow = [0.1] * 1000 + [5.0] * 200  # half of what was expected of the remaining steps, at most
    assert saves(slow, 5.0, every_step=False)[0][0] < 1200


def test_a_save_for_another_reason_starts_the_time_over():
    clock = Clock()
    timer = SaveTimer(1.0, 0, clock=clock, agree=lambda make: make(), every_step=True)
    clock.now = 50.0
    timer.saved(5)
    clock.now = 100.0
    assert not timer.due(6)
    clock.now = 110.0
    assert timer.due(7)


def test_a_run_saves_by_time(tiny_project, tmp_path, one_device):
    often = "run.checkpoint={save_every: 100, save_minutes: 1e-9, keep_last: 9}"
    config = load(tiny_project / "tiny.yaml", [f"run.root={tmp_path}", "run.name=timed", often])
    loop.train(config.model_copy(update={"stages": config.stages[:1]}), tiny_project, lambda *_: [])
    assert committed_steps(config.run_dir / "checkpoints" / "00-pretrain") == [1, 2, 3, 4, 5]


# ---- early stopping --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "options", "expected"),
    [
        ([1, 2, 3, 4], {}, None),
        ([1, 2, 2, 1, 3], {}, 4),  # an equal score is no improvement
        ([1, 2, 1, 3, 2, 2], {}, 6),
        ([3, 2, 1, 1, 2], {"metric": "dev/loss"}, 5),
        ([1, 1.05, 1.09], {"min_delta": 0.1}, 3),
        ([1, 1.05, 1.11], {"min_delta": 0.1}, None),
        ([None, None], {}, 2),  # not finite
        ([-5, -4, None, -3], {}, None),
        ([5, 5], {"patience": 1}, 2),
    ],
)
def test_a_stage_stops_when_its_score_does_not_improve(scores, options, expected):
    rule = EarlyStopping(**{"metric": "dev/f1", "patience": 2} | options)
    assert stops_at(rule, list(enumerate(scores, start=1))) == expected


DATA = "data: {source: {kind: text, files: [more.txt], layout: sentences}, preprocess: {sequence_length: 32}}"
EVALUATE = f"[{{kind: mlm, name: dev, every: 2, {DATA}}}, {{kind: mlm, name: other, every: end, {DATA}}}]"
STOPPING = [
    f"stages.pretrain.evaluate={EVALUATE}", "stages.pretrain.early_stopping={metric: dev/mlm_accuracy, patience: 2}",
    "stages.pretrain.steps=20", "run.checkpoint={keep_last: 1, save_every: 100}", "stages.qa.steps=2",
    "stages.qa.trainable=all", "stages.qa.init_from=best",
]  # fmt: skip
SCORES = {2: 1.0, 4: 5.0, 6: 2.0, 8: float("nan"), 10: 9.0}


def told(ctx, index, program, labels):
    """Evaluations of the first stage with scores that are known before."""
    if index:
        return []
    first, other = ctx.config.stages[0].evaluate
    return [
        Evaluator(first, lambda _, step: {"mlm_accuracy": SCORES[step]}),
        Evaluator(other, lambda _, step: {"accuracy": float(step)}),
    ]


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run_stopping(tiny_project, root: Path, *more: str, build=told) -> Path:
    config = load(tiny_project / "tiny.yaml", [f"run.root={root}", "run.name=early", *STOPPING, *more])
    loop.train(config, tiny_project, build)
    return config.run_dir


def test_a_stage_ends_early_and_the_next_starts_from_its_best_step(tiny_project, tmp_path, one_device, capsys, stop_at):
    stop_at("pretrain", 7)
    with pytest.raises(StoppedSafely):  # between two evaluations: the scores before are in the checkpoint
        run_stopping(tiny_project, tmp_path)

    def killed(ctx, index, program, labels):
        first, other = told(ctx, index, program, labels)
        return [Evaluator(first.config, lambda _, step: 1 / 0), other]

    with pytest.raises(ZeroDivisionError):  # step 8 is saved and its evaluation is not done
        run_stopping(tiny_project, tmp_path, build=lambda *a: killed(*a) if not a[1] else [])
    run = run_stopping(tiny_project, tmp_path)
    capsys.readouterr()
    folder = run / "checkpoints" / "00-pretrain"
    assert committed_steps(folder) == [4, 8]  # the best and the last
    assert CheckpointReader(folder).scores_of(8)["other/accuracy"] == 8.0  # all evaluations run at the end
    events = [line for line in lines(run) if line["kind"] == "event"]
    (ended,) = [line for line in events if line["event"] == "stage_end" and line["stage"] == "pretrain"]
    assert (ended["step"], ended["stopped_early"]) == (8, True)
    (began,) = [line for line in events if line["event"] == "start" and line["stage"] == "qa"]
    assert "from the best checkpoint of stage 'pretrain' (step 4)" in began["init"]
    assert [line["step"] for line in lines(run) if line["kind"] == "eval" and line["name"] == "dev"] == [2, 4, 6, 8]
    assert read_run(run).stages[0].stopped_early == 8 and read_run(run).stages[0].finished
    assert "dev/mlm_accuracy: 1.0 at 2, 5.0 at 4, 2.0 at 6, None at 8; stopped the stage at step 8" in inspect_command(
        folder, (), None, False
    )
    before = (run / "metrics.jsonl").read_bytes()
    run_stopping(tiny_project, tmp_path)
    assert "every stage is finished" in capsys.readouterr().out and (run / "metrics.jsonl").read_bytes() == before


def test_a_last_stage_that_stopped_early_is_finished(tiny_project, tmp_path, one_device, capsys):
    config = load(tiny_project / "tiny.yaml", [f"run.root={tmp_path}", "run.name=one", *STOPPING])
    alone = config.model_copy(update={"stages": config.stages[:1]})
    loop.train(alone, tiny_project, told)
    assert "stopped early at step 8 of 20" in capsys.readouterr().out
    loop.train(alone, tiny_project, told)
    assert "every stage is finished" in capsys.readouterr().out
    patient = alone.stages[0].model_copy(
        update={"early_stopping": EarlyStopping(metric="dev/mlm_accuracy", patience=9)}
    )
    with pytest.raises(KeyError):  # more patience: it goes on, to the evaluation of step 12
        loop.train(alone.model_copy(update={"stages": [patient]}), tiny_project, told)


def test_a_metric_that_an_evaluation_does_not_give(tiny_project, tmp_path, one_device):
    with pytest.raises(
        UserError, match="pretrain.early_stopping.metric: evaluation 'dev' gives no score 'em'; its scores"
    ):
        run_stopping(tiny_project, tmp_path, "stages.pretrain.early_stopping.metric=dev/em")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.pretrain.early_stopping={metric: squad/f1}", "no evaluation of this stage gives 'squad/f1'; .*mlm"),
        ("stages.pretrain.early_stopping={metric: mlm}", "no evaluation of this stage gives 'mlm'"),
        ("stages.pretrain.init_from=best", "no previous stage"),
        ("stages.qa.init_from=best", "init_from: best needs a score of stage 'pretrain'"),
    ],
)
def test_refused_in_the_configuration(tiny_project, override, words):
    with pytest.raises(UserError, match=words):
        load(tiny_project / "tiny.yaml", [override])
    both = ["stages.pretrain.early_stopping={metric: mlm/mlm_loss}", "stages.pretrain.evaluate.0.every=end"]
    with pytest.raises(UserError, match="early_stopping needs evaluations during the stage: set evaluate.mlm.every"):
        load(tiny_project / "tiny.yaml", both)


# ---- the steps of evaluations ----------------------------------------------------------------------------------------


def test_evaluations_by_default():
    one = lambda steps, cost=0.0, watched=None: intervals({"dev": "auto"}, steps, {"dev": cost}, watched)["dev"]  # noqa: E731
    assert (one(10_000), one(1_000_001), one(300), one(50)) == (1000, 100_001, 100, 100)
    assert one(10_000, cost=100) == 1000  # nine times 100 of 10,000 steps
    assert one(10_000, cost=400) == 3334  # two in between
    assert one(10_000, cost=5000) is None  # only at the end
    assert one(50, cost=1000, watched="dev") == 5  # early stopping needs them
    found = intervals({"a": "auto", "b": "auto", "c": 7, "d": None, "e": "end"}, 1000, {"a": 20, "b": 30, "c": 9}, None)
    assert found == {"a": 334, "b": 334, "c": 7, "d": None, "e": None}
