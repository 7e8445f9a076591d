"""The record belongs to the position of a run: a stop between two log lines, or a kill, changes no number of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bertjax.config.loading.load import load
from bertjax.errors import StoppedSafely, StorageError, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.training import loop
from bertjax.training.checkpoint.layout import SCORES, committed_steps
from bertjax.training.loop import Evaluator
from bertjax.training.monitor import goodput

TIMES = {"tokens_per_second", "step_seconds", "data_wait", "mfu", "memory_bytes", "elapsed", "time"}
FEW_LINES = "run.log_every=4"
PLACES = [("pretrain", n) for n in range(1, 5)] + [("qa", n) for n in range(1, 6)]
MIXED = (
    "stages.pretrain.data={mixture: [text, more], temperature: 2.0}",
    "tasks.more={source: {kind: text, files: [more.txt], layout: sentences}, preprocess: {sequence_length: 32}}",
    "stages.pretrain.grad_accum=2",
)


@pytest.fixture(scope="module")
def unbroken(train) -> Path:
    return train("few-lines", FEW_LINES)


@pytest.fixture(scope="module")
def mixed(train) -> Path:
    """A mixture of two tasks, in micro-batches, then episodes."""
    return train("mixed", FEW_LINES, *MIXED)


def numbers(run: Path) -> list[dict]:
    """Steps, evaluations and the ends of stages, without times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [x for x in found if x["kind"] != "event" or x["event"] in ("mixture", "stage_end")]
    kept.sort(key=lambda x: (x["stage"], x["step"], x["kind"], x.get("event", "")))
    return [{k: v for k, v in line.items() if k not in TIMES} for line in kept]


def digests(run: Path) -> list:
    last = [folder / str(committed_steps(folder)[-1]) for folder in sorted((run / "checkpoints").iterdir())]
    return [json.loads((step / "digest" / "metadata").read_text())["leaves"] for step in last]


def check_stop(train: Callable[..., Path], stop_at, whole: Path, place: tuple[str, int], *overrides: str) -> None:
    name = f"{whole.name}-stopped-{place[0]}-{place[1]}"
    stop_at(*place)
    with pytest.raises(StoppedSafely):
        train(name, FEW_LINES, *overrides)
    stop_at("", -1)
    run = train(name, FEW_LINES, *overrides)
    assert numbers(run) == numbers(whole) and digests(run) == digests(whole)
    found = goodput.read(run)
    assert found is not None and found.attempts == 2 and found.lost == 0


def test_a_stop_between_two_lines(train, stop_at, unbroken):
    check_stop(train, stop_at, unbroken, ("pretrain", 3))


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_stop_behind_every_step(train, stop_at, mixed, place):
    check_stop(train, stop_at, mixed, place, *MIXED)


@pytest.mark.slow
def test_a_kill_between_two_lines(train, mixed, monkeypatch):
    """The steps since the last checkpoint are done again; the sums before it come out of it."""

    class Kill(BaseException):
        pass

    def kill(self, state: object, step: int, meter: object) -> None:
        if (self.name, step) == ("qa", 5):
            raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(loop.StageRunner, "notify_step", kill)
        with pytest.raises(Kill):
            train("killed", FEW_LINES, *MIXED)
    run = train("killed", FEW_LINES, *MIXED)
    assert numbers(run) == numbers(mixed) and digests(run) == digests(mixed)


def test_a_run_that_never_stopped_has_no_steps_done_again(unbroken):
    found = goodput.read(unbroken)
    assert found is not None and found.lost == 0 and "done again" not in str(found)
    waits = [line.get("data_wait") for line in map(json.loads, (unbroken / "metrics.jsonl").read_text().splitlines())]
    assert all(0 <= wait <= 1 for wait in waits if wait is not None)


# ---- evaluations that fail ------------------------------------------------------------------------------------------


SLOW = pytest.mark.slow
ERRORS = [
    UserError("no"),
    pytest.param(StorageError("full"), marks=SLOW),
    pytest.param(RuntimeError("memory"), marks=SLOW),
]


@pytest.mark.parametrize("error", ERRORS)
def test_an_evaluation_that_fails_loses_no_step(whole, train, tiny_project, once, error):
    """The last step of the stage is on disk before its evaluations begin; the same command does these alone."""

    def failing(ctx, index, program, labels):
        def fail(*_):
            raise error

        return [Evaluator(e.config, fail) for e in build_evaluators(ctx, index, program, labels)]

    name = f"failing-{type(error).__name__}"
    config = load(tiny_project / "tiny.yaml", [f"run.root={train.root}", f"run.name={name}"])
    with once(), pytest.raises(type(error)):
        loop.train(config, tiny_project, failing)
    folder = config.run_dir / "checkpoints" / "00-pretrain"
    assert committed_steps(folder)[-1] == 5 and not (folder / "5" / SCORES).exists()
    run = train(name)
    assert numbers(run) == numbers(whole) and digests(run) == digests(whole)
    scores = json.loads((folder / "5" / SCORES).read_text())
    assert scores.keys() == {f"mlm/{key}" for key in next(x for x in numbers(run) if x["kind"] == "eval")["scores"]}
    assert goodput.read(run).lost < 0.5


@pytest.mark.slow
def test_an_evaluation_between_two_saves_loses_no_step_either(train, tiny_project, once):
    def failing(ctx, index, program, labels):
        def fail(*_):
            raise UserError("evaluation: no")

        return [Evaluator(e.config, fail) for e in build_evaluators(ctx, index, program, labels)]

    between = ["stages.pretrain.evaluate.0.every=3", "run.checkpoint.save_every=4"]
    config = load(tiny_project / "tiny.yaml", [f"run.root={train.root}", "run.name=between", *between])
    with once(), pytest.raises(UserError, match="evaluation: no"):
        loop.train(config, tiny_project, failing)
    assert committed_steps(config.run_dir / "checkpoints" / "00-pretrain") == [3]
