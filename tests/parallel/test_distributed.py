"""The parts of start-up and batch placement that one process can check; several processes are tests of the loop."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from bertjax.config.schema import Mesh
from bertjax.errors import UserError
from bertjax.parallel import distributed
from bertjax.parallel import mesh as meshes

NAMES = ("BERTJAX_COORDINATOR", "BERTJAX_NUM_PROCESSES", "BERTJAX_PROCESS_ID")


def batch_sharding(rules: dict | None = None, **sizes: int) -> NamedSharding:
    mesh = meshes.make_mesh(Mesh(**sizes))
    return NamedSharding(mesh, meshes.partition(("batch",), meshes.rules(rules or {})))


def owned_by(sharding: NamedSharding, devices: list[int]) -> SimpleNamespace:
    """The sharding as a process sees it that holds only these devices."""

    def ours(shape: tuple[int, ...]) -> dict:
        return {d: index for d, index in sharding.devices_indices_map(shape).items() if d.id in devices}

    return SimpleNamespace(
        num_devices=sharding.num_devices,
        mesh=sharding.mesh,
        spec=sharding.spec,
        addressable_devices_indices_map=ours,
    )


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
    """Calls of jax.distributed.initialize, in a clean environment."""
    calls: list[tuple] = []
    for name in (*NAMES, "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append(args))
    return calls


def test_one_process_starts_nothing(started, monkeypatch):
    distributed.start()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    distributed.start()
    assert started == [] and distributed.is_lead()


def test_explicit_settings_are_passed_on(started, monkeypatch):
    for name, value in zip(NAMES, ("host:1234", "4", "2"), strict=True):
        monkeypatch.setenv(name, value)
    distributed.start()
    assert started == [("host:1234", 4, 2)]


@pytest.mark.parametrize(("name", "value"), [("SLURM_STEP_NUM_TASKS", "2"), ("TPU_WORKER_HOSTNAMES", "a,b")])
def test_clusters_that_jax_knows_are_detected(started, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    distributed.start()
    assert started == [()]


@pytest.mark.parametrize("missing", NAMES)
def test_partial_settings_are_a_user_error(started, monkeypatch, missing):
    for name in set(NAMES) - {missing}:
        monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=f"environment: set all of .*{missing}"):
        distributed.start()
    assert started == []


@pytest.mark.parametrize(
    ("count", "index", "reason"),
    [
        ("two", "0", "must be numbers"),
        ("2", "first", "must be numbers"),
        ("2", "2", "BERTJAX_PROCESS_ID is 2; it counts from 0 to BERTJAX_NUM_PROCESSES - 1 = 1"),
        ("2", "-1", "BERTJAX_PROCESS_ID is -1"),
        ("0", "0", "BERTJAX_PROCESS_ID is 0"),
    ],
)
def test_settings_that_are_no_numbers_in_range_are_a_user_error(started, monkeypatch, count, index, reason):
    for name, value in zip(NAMES, ("host:1234", count, index), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^environment: .*{reason}"):
        distributed.start()
    assert started == []


@pytest.mark.parametrize(
    "sizes", [{}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 8}]
)
def test_one_process_holds_every_row(sizes):
    assert distributed.local_rows(batch_sharding(**sizes), 16) == slice(0, 16)


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [
        ({}, [0, 1, 2, 3], slice(0, 8)),
        ({}, [4, 5, 6, 7], slice(8, 16)),
        ({"fsdp": 4, "tensor": 2}, [4, 5, 6, 7], slice(8, 16)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, [2, 3], slice(4, 8)),
        ({"data": 2, "tensor": 4}, [2, 3], slice(0, 8)),  # hosts that share a tensor group read the same rows
        ({"data": 1, "tensor": 8}, [6, 7], slice(0, 16)),
    ],
)
def test_rows_of_one_process_of_several(sizes, devices, expected):
    """Mesh order is data, fsdp, tensor; the 16 rows are cut over data x fsdp."""
    assert distributed.local_rows(owned_by(batch_sharding(**sizes), devices), 16) == expected


def test_rows_that_lie_apart_are_listed():
    """A host of a TPU pod holds a block of the torus: pieces of several rings, and so of several parts of the batch."""
    found = distributed.local_rows(owned_by(batch_sharding(), [0, 1, 4, 5]), 16)
    np.testing.assert_array_equal(found, [0, 1, 2, 3, 8, 9, 10, 11])


@pytest.mark.parametrize(("sizes", "shards"), [({}, 8), ({"fsdp": 4, "tensor": 2}, 4), ({"data": 2, "tensor": 4}, 2)])
def test_rows_that_do_not_divide_are_a_user_error(sizes, shards):
    sharding = batch_sharding(**sizes)
    assert distributed.local_rows(sharding, shards) == slice(0, shards)
    with pytest.raises(UserError, match=f"^batch_size: {shards + 1} rows do not divide over {shards} devices"):
        distributed.local_rows(sharding, shards + 1)


def test_batches_whole_on_every_device():
    """With the batch rule taken away nothing has to divide."""
    assert distributed.local_rows(batch_sharding({"batch": None}), 3) == slice(0, 3)


def test_place_makes_global_arrays():
    sharding = batch_sharding(data=2, fsdp=2, tensor=2)
    rows = {"input_ids": np.arange(32).reshape(8, 4), "nsp_labels": np.arange(8).reshape(8, 1)}
    placed = distributed.place(rows, sharding, 8)
    for name, x in rows.items():
        np.testing.assert_array_equal(placed[name], x)
        assert placed[name].sharding.is_equivalent_to(sharding, x.ndim)
        assert placed[name].addressable_shards[0].data.shape == (2, *x.shape[1:])


INTERLEAVED = """
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from bertjax.parallel import distributed

distributed.start()
devices = np.asarray(jax.devices())[[0, 2, 1, 3]].reshape(4, 1, 1)
mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
sharding = NamedSharding(mesh, P(("data", "fsdp")))
rows = distributed.local_rows(sharding, 8)
batch = np.arange(24).reshape(8, 3)
placed = distributed.place({"x": batch[rows]}, sharding, 8)["x"]
for shard in placed.addressable_shards:
    np.testing.assert_array_equal(shard.data, batch[shard.index])
print(jax.process_index(), list(rows))
"""


@pytest.mark.slow
def test_two_processes_place_rows_that_lie_apart():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", NAMES[0]: f"127.0.0.1:{port}", NAMES[1]: "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", INTERLEAVED], env=os.environ | flags | {NAMES[2]: str(index)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    for process, expected in zip(processes, ("0 [0, 1, 4, 5]", "1 [2, 3, 6, 7]"), strict=True):
        found, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and expected in found.replace("np.int64(", "").replace(")", ""), found
