"""Several processes: joining the cluster, who is the lead, and which rows of a global batch are ours."""

import os

import jax
import numpy as np
from jax.sharding import NamedSharding

from bertjax.errors import UserError


def start() -> None:
    """Join the other processes of the job, if there are any; call before anything touches a device.

    Explicit: BERTJAX_COORDINATOR=host:port, BERTJAX_NUM_PROCESSES and BERTJAX_PROCESS_ID. Detected by jax: a SLURM step
    of several tasks, and TPU pods. Raises UserError when only part of the explicit settings is there.
    """
    names = ("BERTJAX_COORDINATOR", "BERTJAX_NUM_PROCESSES", "BERTJAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    patience = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 10}
    if any(given):
        if not all(given):
            raise UserError(f"environment: set all of {', '.join(names)} or none of them")
        try:
            count, index = int(given[1] or ""), int(given[2] or "")
        except ValueError:
            raise UserError(f"environment: {names[1]} and {names[2]} must be numbers") from None
        jax.distributed.initialize(given[0], count, index, **patience)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize(**patience)


def is_lead() -> bool:
    return jax.process_index() == 0


def local_rows(sharding: NamedSharding, batch_size: int) -> slice:
    """The rows of a global batch that this process's devices hold; raises UserError when they do not divide."""
    shards = sharding.num_devices // max(1, int(np.prod([sharding.mesh.shape[a] for a in _unused(sharding)])))
    if batch_size % shards:
        raise UserError(f"batch_size: {batch_size} rows do not divide over {shards} devices; use a multiple of {shards}")
    spans = [index[0].indices(batch_size) for index in sharding.addressable_devices_indices_map((batch_size,)).values()]
    return slice(min(span[0] for span in spans), max(span[1] for span in spans))


def _unused(sharding: NamedSharding) -> list[str]:
    first = sharding.spec[0]
    used = (first,) if isinstance(first, str) else first or ()
    return [axis for axis in sharding.mesh.axis_names if axis not in used]


def place(batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """Our rows [b, ...] of a global batch as global arrays [B, ...] on the devices."""
    make = jax.make_array_from_process_local_data
    return {name: make(sharding, x, (batch_size, *x.shape[1:])) for name, x in batch.items()}
