"""Several processes: joining the cluster, who is the lead, and which rows of a global batch are ours."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.errors import BertjaxError, UserError
from bertjax.parallel import aborts, lifelines, rollcall
from bertjax.parallel.mesh_shape import batch_shards

NAMES = ("BERTJAX_COORDINATOR", "BERTJAX_NUM_PROCESSES", "BERTJAX_PROCESS_ID")
TIMEOUT = "BERTJAX_START_TIMEOUT"
# A lost process is noticed by its connections at once, or by its silence after this many seconds; jax's own 100 and 300
# are for jobs that may wait.
PATIENCE: dict[str, Any] = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 10}


@dataclass(frozen=True)
class Seat:
    """The place of this process in a job of several."""

    address: str  # host:port of process 0
    count: int
    index: int
    devices: list[int] | None = None  # of this host; None: all of them


def start() -> None:
    """Join the other processes of the job, if there are any; call before anything touches a device.

    Explicit: BERTJAX_COORDINATOR=host:port, BERTJAX_NUM_PROCESSES and BERTJAX_PROCESS_ID. Otherwise detected by jax's
    own rules: Open MPI, a SLURM step of several tasks, TPU pods of GKE and of GCE. A second call does nothing.

    Raises UserError when the settings are no use, StoppedSafely naming the missing processes when some have not come
    within BERTJAX_START_TIMEOUT seconds (300).
    """
    if jax.distributed.is_initialized():
        return
    limit = start_timeout()
    seat = explicit_seat() or detected_seat(limit)
    if seat is None:
        return
    lifelines.watch(rollcall.meet(seat.address, seat.count, seat.index, limit), aborts.leave)
    aborts.leave_when_the_service_is_gone()
    jax.distributed.initialize(
        seat.address,
        seat.count,
        seat.index,
        seat.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=max(10, int(limit)),
        **PATIENCE,
    )


def start_timeout() -> float:
    """Seconds that the processes of a job have to come together."""
    text = os.environ.get(TIMEOUT, "300")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"environment: {TIMEOUT} is '{text[:40]}'; it must be a number of seconds above zero")
    return seconds


def explicit_seat() -> Seat | None:
    """What the environment says. Raises UserError when only part of it is there, or no use."""
    given = [os.environ.get(name) for name in NAMES]
    if not any(given):
        return None
    if not all(given):
        raise UserError(f"environment: set all of {', '.join(NAMES)} or none of them")
    try:
        count, index = int(given[1] or ""), int(given[2] or "")
    except ValueError:
        raise UserError(f"environment: {NAMES[1]} and {NAMES[2]} must be numbers") from None
    if not 0 <= index < count:
        raise UserError(f"environment: {NAMES[2]} is {index}; it counts from 0 to {NAMES[1]} - 1 = {count - 1}")
    return Seat(given[0] or "", count, index)


def detected_seat(limit: float) -> Seat | None:
    """What jax's detectors find; None for a single process, whatever it runs under.

    Raises UserError when a cluster is there and cannot be read.
    """
    from jax._src import clusters

    kinds: list[Any] = [clusters.OmpiCluster, clusters.SlurmCluster]
    if os.environ.get("JAX_PLATFORMS") != "cpu":  # or a CPU run on a TPU host would wait for the whole pod
        kinds += [clusters.GkeTpuCluster, clusters.GceTpuCluster]
    for kind in kinds:
        try:
            if not kind.is_env_present() or kind.get_process_count() < 2 or _is_batch_script(kind):
                continue
            unset = (None, None, None, None)
            found = clusters.ClusterEnv.auto_detect_unset_distributed_params(*unset, kind.name, int(limit))
        except Exception as error:  # environment variables and a metadata server: anything can be wrong with them
            text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise UserError(
                f"the {kind.name} cluster cannot be read ({text}); set {', '.join(NAMES)} instead"
            ) from error
        address, count, index, devices = found
        return Seat(str(address), int(count or 1), int(index or 0), None if devices is None else list(devices))
    return None


def _is_batch_script(kind: Any) -> bool:
    """A SLURM job's script runs once, whatever the number of tasks it asked for: only a step has several processes."""
    return kind.name == "slurm" and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2


def connect(mesh: Mesh) -> None:
    """Opens the connections between the devices of every group that a program on this mesh may sum over.

    To be called when all processes have just met. Gloo gives the others 30 seconds to come to a first sum; later, one
    process may compile for longer than that. A job of one process, and TPUs, have nothing to open.
    """
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    if jax.process_count() == 1 or not axes or mesh.devices.flat[0].platform == "tpu":
        return
    groups = [group for size in range(1, len(axes) + 1) for group in combinations(axes, size)]

    def sums() -> jax.Array:
        mine = jax.lax.axis_index(tuple(axes)).astype(np.float32)  # not the same everywhere, or nothing need be sent
        return jax.lax.psum(sum(jax.lax.psum(mine, group) for group in groups), tuple(axes))

    jax.block_until_ready(jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=(), out_specs=P(), check_vma=False))())


# Status codes that a lost process never causes: the same program would fail again.
_OURS = ("INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE")


@contextmanager
def fail_together() -> Iterator[None]:
    """Inside a run of several processes: leave at once when another one is gone, or when a bug ends this one.

    The ordinary way out waits for the others, in barriers they will not reach. Our own errors are raised on all
    processes alike and take the ordinary way.
    """
    try:
        yield
        lifelines.rest()
    except BertjaxError:
        lifelines.rest()
        raise
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        text = " ".join(str(error).split())
        if isinstance(error, jax.errors.JaxRuntimeError) and not text.startswith(_OURS):
            aborts.leave(text[:160])
        traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(BertjaxError.exit_code)


def is_lead() -> bool:
    return jax.process_index() == 0


def local_rows(sharding: NamedSharding, batch_size: int) -> slice | np.ndarray:
    """The rows of a global batch that this process's devices hold, in order: a slice, or int [b] when they lie apart.

    They lie apart where a host's chips are a block of the torus and the mesh runs along its rings. Raises UserError
    when the batch does not divide.
    """
    shards = batch_shards(sharding.mesh.shape, sharding.spec[0])
    if batch_size % shards:
        raise UserError(f"batch_size: {batch_size} rows do not divide over {shards} devices; make it a multiple")
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def place(batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """Our rows [b, ...] of a global batch as global arrays [B, ...] on the devices."""
    make = jax.make_array_from_process_local_data
    return {name: make(sharding, x, (batch_size, *x.shape[1:])) for name, x in batch.items()}
