"""Start of multi-process runs: find the other processes and join them."""

import os
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bertjax.errors import UserError
from bertjax.parallel.multihost import addresses, peer_monitor, rendezvous, sigabrt

ENV_NAMES = ("BERTJAX_COORDINATOR", "BERTJAX_NUM_PROCESSES", "BERTJAX_PROCESS_ID")
ENV_START_TIMEOUT = "BERTJAX_START_TIMEOUT"
# A lost process is detected by its closed connections at once, or by missing heartbeats after this many seconds (jax's
# defaults: 100 and 300).
JAX_TIMEOUTS: dict[str, Any] = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 10}


@dataclass(frozen=True)
class ProcessInfo:
    """The place of this process in a job of several."""

    address: str  # host:port of process 0
    count: int
    index: int
    devices: list[int] | None = None  # of this host; None: all of them


def initialize_distributed() -> None:
    """Join the other processes of the job, if there are any; call before anything touches a device.

    Configured by BERTJAX_COORDINATOR=host:port, BERTJAX_NUM_PROCESSES and BERTJAX_PROCESS_ID, or detected by jax: Open
    MPI, a SLURM step of several tasks, TPU pods of GKE and GCE. Raises UserError for invalid settings, StoppedSafely
    naming the processes that have not joined within BERTJAX_START_TIMEOUT seconds (300).
    """
    if jax.distributed.is_initialized():
        return
    limit = start_timeout()
    info = process_info_from_env() or detect_process_info(limit)
    if info is None:
        return
    peers = rendezvous.wait_for_all(info.address, info.count, info.index, limit)
    peer_monitor.start(peers, info.index, info.count, sigabrt.exit_restartable)
    sigabrt.install_handler()
    options = JAX_TIMEOUTS | {"initialization_timeout": max(10, int(limit)), "cluster_detection_method": "deactivate"}
    if info.index == 0 and (bound := addresses.bind_address(info.address)):  # else jax listens at all addresses
        options["coordinator_bind_address"] = bound
    jax.distributed.initialize(info.address, info.count, info.index, info.devices, **options)


def start_timeout() -> float:
    """Seconds within which the processes of a job must join."""
    text = os.environ.get(ENV_START_TIMEOUT, "300")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"environment: {ENV_START_TIMEOUT} is '{text[:40]}'; it must be a number of seconds above zero")
    return seconds


def process_info_from_env() -> ProcessInfo | None:
    """The environment's settings. Raises UserError if they are incomplete or invalid."""
    given = [os.environ.get(name) for name in ENV_NAMES]
    if not any(given):
        return None
    if not all(given):
        raise UserError(f"environment: set all of {', '.join(ENV_NAMES)} or none of them")
    try:
        count, index = int(given[1] or ""), int(given[2] or "")
    except ValueError:
        raise UserError(f"environment: {ENV_NAMES[1]} and {ENV_NAMES[2]} must be numbers") from None
    if not 0 <= index < count:
        raise UserError(f"environment: {ENV_NAMES[2]} is {index}; it counts from 0 to {ENV_NAMES[1]} - 1 = {count - 1}")
    return ProcessInfo(given[0] or "", count, index)


def detect_process_info(limit: float) -> ProcessInfo | None:
    """What jax detects; None for a single process. Raises UserError for a cluster that cannot be read."""
    from jax._src import clusters

    kinds: list[Any] = [clusters.OmpiCluster, clusters.SlurmCluster]
    if os.environ.get("JAX_PLATFORMS") != "cpu":  # else a CPU run on a TPU host would wait for the pod
        kinds += [clusters.GkeTpuCluster, clusters.GceTpuCluster]
    for kind in kinds:
        try:
            if not kind.is_env_present() or kind.get_process_count() < 2 or _is_batch_script(kind):
                continue
            unset = (None, None, None, None)
            found = clusters.ClusterEnv.auto_detect_unset_distributed_params(*unset, kind.name, int(limit))
        except Exception as error:  # environment variables and a metadata server fail in many ways
            text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            remedy = f"set {', '.join(ENV_NAMES)} instead"
            raise UserError(f"the {kind.name} cluster cannot be read ({text}); {remedy}") from error
        address, count, index, devices = found
        return ProcessInfo(str(address), int(count or 1), int(index or 0), None if devices is None else list(devices))
    return None


def _is_batch_script(kind: Any) -> bool:
    """Whether this is the script of a SLURM job, which runs once; only a step has several processes."""
    return kind.name == "slurm" and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2


def warm_up_collectives(mesh: Mesh) -> None:
    """Open the connections of every group of devices that a program on this mesh may reduce over, except on TPUs.

    Call it when all processes have just joined: Gloo waits 30 seconds for a first reduction, and later one process may
    compile for longer.
    """
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    if jax.process_count() == 1 or not axes or mesh.devices.flat[0].platform == "tpu":
        return
    groups = [group for size in range(1, len(axes) + 1) for group in combinations(axes, size)]

    def sums() -> jax.Array:
        mine = jax.lax.axis_index(tuple(axes)).astype(np.float32)  # different values, else nothing is sent
        return jax.lax.psum(sum(jax.lax.psum(mine, group) for group in groups), tuple(axes))

    jax.block_until_ready(jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=(), out_specs=P(), check_vma=False))())
