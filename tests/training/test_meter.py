"""What the meter counts, what it times, and that a stop between two log lines changes no number."""

import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bertjax.config.schema.run import RunConfig
from bertjax.training.monitor.meter import Meter, jax, non_padding_tokens, time

STEPS, LOG_EVERY = 11, 4
TIMES = {"tokens_per_second", "step_seconds", "data_wait", "mfu", "memory_bytes"}


def test_tokens_are_those_of_inputs_and_targets():
    inputs, targets = np.array([[1, 1, 2, 0], [1, 0, 0, 0]]), np.array([[1, 2, 0], [1, 1, 1]])
    bert = {"input_ids": inputs + 5, "segment_ids": inputs, "positions": inputs}
    assert non_padding_tokens(bert) == 4
    assert (
        non_padding_tokens(bert | {"target_ids": targets, "target_segment_ids": targets, "target_weights": targets})
        == 9
    )
    assert (
        non_padding_tokens({"target_segment_ids": targets, "prefix_mask": targets, "task_ids": np.array([1, 1])}) == 5
    )


class Lines(list):
    """A tracker that only keeps the lines."""

    def train(self, stage: str, step: int, numbers: dict[str, Any]) -> None:
        self.append((step, numbers))


@pytest.fixture
def make_meter(make_program):
    program = make_program(steps=STEPS)
    batches = SimpleNamespace(
        fields={"input_ids": ((32,), np.int32), "masked_positions": ((5,), np.int32)},
        batch_size=8, task_names=["books", "wiki"], rates={"books": 0.5, "wiki": 0.5},
    )  # fmt: skip

    def make(lines: Lines, unlogged: dict[str, Any] | None = None) -> Meter:
        made = Meter(program, batches, lines, "pretrain", RunConfig(log_every=LOG_EVERY), unlogged)
        made.start_episode(0, 100, ("layers/0", "layers/1", "heads"))
        return made

    return make


# ---- the position of a run -------------------------------------------------------------------------------------------


def metrics_of(step: int) -> dict[str, np.ndarray]:
    """Numbers whose sums depend on their order; a task may have no rows, and a step may not be finite."""
    rng = random.Random(step)
    draw = lambda: np.float32(rng.uniform(0, 7) ** rng.randint(1, 9))  # noqa: E731
    rows = rng.randint(0, 8) if step != 6 else 8
    found = {
        "loss": draw(), "grad_norm": draw(), "learning_rate": draw(), "bad_steps": np.int32(step == 3),
        "mlm_loss": draw() if step != 3 else np.float32("nan"), "mlm_accuracy": draw(), "mlm_weight": draw(),
        "mlm_loss/tasks": np.array([draw(), draw()]), "mlm_weight/tasks": np.array([rows, 8 - rows], np.float32),
        "rows/tasks": np.array([rows, 8 - rows], np.int32),
    }  # fmt: skip
    return found


def logged(make_meter, stops: set[int]) -> tuple[list[str], str]:
    """The lines but for times, and what was seen of the mixture, of a run stopped behind these steps."""
    lines = Lines()
    meter = make_meter(lines)
    for step in range(1, STEPS + 1):
        meter.record_step(step, metrics_of(step), 100, 0.0)
        if step in stops:
            meter.flush()
            meter = make_meter(lines, json.loads(json.dumps(meter.unlogged())))
    meter.flush()
    kept = [(step, {k: v for k, v in numbers.items() if k not in TIMES}) for step, numbers in lines]
    return [repr(line) for line in kept], meter.mixture()


def test_a_stop_behind_any_step_changes_no_line(make_meter):
    unbroken = logged(make_meter, set())
    assert len(unbroken[0]) == 3 and "nan" in unbroken[0][0] and unbroken[1].count("seen") == 2
    for step in range(1, STEPS + 1):
        assert logged(make_meter, {step}) == unbroken, step
    assert logged(make_meter, set(range(1, STEPS + 1))) == unbroken


def test_a_position_is_json_without_what_json_lacks(make_meter):
    meter = make_meter(Lines())
    meter.record_step(3, metrics_of(3), 1, 0.0)
    meter.flush()
    text = json.dumps(meter.unlogged(), allow_nan=False)
    assert json.loads(text)["sums"]["mlm_loss"] == "nan" and json.loads(text)["seen"] != {}


# ---- times ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A device that takes two seconds for a step, and a host that waits for it only when it reads."""
    found = SimpleNamespace(now=100.0, free=100.0, done={})

    def run(step: int) -> dict[str, Any]:
        found.free = found.done[step] = max(found.free, found.now) + 2.0
        return {"loss": step}

    def read(metrics: Any) -> dict[str, float]:
        step = metrics["loss"] if isinstance(metrics, dict) else metrics
        found.now = max(found.now, found.done[step])
        return {"loss": 1.0, "learning_rate": 0.1, "bad_steps": 0}

    found.run = run
    monkeypatch.setattr(time, "perf_counter", lambda: found.now)
    monkeypatch.setattr(jax, "device_get", read)
    monkeypatch.setattr(jax, "block_until_ready", read)
    return found


def timed(make_meter, clock, waits: dict[int, float], pause_after: int = 0, flush: bool = False) -> dict[int, dict]:
    """waits: seconds without a batch before a step; the first is as long as two batches, one is made ahead."""
    lines = Lines()
    meter = make_meter(lines)
    for step in range(1, STEPS + 1):
        clock.now += waits.get(step, 0.0)
        meter.record_step(step, clock.run(step), 100, waits.get(step, 0.0))
        if flush or step == pause_after:
            meter.flush()
        if step == pause_after:
            clock.now += 500.0  # an evaluation
            meter.pause()
    meter.flush()
    return dict(lines)


@pytest.mark.parametrize("flush", [False, True])
def test_a_step_takes_from_the_end_of_the_one_before_to_its_own(make_meter, clock, flush):
    """Two seconds in the first line too, where a host that runs ahead had measured two thirds of them."""
    found = timed(make_meter, clock, {1: 50.0}, flush=flush)
    assert [line["step_seconds"] for line in found.values()] == [2.0, 2.0, 2.0]
    assert [line["tokens_per_second"] for line in found.values()] == [50.0, 50.0, 50.0]
    assert [line["data_wait"] for line in found.values()] == [0.0, 0.0, 0.0]


def test_an_evaluation_takes_nothing_from_the_steps_around_it(make_meter, clock):
    found = timed(make_meter, clock, {}, pause_after=5)
    assert [line["step_seconds"] for line in found.values()] == [2.0, 2.0, 2.0]


def test_no_line_has_a_save_a_restart_or_a_compilation_in_its_times(make_meter, clock):
    """A save of 300 s after each third step; a restart in the midst of a line, whose first step compiles for 60 s."""
    lines = Lines()
    meter = make_meter(lines)
    for step in range(1, STEPS + 1):
        if step in (1, 6):
            clock.now += 60.0
        meter.record_step(step, clock.run(step), 100, 0.0)
        if step % 3 == 0:
            meter.flush()
            clock.now += 300.0
            meter.pause()
        if step == 5:
            meter.flush()
            clock.now += 1000.0
            meter = make_meter(lines, json.loads(json.dumps(meter.unlogged())))
    meter.flush()
    assert [line["step_seconds"] for _, line in lines] == [2.0, 2.0, 2.0]
    assert [line["tokens_per_second"] for _, line in lines] == [50.0, 50.0, 50.0]


def test_the_share_of_waiting_is_a_share(make_meter, clock):
    """A loader that takes five seconds for each batch: the device waits three of five."""
    found = timed(make_meter, clock, dict.fromkeys(range(1, STEPS + 1), 5.0))
    assert [line["step_seconds"] for line in found.values()][1:] == [5.0, pytest.approx(4.0)]
    assert all(0 <= line["data_wait"] <= 1 for line in found.values())
