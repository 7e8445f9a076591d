"""Spikes: the rule against plain numpy, what a skipped step leaves, and a resumed run that skips the same steps."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.data.pipeline.loader import Batches
from bertjax.errors import DivergedError, StoppedSafely, StorageError
from bertjax.training import freezing
from bertjax.training.guards import spikes
from bertjax.training.guards.spikes import SpikeRule, SpikeWindow
from bertjax.training.state import from_tree, to_tree
from bertjax.training.step import jit_train_step
from bertjax.training.triggers import rewind
from bertjax.training.triggers.rewind import batch_position, left_out, read_rewinds


def reference(values: np.ndarray, window: int, sigma: float, after: int) -> list[int]:
    """The steps that OLMo's rule skips; a spike is remembered as at most two limits above the mean."""
    seen: list[list[float]] = []
    skipped = []
    for step, pair in enumerate(values):
        last = np.asarray(seen[-window:], np.float64).reshape(-1, 2)
        kept = pair
        if len(last) >= window // 2:
            mean, limit = last.mean(0), sigma * last.std(0, ddof=1)
            kept = np.minimum(pair, mean + 2 * limit)
            if step >= after and np.any(pair > mean + limit):
                skipped.append(step)
            kept = kept if step >= after else pair
        seen.append(list(kept))
    return skipped


def found(rule: SpikeRule, values: np.ndarray) -> list[int]:
    def body(window: SpikeWindow, at: tuple) -> tuple[SpikeWindow, jax.Array]:
        is_spike, window = spikes.check(rule, window, at[0], at[1][0], at[1][1])
        return window, is_spike

    steps = jnp.arange(len(values))
    _, skipped = jax.lax.scan(body, spikes.empty_window(rule.window), (steps, jnp.asarray(values, jnp.float32)))
    return np.flatnonzero(skipped).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_is_that_of_plain_numpy(seed):
    rng = np.random.default_rng(seed)
    values = np.abs(rng.standard_normal((400, 2))) * 0.1 + [3.0, 1.0]
    for place in rng.choice(np.arange(30, 400), 12, replace=False):
        values[place, rng.integers(2)] *= rng.uniform(1.5, 100)
    for window, sigma, after in ((128, 6.0, 0), (32, 4.0, 100), (16, 2.0, 0)):
        rule = SpikeRule(window, sigma, after)
        assert found(rule, values) == reference(values, window, sigma, after) != []


def test_a_spike_of_fifty_times_is_skipped_after_64_steps_and_not_before():
    values = np.random.default_rng(0).normal([3.0, 1.0], 0.05, (300, 2))
    values[[40, 200], 0] *= 50
    assert found(SpikeRule(128, 6.0, 0), values) == [200]
    values[200, 0] = 1e30  # a huge one does not hide the next
    values[203, 1] *= 50
    assert found(SpikeRule(128, 6.0, 0), values) == [200, 203]
    assert found(SpikeRule(128, 6.0, 201), values) == [203]


def test_no_false_alarm_in_noise_and_a_lasting_change_is_taken():
    values = np.random.default_rng(1).normal([3.0, 1.0], 0.05, (2000, 2))
    assert found(SpikeRule(128, 6.0, 0), values) == []
    values[1000:, 1] += 5.0  # as after a change of the data
    skipped = found(SpikeRule(128, 6.0, 0), values)
    assert skipped and skipped == list(range(1000, 1000 + len(skipped))) and len(skipped) < 20
    assert found(SpikeRule(128, 6.0, 0), np.full((500, 2), 3.0)) == []


def test_a_value_that_is_not_finite_is_left_to_the_other_rule():
    rule, window = SpikeRule(8, 6.0, 0), spikes.empty_window(8)
    for loss in (1.0, 1.1, 0.9, 1.0, 1.05):
        _, window = spikes.check(rule, window, jnp.int32(5), jnp.float32(loss), jnp.float32(1.0))
    for bad in (np.nan, np.inf):
        is_spike, after = spikes.check(rule, window, jnp.int32(6), jnp.float32(bad), jnp.float32(1.0))
        assert not is_spike
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(window), strict=True))


def bits(tree: object) -> list[bytes]:
    plain = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(plain)]


def test_a_skipped_step_leaves_parameters_and_optimizer_as_they_were(make_program, make_rows):
    program = replace(make_program(data=2), spike_rule=SpikeRule(8, 6.0, 0))
    groups = freezing.param_groups(program.abstract_params())
    batch = make_rows("pairs", 8)
    start = program.init_state(program.initialize(jax.random.key(0)), groups, jax.random.key(1))

    def after_losses_of(loss: float):
        """The result of a step after eight steps with about this loss."""
        values = jnp.asarray(loss + 0.01 * np.arange(8), jnp.float32)
        window = SpikeWindow(values, jnp.full(8, 1e3) + values, jnp.int32(8))
        state = jax.tree.map(jnp.copy, replace(start, spikes=window))
        return step(state, batch)

    step = jit_train_step(program, start)
    skipped, numbers = after_losses_of(0.5)
    assert int(numbers["spike"]) == 1 and int(numbers["bad_steps"]) == 0 and int(skipped.step) == 1
    assert bits(skipped.params) == bits(start.params) and bits(skipped.opt_state) == bits(start.opt_state)
    taken, numbers = after_losses_of(100.0)
    assert int(numbers["spike"]) == 0
    plain_program = replace(program, spike_rule=None)
    plain = plain_program.init_state(plain_program.initialize(jax.random.key(0)), groups, jax.random.key(1))
    plain, _ = jit_train_step(plain_program, plain)(plain, batch)
    assert bits(taken.params) == bits(plain.params) and bits(taken.opt_state) == bits(plain.opt_state)
    back = from_tree(to_tree(skipped), program.abstract_state(groups, jax.random.key(1)))
    assert bits(back) == bits(skipped) and int(back.spikes.count) == 9
    unfrozen = program.unfreeze(skipped, groups[-1:])
    assert int(unfrozen.spikes.count) == 0 and not np.asarray(unfrozen.spikes.losses).any()


@pytest.mark.slow
def test_a_resumed_run_skips_the_same_steps(train, stop_at, one_device):
    options = ["stages.pretrain.skip_spikes={window: 8, sigma: 0.01, after: 0}", "stages.pretrain.steps=14"]
    stop_at("", 0)
    whole = train("spiky", *options)
    for step in (3, 7, 10):
        stop_at("pretrain", step)
        with pytest.raises(StoppedSafely):
            train("spiky-stopped", *options)
    stop_at("", 0)
    stopped = train("spiky-stopped", *options)
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, stopped)
    ]
    events = [[(x["step"], x["loss"]) for x in one if x.get("event") == "spike_skipped"] for one in lines]
    assert events[0] == events[1] and len(events[0]) >= 2
    losses = [[x["loss"] for x in one if x["kind"] == "train"] for one in lines]
    assert losses[0] == losses[1]
    digests = [
        json.loads((run / "checkpoints" / "00-pretrain" / "14" / "digest" / "metadata").read_text())["leaves"]
        for run in (whole, stopped)
    ]
    assert digests[0] == digests[1] and "spikes/losses" in digests[0]


# ---- rewinds ---------------------------------------------------------------------------------------------------------


def test_batches_after_rewinds_and_the_checkpoint_to_go_back_to():
    at = batch_position([[100, 250], [400, 50]])
    assert [at(step) for step in (0, 99, 100, 399, 400, 500)] == [0, 99, 350, 649, 700, 800]
    assert batch_position([])(7) == 7
    steps = [100, 200, 300, 400]
    assert rewind._target(steps, 350, 100) == 200 and rewind._target(steps, 350, 0) == 300
    assert rewind._target(steps, 150, 100) == 100 and rewind._target(steps, 100, 0) is None


def test_a_start_says_what_it_leaves_out():
    rewinds = [[4, 2], [9, 3]]
    assert left_out([], 0) is None and left_out(rewinds, 10) is None
    assert left_out(rewinds, 5).startswith("leaves out 3 batches after step 9 (rewinds.json")
    assert "2 batches after step 4, 3 batches after step 9" in left_out(rewinds, 0)


def test_a_damaged_file_of_rewinds_is_not_ignored(tmp_path):
    assert read_rewinds(tmp_path, "s") == []
    rewind._write(tmp_path / rewind.FILE_NAME, "s", [[4, 2]])
    rewind._write(tmp_path / rewind.FILE_NAME, "t", [[1, 1]])
    assert read_rewinds(tmp_path, "s") == [[4, 2]] and read_rewinds(tmp_path, "t") == [[1, 1]]
    numbers = ["[-1, 2]", "[1, -2]", "[1e400, 2]", "[NaN, 2]", "[true, 2]", '["1", 2]', "[1, 1e3]", f"[1, {10**400}]"]
    for text in ["[", "[" * 100_000, '{"s": 1}', '{"s": [[1]]}', *(f'{{"s": [{pair}]}}' for pair in numbers)]:
        (tmp_path / rewind.FILE_NAME).write_text(text)
        with pytest.raises(StorageError, match="rewinds.json: damaged"):
            read_rewinds(tmp_path, "s")


@pytest.mark.slow
def test_a_run_goes_back_leaves_data_out_and_is_resumable(train, stop_at, one_device, monkeypatch):
    rule = "{window: 8, sigma: 0.01, after: 0, rewind: {spikes: 1, back: 0, skip: 3, most: 2}}"
    options = [f"stages.pretrain.skip_spikes={rule}", "stages.pretrain.steps=14", "run.checkpoint.keep_last=9"]
    read: list[int] = []
    batch = Batches.batch
    monkeypatch.setattr(Batches, "batch", lambda self, k, *given: (read.append(k), batch(self, k, *given))[1])

    def train_through(name: str, stops: list[int]) -> tuple[list[str], Path]:
        """Train with these stops, and again after each end that says so, up to the last rewind or the end."""
        ends: list[str] = []
        for stop in [*stops, *[0] * 4]:
            stop_at("pretrain", stop)
            try:
                return ends, train(name, *options)
            except StoppedSafely as error:
                ends += [str(error)] if "back to step" in str(error) else []
            except DivergedError as error:
                return [*ends, str(error)], train.root / name
        raise AssertionError(ends)

    ends, run = train_through("rewound", [])
    assert ends and "batches are left out; run the same command again" in ends[0]
    rewinds = read_rewinds(run, "pretrain")
    assert rewinds and max(read) >= 14  # data after the planned end
    first, batches = rewinds[0]
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], x["batches"]) for x in events if x.get("event") == "rewind"][:1] == [(first, batches)]
    assert f"back to step {first}, and the next {batches} batches" in ends[0]
    again, stopped = train_through("rewound-stopped", [3, 6, 5])
    assert again == ends and read_rewinds(stopped, "pretrain") == rewinds
