"""The account of a run's time: by hand, against a simulation of attempts that knows the truth, and of real runs."""

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.errors import StorageError
from bertjax.report.record import read_run
from bertjax.tools.inspect import inspect_command
from bertjax.training import loop
from bertjax.training.monitor import goodput, phases
from bertjax.training.monitor.goodput import GoodputLog, GoodputSummary, summarize
from bertjax.training.monitor.phases import COMPILE, EVALUATION, PHASES, PREPARE, SAVE, STARTUP, STEP, Phases


def line(
    life: int, started: float, now: float, stage: int, step: int, resumed: bool = False, /, **seconds: float
) -> dict:
    return {
        "life": life, "started": started, "time": now, "stage": stage, "step": step, "resumed": resumed,
        "seconds": dict.fromkeys(PHASES, 0.0) | seconds,
    }  # fmt: skip


def parts(found: GoodputSummary) -> float:
    return sum(value for name, value in vars(found).items() if name not in ("wall", "attempts"))


def test_two_lives_by_hand():
    """40 s of 100 steps; the last checkpoint is at 75, so 10 s are done again; 30 s of nothing in between."""
    lines = [
        line(0, 1000, 1010, 0, 0, True, startup=4, prepare=6),
        line(0, 1000, 1057, 0, 100, startup=4, prepare=6, compile=5, step=40, save=2),
        line(0, 1000, 1060, 0, 100, startup=4, prepare=6, compile=5, step=43, save=2),  # a step that hung
        line(1, 1090, 1096, 0, 75, True, startup=6),
        line(1, 1090, 1126, 0, 150, startup=6, compile=0, step=30),
        line(1, 1090, 1130, 0, 150, startup=6, compile=0, step=30, evaluation=4),
        line(1, 1090, 1131, 1, 0, True, startup=7, step=30, evaluation=4),
        line(1, 1090, 1141, 1, 5, startup=7, step=40, evaluation=4),
    ]
    found = summarize(lines)
    assert found == GoodputSummary(
        productive=30 + 30 + 10,
        lost=10 + 3,
        preparation=6,
        startup=4 + 7,
        compilation=5,
        evaluation=4,
        checkpoint=2,
        idle=30,
        wall=141,
        attempts=2,
    )
    assert str(found) == (
        "goodput 49.6% of 2m21s with 1 restart: training steps 1m10s, steps done again after a restart 13s, preparing "
        "data 6s, starting 11s, compiling 5s, evaluating 4s, saving 2s, between restarts 30s"
    )


def test_a_stage_that_begins_anew_undoes_all_of_it():
    lines = [
        line(0, 0, 1, 0, 0, True, startup=1), line(0, 0, 11, 0, 10, startup=1, step=10),
        line(0, 0, 12, 1, 0, True, startup=2, step=10), line(0, 0, 19, 1, 7, startup=2, step=17),
        line(1, 20, 21, 1, 0, True, startup=1),
    ]  # fmt: skip
    found = summarize(lines)
    assert found is not None and (found.productive, found.lost, found.idle) == (10, 7, 1)


def test_no_lines_no_account(tmp_path):
    assert summarize([]) is None and goodput.read(tmp_path) is None


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9))
def test_a_simulation_that_knows_the_truth(seed: int, attempts: int, every: int) -> None:
    """Random attempts, each killed anywhere behind a line; steps of one length, so that a cut stretch is exact."""
    rng, now, checkpoint, place, done = random.Random(seed), 500.0, 0, 0, 0
    lines, truth = [], dict.fromkeys(("startup", "save", "evaluation", "idle"), 0.0)
    for life in range(attempts):
        pause = rng.uniform(0, 50) if life else 0.0
        truth["idle"] += pause
        now += pause
        started, spent = now, dict.fromkeys(PHASES, 0.0)

        def spend(phase: str, seconds: float, spent: dict[str, float] = spent) -> None:
            nonlocal now
            spent[phase] += seconds
            now += seconds

        spend(STARTUP, rng.uniform(1, 9))
        spend(COMPILE, rng.uniform(0, 9))
        truth["startup"] += spent[STARTUP] + spent[COMPILE]
        place = checkpoint
        lines.append(line(life, started, now, 0, place, True, **spent))
        for step in range(checkpoint + 1, checkpoint + 1 + rng.randint(0, 30)):
            spend(STEP, 2.0)
            done, place = done + 1, step
            if rng.random() < 0.3:
                spend(EVALUATION, 1.0)
                truth["evaluation"] += 1.0
            if step % every == 0:
                spend(SAVE, 0.5)
                truth["save"] += 0.5
                checkpoint = step
            lines.append(line(life, started, now, 0, step, **spent))
    found = summarize(lines)
    assert found is not None and found.attempts == attempts
    assert found.productive == pytest.approx(2.0 * place)  # each step of the way counts once
    assert found.lost == pytest.approx(2.0 * (done - place))
    assert found.startup + found.compilation == pytest.approx(truth["startup"])
    assert found.checkpoint == pytest.approx(truth["save"])
    assert found.evaluation == pytest.approx(truth["evaluation"]) and found.idle == pytest.approx(truth["idle"])
    assert parts(found) == pytest.approx(found.wall) and found.wall == pytest.approx(now - 500)


# ---- the ledger -----------------------------------------------------------------------------------------------------


def test_lines_cut_by_a_kill_are_left_out_and_swallow_nothing(tmp_path: Path) -> None:
    goodput_log = GoodputLog(tmp_path, Phases(time.time()), is_primary=True)
    goodput_log.start_stage(0, 0)
    with (tmp_path / goodput.FILE_NAME).open("ab") as out:
        out.write(b'{"life": 0, "star')
    later = GoodputLog(tmp_path, Phases(time.time()), is_primary=True)
    later.start_stage(0, 0)
    later.close()
    found = goodput.read(tmp_path)
    assert found is not None and found.attempts == 2


@pytest.mark.parametrize("text", ["", "[]", '{"life": 0}', '{"kind": "goodput", "seconds": 3}', "\\ud800"])
def test_what_is_no_line_is_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / goodput.FILE_NAME).write_text(text)
    assert goodput.read(tmp_path) is None


BAD_NUMBERS = [None, "1", [], {}, math.nan, math.inf, 10**400, -(10**400)]


@pytest.mark.parametrize("key", ["life", "started", "time", "stage", "step", "resumed", "seconds", *PHASES])
def test_a_line_with_a_damaged_number_is_left_out(tmp_path: Path, key: str) -> None:
    """Else the end of a run that has it in its record would be a bug's, whatever ended it."""
    good = line(0, 1, 2, 0, 5, startup=1)
    for bad in [*BAD_NUMBERS, *([0.5] if key in ("life", "stage", "step") else [])]:
        damaged = {**good, key: bad} if key in good else {**good, "seconds": good["seconds"] | {key: bad}}
        (tmp_path / goodput.FILE_NAME).write_text("".join(json.dumps(one) + "\n" for one in (good, damaged, good)))
        found = goodput.read(tmp_path)
        assert found == summarize([good, good])
        GoodputLog(tmp_path, Phases(), is_primary=True).start_stage(0, 0)


def test_other_processes_write_nothing_and_a_life_without_a_stage_leaves_no_line(tmp_path: Path) -> None:
    other = GoodputLog(tmp_path, Phases(), is_primary=False)
    other.start_stage(0, 0)
    other.close()
    GoodputLog(tmp_path, Phases(), is_primary=True).close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    goodput_log = GoodputLog(tmp_path, Phases(), is_primary=True)
    (tmp_path / goodput.FILE_NAME).mkdir()
    with pytest.raises(StorageError, match=r"goodput\.jsonl: could not be written"):
        goodput_log.start_stage(0, 0)


def test_lines_come_seldom_in_a_long_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the life apart: few lines for a month, and little lost by a kill."""
    clock = [0.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: clock[0])
    goodput_log = GoodputLog(tmp_path, Phases(time.time()), is_primary=True)
    goodput_log.start_stage(0, 0)
    for step in range(1, 20_001):
        clock[0] += 2.0
        goodput_log.record_step(0, step)
    written = [json.loads(x) for x in (tmp_path / goodput.FILE_NAME).read_text().splitlines()]
    gaps = [b["step"] - a["step"] for a, b in zip(written, written[1:], strict=False)]
    assert len(written) < 1500 and 2.0 * max(gaps) <= 2.0 * 20_000 * goodput.MAX_WRITE_SHARE + 4


def test_phases_add_up_and_return_to_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: clock[0])
    found = Phases(phases.time.time())
    clock[0] = 3.0
    with found.enter(STEP):
        clock[0] = 5.0
        with found.enter(SAVE):
            clock[0] = 6.0
        clock[0] = 10.0
    assert found.name == STARTUP
    seconds = found.seconds()
    assert seconds == {
        STARTUP: pytest.approx(3.0, abs=0.1),
        PREPARE: 0,
        COMPILE: 0,
        STEP: 6.0,
        EVALUATION: 0,
        SAVE: 1.0,
    }


# ---- real runs ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_device")
def test_a_stopped_and_resumed_run_accounts_for_all_of_its_time(train, monkeypatch) -> None:
    """Lives, idle time and steps done again, against clocks outside of it: to one part in a hundred of the whole."""
    assert phases._process_age() >= 0  # of this process: later runs begin when they are called
    began, real = time.time(), loop.StageRunner.save

    class Crash(BaseException):
        pass

    def crash(self: Any, state: Any, step: int, *rest: Any, **options: Any) -> None:
        if self.name == "pretrain" and step == 4:
            raise Crash
        real(self, state, step, *rest, **options)

    monkeypatch.setattr(loop.StageRunner, "save", crash)
    with pytest.raises(Crash):
        train("timed")
    monkeypatch.setattr(loop.StageRunner, "save", real)
    stopped = time.time()
    time.sleep(1.0)
    resumed = time.time()
    run = train("timed")
    wall = time.time() - began
    found = goodput.read(run)
    assert found is not None and found.attempts == 2 and found.lost > 0
    assert found.wall == pytest.approx(wall, rel=0.01, abs=0.05)
    assert parts(found) == pytest.approx(wall, rel=0.01, abs=0.05)
    assert found.idle == pytest.approx(resumed - stopped, abs=0.1)
    assert 0 < found.productive < wall and found.checkpoint > 0 and found.evaluation > 0
    assert str(found) in inspect_command(run, [], None, False)
    assert json.loads(inspect_command(run, [], None, True))["goodput"]["attempts"] == 2
    assert read_run(run).goodput == str(found)
