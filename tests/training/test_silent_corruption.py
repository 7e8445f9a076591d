"""Injected bit flips in copies of the state and in repeated steps are found; sound runs raise no alarm."""

import random
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tally
from checkpoint_trees import make_tree, mesh_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.run import RunConfig
from bertjax.errors import CorruptionError
from bertjax.models import param_paths
from bertjax.training import freezing
from bertjax.training.checkpoint.checksums import find_differing_replicas
from bertjax.training.step import jit_train_step
from bertjax.training.triggers.silent_corruption import CorruptionCheck


def flip(x: jax.Array, device: jax.Device, rng: random.Random) -> jax.Array:
    """x with one bit changed in the copy of one device."""
    blocks = []
    for shard in x.addressable_shards:
        block = np.array(shard.data)
        if shard.device == device:
            raw = block.reshape(-1).view(np.uint8)
            raw[rng.randrange(raw.size)] ^= 1 << rng.randrange(8)
        blocks.append(jax.device_put(block, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, blocks)


def test_twenty_of_twenty_single_bits_are_found_with_their_device():
    leaves = {p: x for p, x in param_paths.flatten(make_tree(1, mesh_of(4, 2))).items() if not p.startswith("key")}
    assert find_differing_replicas(leaves) == []
    rng = random.Random(0)
    for _ in range(20):
        path, device = rng.choice(sorted(leaves)), rng.choice(jax.devices()[:8])
        damaged = leaves | {path: flip(leaves[path], device, rng)}
        assert find_differing_replicas(damaged) == [(path, [device.id])]
    tally.add("a bit changed in a copy of the state", "one random bit on one of 8 devices", 20, detected=20)


def test_parts_of_an_array_are_compared_with_their_own_copies_only():
    mesh = mesh_of(2, 4)
    x = jax.device_put(np.arange(32, dtype=np.float32).reshape(8, 4), NamedSharding(mesh, P("fsdp")))
    assert find_differing_replicas({"x": x, "key": jax.device_put(jax.random.key(3), NamedSharding(mesh, P()))}) == []
    damaged = flip(x, mesh.devices[1, 2], random.Random(0))
    assert [path for path, _ in find_differing_replicas({"x": damaged})] == ["x"]
    whole = jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"))))  # no copies
    assert find_differing_replicas({"x": flip(whole, mesh.devices[1, 2], random.Random(0))}) == []


@pytest.fixture(scope="module")
def made(make_program, make_rows) -> Any:
    """(program, groups, jitted step, batch) on four devices with copies of everything."""
    program = make_program(data=4)
    groups = freezing.param_groups(program.abstract_params())
    like = program.abstract_state(groups, jax.random.key(1))
    return program, groups, jit_train_step(program, like), make_rows("pairs", 8)


def fresh(made: Any) -> Any:
    program, groups, _, _ = made
    return program.init_state(program.initialize(jax.random.key(0)), groups, jax.random.key(1))


def test_a_changed_copy_ends_the_run_before_it_is_saved(made):
    _, _, step, batch = made
    check = CorruptionCheck(RunConfig(check_replicas_every=2), "s")
    state, _ = check.run_step(1, step, fresh(made), batch)
    path = sorted(state.params)[0]
    state = replace(state, params=state.params | {path: flip(state.params[path], jax.devices()[3], random.Random(0))})
    said = rf"stage 's' step 1: params/{path} differs on device 3 from its copies; run the same command again"
    with pytest.raises(CorruptionError, match=said) as caught:
        check.before_save(1, state)
    assert caught.value.exit_code == 75
    CorruptionCheck(RunConfig(), "s").before_save(1, state)  # off


def test_a_step_that_gives_other_bits_when_repeated(made):
    _, _, step, batch = made
    check = CorruptionCheck(RunConfig(repeat_step_every=2), "s")
    calls: list[int] = []

    def faulty(state: Any, batch: Any) -> Any:
        calls.append(1)
        state, metrics = step(state, batch)
        path = sorted(state.params)[0]
        if len(calls) == 3:  # of the steps 1, 2 and 2 again
            x = state.params[path]
            one = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.uint32) ^ 1, jnp.float32)
            state = replace(
                state, params=state.params | {path: jnp.where(jnp.arange(x.size).reshape(x.shape) == 0, one, x)}
            )
        return state, metrics

    state, _ = check.run_step(1, faulty, fresh(made), batch)
    with pytest.raises(CorruptionError, match="step 2: 1 arrays got other bits when the step was repeated"):
        check.run_step(2, faulty, state, batch)


def test_both_checks_change_no_bit_and_raise_no_alarm(made):
    _, _, step, batch = made
    check = CorruptionCheck(RunConfig(check_replicas_every=1, repeat_step_every=2), "s")
    one, other = fresh(made), fresh(made)
    for number in range(1, 9):
        one, _ = check.run_step(number, step, one, batch)
        other, _ = step(other, batch)
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), one.params, other.params)
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_no_false_alarm_in_500_steps(made):
    _, _, step, batch = made
    check = CorruptionCheck(RunConfig(check_replicas_every=1), "s")
    state = fresh(made)
    for number in range(1, 501):
        state, _ = check.run_step(number, step, state, batch)
    assert int(state.step) == 500
    tally.add("none (false alarms)", "copies compared after each of 500 steps", 500, detected=0)
