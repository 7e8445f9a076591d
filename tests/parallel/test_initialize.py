"""The parts of start-up and batch placement that one process can check; several processes are tests of the loop."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src.clusters import cloud_tpu_cluster, cluster
from jax.sharding import NamedSharding

from bertjax.config.schema.run import MeshConfig
from bertjax.errors import UserError
from bertjax.parallel import batches
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.parallel.multihost import initialize, primary
from bertjax.parallel.sharding import logical_to_mesh_axes

NAMES = ("BERTJAX_COORDINATOR", "BERTJAX_NUM_PROCESSES", "BERTJAX_PROCESS_ID")


def batch_sharding(rules: dict | None = None, **sizes: int) -> NamedSharding:
    mesh = make_mesh(MeshConfig(**sizes))
    return NamedSharding(mesh, logical_to_mesh_axes(("batch",), merge_rules(rules or {})))


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


CLUSTERS = (
    "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS",
    "OMPI_MCA_orte_hnp_uri", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_ID", "JAX_PLATFORMS",
    "MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", initialize.ENV_START_TIMEOUT,
)  # fmt: skip


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
    """Calls of jax.distributed.initialize, in a clean environment where everyone is there."""
    calls: list[tuple] = []
    for name in (*NAMES, *CLUSTERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(initialize.rendezvous, "wait_for_all", lambda *_: {})
    monkeypatch.setattr(initialize.peer_monitor, "current", initialize.peer_monitor.current)
    monkeypatch.setattr(initialize.sigabrt, "install_handler", lambda: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append(args))
    return calls


@pytest.fixture
def on_tpu_host(monkeypatch) -> None:
    """As on a machine with chips, where the address of the first worker can be looked up."""
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: ("", 404))


def test_one_process_starts_nothing(started, monkeypatch):
    initialize.initialize_distributed()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    initialize.initialize_distributed()
    assert started == [] and primary.is_primary()


def test_explicit_settings_are_passed_on(started, monkeypatch):
    for name, value in zip(NAMES, ("host:1234", "4", "2"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_LOCALID", "1")  # says nothing where a person said it all
    initialize.initialize_distributed()
    assert started == [("host:1234", 4, 2, None)]


SLURM = {
    "SLURM_JOB_ID": "4096", "SLURM_STEP_NODELIST": "gpu[003-006,009]", "SLURM_NTASKS": "8", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8",
}  # fmt: skip
OMPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [(SLURM, ("gpu003:61440", 8, 5, [1])), (OMPI, ("10.96.0.1:62624", 4, 3, [0]))],
    ids=["SLURM", "Open MPI"],
)
def test_clusters_of_hosts_are_detected(started, monkeypatch, environment, expected):
    """Ports by jax's rule: 61440 + the job's number modulo 4096."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    initialize.initialize_distributed()
    assert started == [expected]


@pytest.mark.parametrize("changes", [{"SLURM_STEP_NUM_TASKS": None}, {"SLURM_NTASKS": "1"}, {"SLURM_PROCID": None}])
def test_a_batch_script_or_a_step_of_one_task_is_alone(started, monkeypatch, changes):
    for name, value in (SLURM | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    initialize.initialize_distributed()
    assert started == []


@pytest.mark.usefixtures("on_tpu_host")
def test_a_tpu_pod_of_gke_is_detected(started, monkeypatch):
    """Two slices of two hosts: jax numbers the processes slice by slice."""
    for name, value in {
        "TPU_WORKER_HOSTNAMES": "w-0.svc,w-1.svc", "TPU_WORKER_ID": "1", "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_COORDINATOR_ADDRESS": "first.svc:8080",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    initialize.initialize_distributed()
    assert started == [("first.svc:8482", 4, 3, None)]


METADATA = {
    "agent-worker-number": ("2", 200), "worker-network-endpoints": ("a:0:10.0.0.5,b:1:10.0.0.6,c:2:10.0.0.7", 200),
    "tpu-env": ("ACCELERATOR_TYPE: 'v4-24'", 200),
}  # fmt: skip


@pytest.mark.usefixtures("on_tpu_host")
def test_a_tpu_pod_of_gce_is_detected(started, monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", METADATA.__getitem__)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    initialize.initialize_distributed()
    assert started == [("10.0.0.5:8482", 3, 2, None)]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    initialize.initialize_distributed()
    assert len(started) == 1, "a run on the host's CPU is alone"


@pytest.mark.usefixtures("on_tpu_host")
def test_a_cluster_that_cannot_be_read_is_a_user_error(started, monkeypatch):
    def refuse(key: str) -> None:
        raise OSError("metadata.google.internal: no such host")

    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", refuse)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    with pytest.raises(UserError, match=r"the gcetpu cluster cannot be read \(OSError: .*set BERTJAX_COORDINATOR"):
        initialize.initialize_distributed()


def test_a_job_that_has_begun_is_not_joined_again(started, monkeypatch):
    for name, value in zip(NAMES, ("host:1234", "4", "2"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    initialize.initialize_distributed()
    assert started == []


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "inf", "nan"])
def test_a_start_timeout_that_is_no_number_of_seconds_is_a_user_error(started, monkeypatch, text):
    monkeypatch.setenv(initialize.ENV_START_TIMEOUT, text)
    with pytest.raises(UserError, match="BERTJAX_START_TIMEOUT is .* seconds above zero"):
        initialize.initialize_distributed()


# ---- failing together -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", NAMES)
def test_partial_settings_are_a_user_error(started, monkeypatch, missing):
    for name in set(NAMES) - {missing}:
        monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=f"environment: set all of .*{missing}"):
        initialize.initialize_distributed()
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
        initialize.initialize_distributed()
    assert started == []


@pytest.mark.parametrize(
    "sizes", [{}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 8}]
)
def test_one_process_holds_every_row(sizes):
    assert batches.local_rows(batch_sharding(**sizes), 16) == slice(0, 16)


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
    assert batches.local_rows(owned_by(batch_sharding(**sizes), devices), 16) == expected


def test_rows_that_lie_apart_are_listed():
    """A host of a TPU pod holds a block of the torus: pieces of several rings, and so of several parts of the batch."""
    found = batches.local_rows(owned_by(batch_sharding(), [0, 1, 4, 5]), 16)
    np.testing.assert_array_equal(found, [0, 1, 2, 3, 8, 9, 10, 11])


@pytest.mark.parametrize(("sizes", "shards"), [({}, 8), ({"fsdp": 4, "tensor": 2}, 4), ({"data": 2, "tensor": 4}, 2)])
def test_rows_that_do_not_divide_are_a_user_error(sizes, shards):
    sharding = batch_sharding(**sizes)
    assert batches.local_rows(sharding, shards) == slice(0, shards)
    with pytest.raises(UserError, match=f"^batch_size: {shards + 1} rows do not divide over {shards} devices"):
        batches.local_rows(sharding, shards + 1)


def test_batches_whole_on_every_device():
    """With the batch rule taken away nothing has to divide."""
    assert batches.local_rows(batch_sharding({"batch": None}), 3) == slice(0, 3)


def test_place_makes_global_arrays():
    sharding = batch_sharding(data=2, fsdp=2, tensor=2)
    rows = {"input_ids": np.arange(32).reshape(8, 4), "nsp_labels": np.arange(8).reshape(8, 1)}
    placed = batches.place(rows, sharding, 8)
    for name, x in rows.items():
        np.testing.assert_array_equal(placed[name], x)
        assert placed[name].sharding.is_equivalent_to(sharding, x.ndim)
        assert placed[name].addressable_shards[0].data.shape == (2, *x.shape[1:])


INTERLEAVED = """
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from bertjax.parallel import batches
from bertjax.parallel.multihost import initialize

initialize.initialize_distributed()
devices = np.asarray(jax.devices())[[0, 2, 1, 3]].reshape(4, 1, 1)
mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
sharding = NamedSharding(mesh, P(("data", "fsdp")))
rows = batches.local_rows(sharding, 8)
batch = np.arange(24).reshape(8, 3)
placed = batches.place({"x": batch[rows]}, sharding, 8)["x"]
for shard in placed.addressable_shards:
    np.testing.assert_array_equal(shard.data, batch[shard.index])
print(jax.process_index(), list(rows))
"""


def two_processes(program: str, devices: int) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of a program run by two processes that are to meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flag = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    seats = [{NAMES[0]: f"127.0.0.1:{port}", NAMES[1]: "2", NAMES[2]: str(index)} for index in (0, 1)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=os.environ | flag | seat, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for seat in seats
    ]  # fmt: skip
    said = [process.communicate(timeout=240) for process in running]
    return [(process.returncode, *each) for process, each in zip(running, said, strict=True)]


@pytest.mark.slow
def test_two_processes_place_rows_that_lie_apart():
    ended = two_processes(INTERLEAVED, 2)
    for (code, out, err), expected in zip(ended, ("0 [0, 1, 4, 5]", "1 [2, 3, 6, 7]"), strict=True):
        assert code == 0 and expected in out.replace("np.int64(", "").replace(")", ""), err


CONNECTED = """
import jax
from jax.sharding import AxisType
from bertjax.parallel import batches
from bertjax.parallel.multihost import initialize

initialize.initialize_distributed()
mesh = jax.make_mesh((2, 1, 4), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
initialize.warm_up_collectives(mesh)
print("connected", jax.process_index(), flush=True)
"""


@pytest.mark.slow
def test_every_group_of_the_mesh_is_connected():
    """Two processes of four devices: groups along each axis and over both, within a process and across."""
    for index, (code, out, err) in enumerate(two_processes(CONNECTED, 4)):
        assert code == 0 and f"connected {index}" in out, err
