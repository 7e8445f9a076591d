"""The record of a run: its lines, resume, kills, TensorBoard read back by TensorBoard itself, and the terminal."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.errors import StorageError
from bertjax.progress import text
from bertjax.progress.reporter import Reporter
from bertjax.training.monitor import console, tracking
from bertjax.training.monitor.tracking import Tracker, read_lines

STAGES = {"pretrain": 100, "qa": 40}
METRICS = {
    "loss": 2.3145, "mlm_accuracy": 0.512, "nsp_accuracy": 0.875, "learning_rate": 9.75e-5,
    "tokens_per_second": 12345.6,
    "step_seconds": 0.125, "data_wait": 0.031, "mfu": None, "memory_bytes": None, "episode": 2,
}  # fmt: skip


def tracker(folder: Path, **options: Any) -> Tracker:
    stream, is_tty = options.pop("stream", io.StringIO()), options.pop("is_tty", False)
    shown = Reporter(results=stream, lines=stream, display=lambda: stream if is_tty else None)
    return Tracker(folder, **{"stages": STAGES, "reporter": shown} | options)


def record(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_on_disk_as_soon_as_written(tmp_path: Path) -> None:
    with tracker(tmp_path / "new" / "run") as t:
        t.train("pretrain", 10, METRICS)
        t.evaluation("pretrain", 10, "squad", {"exact": 61.5, "f1": 70.25})
        t.event("pretrain", 10, "episode", episode=2, trainable_parameters=1234)
        train, score, event = record(tmp_path / "new" / "run")  # before close
    assert train.pop("elapsed") >= 0
    assert train == {"kind": "train", "stage": "pretrain", "step": 10} | METRICS
    assert score == {
        "kind": "eval", "stage": "pretrain", "step": 10, "name": "squad", "scores": {"exact": 61.5, "f1": 70.25},
    }  # fmt: skip
    assert event["event"] == "episode" and event["trainable_parameters"] == 1234 and event["time"].endswith("Z")


def test_numbers_of_every_kind_become_plain_json(tmp_path: Path) -> None:
    with tracker(tmp_path) as t:
        t.train("pretrain", np.int64(3), {
            "loss": np.float32(0.5), "grad_norm": float("nan"), "mlm_loss": float("inf"), "kind": "overwritten?",
            "per_task": {"books": np.float64(1.5)}, "note": "café", "elapsed": 7,
        })  # fmt: skip
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert line == {
        "kind": "train", "stage": "pretrain", "step": 3, "loss": 0.5, "grad_norm": None, "mlm_loss": None,
        "per_task": {"books": 1.5}, "note": "café", "elapsed": 7,
    }  # fmt: skip


def test_rewind_removes_later_steps_later_stages_and_torn_lines(tmp_path: Path) -> None:
    stages = {"pretrain": 30, "adapt": 30, "qa": 30}
    with tracker(tmp_path, stages=stages) as t:
        for stage in stages:
            for step in (10, 20, 30):
                t.train(stage, step, {"loss": 1.0, "elapsed": step})
            t.event(stage, 30, "stage_end")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "stage": "qa", "st')
    with tracker(tmp_path, stages=stages) as t:
        t.rewind(["pretrain"], "adapt", 20)
        t.event("adapt", 20, "resume")
    assert [(line["stage"], line["step"]) for line in record(tmp_path)] == [
        *[("pretrain", step) for step in (10, 20, 30, 30)], *[("adapt", step) for step in (10, 20, 20)],
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@settings(max_examples=40, deadline=None)
@given(every=st.integers(1, 7), stops=st.lists(st.integers(1, 40), max_size=4))
def test_stopping_and_resuming_leaves_the_record_of_one_run(tmp_path_factory, every: int, stops: list[int]) -> None:
    """Whatever the stops, the record is that of a run without them: a checkpoint each `every` steps, resume from it."""

    def run(folder: Path, start: int, stop: int) -> None:
        with tracker(folder) as t:
            t.rewind([], "pretrain", start)
            for step in range(start + 1, stop + 1):
                t.train("pretrain", step, {"loss": 1 / step, "elapsed": step})

    folder = tmp_path_factory.mktemp("stopped")
    start = 0
    for stop in stops:
        run(folder, start, max(start, stop))
        start = max(start, stop) // every * every
    run(folder, start, 40)
    whole = tmp_path_factory.mktemp("whole")
    run(whole, 0, 40)
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_kill_during_rewind_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracker(tmp_path) as t:
        for step in (1, 2, 3):
            t.train("pretrain", step, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with tracker(tmp_path) as t, pytest.raises(KeyboardInterrupt):
        t.rewind([], "pretrain", 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    good = '{"kind": "train", "stage": "pretrain", "step": 1}'
    (tmp_path / "metrics.jsonl").write_bytes(good.encode() + b'\n{"kind": "train", "loss": \xff\xfe')
    with tracker(tmp_path) as t:
        t.train("pretrain", 2, {})
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_damaged_lines_are_moved_aside_and_reported(tmp_path: Path) -> None:
    with tracker(tmp_path) as t:
        for step in (1, 2, 3):
            t.train("pretrain", step, {"loss": 1.0, "elapsed": step})
    path = tmp_path / "metrics.jsonl"
    raw = path.read_bytes().splitlines(keepends=True)
    damaged = b"\xff" + raw[1][1:]
    path.write_bytes(raw[0] + damaged + b"null\n" + raw[2] + b'{"kind": "tr')
    out = io.StringIO()
    for _ in range(2):  # nothing is left to report the second time
        with tracker(tmp_path, stream=out) as t:
            t.rewind([], "pretrain", 3)
    assert out.getvalue().count(f"note: {path}: 2 lines are damaged; moved to metrics-damaged.jsonl") == 1
    assert path.read_bytes() == raw[0] + raw[2]
    assert (tmp_path / "metrics-damaged.jsonl").read_bytes() == damaged + b"null\n"


def test_a_resume_keeps_sound_lines_as_they_are_and_takes_no_time_from_odd_ones(tmp_path: Path) -> None:
    """A lone surrogate is sound JSON that UTF-8 cannot hold; names of another type are damage."""
    head = '{"kind": "train", "stage": "s", "step": %d, %s}\n'
    odd = [f'"elapsed": {text}' for text in ("NaN", "1e400", str(10**400), "-5", '"x"', "[]")]
    kept = [head % (1, body) for body in ['"note": "\\ud83d"', *odd, '"elapsed": 7.5']]
    damaged = ['{"kind": [], "stage": "s", "step": 1}\n', '{"kind": "eval", "stage": {}, "step": 1}\n',
               '{"kind": "eval", "stage": "s", "step": true}\n']  # fmt: skip
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join([*kept, *damaged, head % (2, '"loss": 1')]))
    with tracker(tmp_path) as t:
        t.rewind([], "s", 1)
        assert path.read_text() == "".join(kept)
        assert (tmp_path / "metrics-damaged.jsonl").read_text() == "".join(damaged)
        t.train("s", 2, {"loss": 1.0})
    *_, last = read_lines(path)
    assert last["step"] == 2 and 7.5 <= last["elapsed"] < 60


def test_elapsed_goes_on_after_a_restart(tmp_path: Path) -> None:
    with tracker(tmp_path) as t:
        t.train("pretrain", 10, {"elapsed": 500.0})
        t.train("pretrain", 20, {"elapsed": 900.0})
    with tracker(tmp_path) as t:
        t.rewind([], "pretrain", 10)
        t.train("pretrain", 11, {})
    assert 500 <= record(tmp_path)[-1]["elapsed"] < 510


def test_a_full_disk_is_one_line_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()  # stands for any file that cannot be opened
    with tracker(tmp_path) as t, pytest.raises(StorageError, match=r"metrics\.jsonl: could not be written"):
        t.train("pretrain", 1, {"loss": 1.0})


def test_other_processes_write_and_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with Tracker(tmp_path, stages=STAGES, tensorboard=True, wandb=True, is_primary=False) as t:
        t.rewind([], "pretrain", 0)
        t.train("pretrain", 1, METRICS)
        t.evaluation("pretrain", 1, "squad", {"f1": 1.0})
        t.event("pretrain", 1, "checkpoint")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


# ---- the terminal ---------------------------------------------------------------------------------------------------


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    with tracker(tmp_path, stream=out) as t:
        t.train("pretrain", 10, METRICS | {"memory_bytes": 3 * 2**30, "mfu": 0.503})
        t.train("pretrain", 20, {"loss": float("nan")})
        t.evaluation("pretrain", 20, "squad", {"exact": 61.512, "f1": 70.25, "total": 10570})
        t.event("pretrain", 20, "stage_end", seconds=12.5, devices=["a"])
    first, second, third, fourth = out.getvalue().splitlines()
    assert first == (
        "pretrain 10/100 | loss 2.3145 | mlm 51.2% | nsp 87.5% | lr 9.75e-05 | 12.3k tok/s | step 125 ms | wait 3.1% | "
        "MFU 50.3% | mem 3.0 GiB | episode 2 | ETA 11s"  # 90 steps at 0.125 s
    )
    assert second.startswith("pretrain 20/100 | loss nan | RSS ") and "n/a" not in second
    assert third == "pretrain 20 | squad: exact 61.51 | f1 70.25 | total 10,570"
    assert fourth == "pretrain 20 | stage end seconds=12.5"
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_the_time_that_remains_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock.now)
    out = io.StringIO()
    shown = console.Console({"qa": 100}, Reporter(results=out, display=lambda: None))
    shown.train("qa", 10, {"step_seconds": 2.0})  # no pace yet: 90 steps of 2 s
    clock.now += 40  # ten steps in 40 s, saving and evaluating included: 80 steps of 4 s
    shown.train("qa", 20, {"step_seconds": 2.0})
    clock.now += 70  # ten more, and an episode compiled for 30 s
    shown.leave_out(30)
    shown.train("qa", 30, {"step_seconds": 2.0})
    assert [line.rsplit("ETA ")[1] for line in out.getvalue().splitlines()] == ["3m00s", "5m20s", "4m40s"]


def test_the_compiling_around_the_first_step_is_no_part_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock.now)
    out = io.StringIO()
    shown = console.Console({"qa": 100}, Reporter(results=out, display=lambda: None))
    clock.now += 60
    shown.step(1)  # at the end of a block that compiled for a minute
    shown.leave_out(60)
    clock.now += 18
    shown.train("qa", 10, {"step_seconds": 2.0})
    assert out.getvalue().rstrip().endswith("ETA 3m00s")


def test_a_progress_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    with tracker(tmp_path, stream=out, is_tty=True) as t:
        for stage, step in (("pretrain", 50), ("qa", 4)):
            with t.show_stage(stage, 0):
                t._console._task.min_age = 0.0
                t.step(step)
                t.train(stage, step, METRICS)
                t._console.reporter.refresh()
                t.evaluation(stage, step, "squad [raw]", {"f1": 70.25})
    shown = out.getvalue()
    for expected in (
        "pretrain (1/2)",
        "50 of 100 steps",
        "qa (2/2)",
        "4 of 40",
        "loss 2.3145",
        "squad [raw]: f1 70.25",
    ):
        assert expected in shown
    assert "n/a" not in shown and "qa 4/40" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2  # the cursor is given back after each bar


@pytest.mark.parametrize(
    "value, shown", [(0, "0s"), (59.4, "59s"), (185, "3m05s"), (3720, "1h02m"), (183600, "2d03h"), (None, "n/a")]
)
def test_durations(value: float | None, shown: str) -> None:
    assert text.duration(value) == shown


@pytest.mark.parametrize(
    "value, shown",
    [(0.5, "0.5000"), (1234567, "1,234,567"), (0.000123456, "0.0001235"), (81.2345, "81.23"), (True, "yes"),
     (None, "n/a"), ("x", "x"), (123456.7, "123,457"), (float("inf"), "inf"), (0.0, "0")],
)  # fmt: skip
def test_numbers(value: Any, shown: str) -> None:
    assert text.number(value) == shown


# ---- TensorBoard and Weights & Biases -------------------------------------------------------------------------------


def test_tensorboard_reads_back_one_run_after_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tracker(tmp_path, tensorboard=True) as t:
        for step in (10, 20, 30):
            t.train("pretrain", step, {"loss": float(step), "per_task": {"books": 1.0}})
        t.train("qa", 10, {"loss": 5.0})
    with tracker(tmp_path, tensorboard=True) as t:
        t.rewind([], "pretrain", 20)
        t.train("pretrain", 30, {"loss": -30.0})
        t.evaluation("pretrain", 30, "squad", {"f1": 70.25})
        t.train("qa", 5, {"loss": 6.0})

    def read(stage: str, tag: str) -> list[tuple[int, float]]:
        events = accumulators.EventAccumulator(str(tmp_path / "tensorboard" / stage))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars(tag)]

    assert read("pretrain", "train/loss") == [(10, 10.0), (20, 20.0), (30, -30.0)]
    assert read("pretrain", "train/per_task/books") == [(10, 1.0), (20, 1.0)]
    assert read("pretrain", "squad/f1") == [(30, 70.25)]
    assert read("qa", "train/loss") == [(5, 6.0)]


@pytest.mark.parametrize("asked, notes", [(True, 1), (None, 0), (False, 0)])
def test_a_missing_tensorboard_is_a_note(tmp_path: Path, monkeypatch, asked: bool | None, notes: int) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    out = io.StringIO()
    with tracker(tmp_path, tensorboard=asked, stream=out) as t:
        t.train("pretrain", 1, {"loss": 1.0})
    assert out.getvalue().count("pip install 'bertjax[tensorboard]'") == notes
    assert len(out.getvalue().splitlines()) == 1 + notes
    assert len(record(tmp_path)) == 1


@pytest.mark.parametrize("asked, notes", [(True, 1), (None, 0)])
def test_a_tensorboard_that_cannot_be_imported_is_a_note(tmp_path: Path, monkeypatch, asked, notes: int) -> None:
    (tmp_path / "tensorboardX.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorboardX", raising=False)
    out = io.StringIO()
    with tracker(tmp_path, tensorboard=asked, stream=out) as t:
        t.train("pretrain", 1, {"loss": 1.0})
        t.train("pretrain", 2, {"loss": 1.0})
    assert out.getvalue().count("TensorBoard is off: tensorboardX cannot be imported (No module named") == notes
    assert len(record(tmp_path)) == 2


def test_wandb_gets_every_number_and_a_restart_is_the_same_run(tmp_path: Path, monkeypatch) -> None:
    calls: list[tuple] = []

    class FakeRun:
        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            calls.append(("define", name, step_metric))

        def log(self, values: dict) -> None:
            calls.append(("log", values))

        def finish(self) -> None:
            calls.append(("finish",))

    def init(**options: Any) -> FakeRun:
        calls.append(("init", options["id"], options["resume"], options["name"], options["config"]))
        return FakeRun()

    fake = SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        with tracker(tmp_path, wandb=True, config={"seed": 1}) as t:
            t.train("pretrain", step, {"loss": 1.5, "elapsed": 3, "mfu": None})
    first, second = (call for call in calls if call[0] == "init")
    assert first == second == ("init", (tmp_path / "wandb_id").read_text().strip(), "allow", tmp_path.name, {"seed": 1})
    assert len(first[1]) == 8
    assert ("define", "qa/*", "qa/step") in calls
    logged = [c[1] for c in calls if c[0] == "log"]
    assert logged[1] == {"pretrain/step": 2, "pretrain/train/loss": 1.5, "pretrain/train/elapsed": 3}
    assert calls.count(("finish",)) == 2


def test_a_wandb_that_will_not_start_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("no login\nlong text")

    fake = SimpleNamespace(init=init)
    out = io.StringIO()
    for module in (fake, None):
        monkeypatch.setitem(sys.modules, "wandb", module)
        with tracker(tmp_path, wandb=True, stream=out) as t:
            t.train("pretrain", 1, {"loss": 1.0})
    failed, missing = (line for line in out.getvalue().splitlines() if line.startswith("note: "))
    assert "no login" in failed and "long text" not in failed and "WANDB_MODE=offline" in failed
    assert "pip install 'bertjax[wandb]'" in missing


def test_heavy_packages_load_only_when_used() -> None:
    assert not {"rich", "tensorboardX", "wandb", "jax"} & set(vars(tracking)) | set(vars(console)) & {"rich"}
