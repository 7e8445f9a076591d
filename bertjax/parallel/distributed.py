"""Several processes: joining the cluster, who is the lead, and which rows of a global batch are ours."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from bertjax.errors import BertjaxError, StoppedSafely, UserError


def start() -> None:
    """Join the other processes of the job, if there are any; call before anything touches a device.

    Explicit: BERTJAX_COORDINATOR=host:port, BERTJAX_NUM_PROCESSES and BERTJAX_PROCESS_ID. Detected by jax: a SLURM step
    of several tasks, and TPU pods. Raises UserError when only part of the explicit settings is there.
    """
    names = ("BERTJAX_COORDINATOR", "BERTJAX_NUM_PROCESSES", "BERTJAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    patience: dict[str, Any] = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 10}
    if any(given):
        if not all(given):
            raise UserError(f"environment: set all of {', '.join(names)} or none of them")
        try:
            count, index = int(given[1] or ""), int(given[2] or "")
        except ValueError:
            raise UserError(f"environment: {names[1]} and {names[2]} must be numbers") from None
        if not 0 <= index < count:
            raise UserError(f"environment: {names[2]} is {index}; it counts from 0 to {names[1]} - 1 = {count - 1}")
        jax.distributed.initialize(given[0], count, index, **patience)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize(**patience)


@contextmanager
def fail_together() -> Iterator[None]:
    """Inside a run of several processes: leave at once when another one is gone, or when a bug ends this one.

    The ordinary way out waits for the others, in barriers they will not reach. Our own errors are raised on all
    processes alike and take the ordinary way.
    """
    try:
        yield
    except BertjaxError:
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        text = " ".join(str(error).split())
        gone = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text
        if gone:
            print(f"another process is gone ({text[:160]}); run the same command again", file=sys.stderr)
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(StoppedSafely.exit_code if gone else BertjaxError.exit_code)


def is_lead() -> bool:
    return jax.process_index() == 0


def local_rows(sharding: NamedSharding, batch_size: int) -> slice | np.ndarray:
    """The rows of a global batch that this process's devices hold, in order: a slice, or int [b] when they lie apart.

    They lie apart where a host's chips are a block of the torus and the mesh runs along its rings. Raises UserError
    when the batch does not divide.
    """
    shards = sharding.num_devices // max(1, int(np.prod([sharding.mesh.shape[a] for a in _unused(sharding)])))
    if batch_size % shards:
        raise UserError(f"batch_size: {batch_size} rows do not divide over {shards} devices; make it a multiple")
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def _unused(sharding: NamedSharding) -> list[str]:
    first = sharding.spec[0]
    used = (first,) if isinstance(first, str) else first or ()
    return [axis for axis in sharding.mesh.axis_names if axis not in used]


def place(batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """Our rows [b, ...] of a global batch as global arrays [B, ...] on the devices."""
    make = jax.make_array_from_process_local_data
    return {name: make(sharding, x, (batch_size, *x.shape[1:])) for name, x in batch.items()}
