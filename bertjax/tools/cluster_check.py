"""`bertjax doctor --cluster`: compare the processes of a job, and test communication between their devices."""

import json
import socket
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.parallel.mesh import count_slices
from bertjax.parallel.multihost import rendezvous
from bertjax.parallel.multihost.primary import reduce_on_primary
from bertjax.training import consistency

Check = tuple[str, str, str | None]  # label, finding, and the remedy of a problem
ALL_REDUCE_BYTES = {"cpu": 4 << 20}  # per device, of the measured all-reduce
DEFAULT_BYTES = 64 << 20
REPEATS = 5


def check_cluster(problems: Sequence[str]) -> list[Check]:
    """The findings of all processes, the same on each. problems: lines of failed checks of this process.

    Every process calls it. Raises JaxRuntimeError when another process has ended.
    """
    mine = {
        "host": socket.gethostname(),
        "devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        "facts": consistency.code_versions(),
        "problems": list(problems),
        "sum": sum_over_devices(),
        "bytes_per_second": all_reduce_bandwidth(),
    }
    reports = reduce_on_primary(json.dumps(mine), lambda messages: [json.loads(each) for each in messages])
    return list(_findings(reports))


def _findings(reports: Sequence[dict[str, Any]]) -> Iterator[Check]:
    hosts = list(dict.fromkeys(report["host"] for report in reports))
    shown = ", ".join(hosts[:6]) + (f" and {len(hosts) - 6} more" if len(hosts) > 6 else "")
    yield "processes", f"{len(reports)} on {len(hosts)} host{'s' * (len(hosts) > 1)}: {shown}", None
    yield _compare("devices of each", [report["devices"] for report in reports], "give every process the same devices")
    slices = count_slices(jax.devices())
    yield "slices", f"{slices}: mesh.dcn={slices}, or -1 for as many as there are" if slices > 1 else "1", None
    for what in sorted({name for report in reports for name in report["facts"]}):
        values = [report["facts"].get(what, "missing") for report in reports]
        if len(set(values)) > 1:
            yield _compare(what.removeprefix("the "), values, "install the same version on every host")
    if len({json.dumps(report["facts"], sort_keys=True) for report in reports}) == 1:
        yield "versions", "the same everywhere", None
    count = jax.device_count()
    right = count * (count + 1) / 2
    wrong = [index for index, report in enumerate(reports) if report["sum"] != right]
    remedy = "check the network between the hosts, and their drivers" if wrong else None
    finding = f"wrong on process {rendezvous.format_ranges(wrong)}" if wrong else f"right over {count} devices"
    yield "sum over all", finding, remedy
    rates = [report["bytes_per_second"] for report in reports if report["bytes_per_second"]]
    if rates:
        yield "all-reduce", f"{min(rates) / 1e9:.2f} GB/s per device, in a ring of {count}", None
    for index, report in enumerate(reports):
        for problem in report["problems"]:
            yield f"process {index}", f"{report['host']}: {problem}", "fix this on that host"


def _compare(label: str, values: Sequence[str], remedy: str) -> Check:
    """One value for all processes, or the processes of each value."""
    who = {value: [i for i, other in enumerate(values) if other == value] for value in dict.fromkeys(values)}
    if len(who) == 1:
        return label, values[0], None
    found = [f"{value} on process {rendezvous.format_ranges(those)}" for value, those in who.items()]
    return label, "; ".join(found), remedy


def _ring() -> Mesh:
    return Mesh(np.asarray(jax.devices()), ("all",), axis_types=(AxisType.Auto,))


def sum_over_devices() -> float:
    """Sum 1 + 2 + ... + N over N devices, one number per device."""
    mesh = _ring()
    sharding, numbers = NamedSharding(mesh, P("all")), np.arange(1, mesh.size + 1, dtype=np.float32)
    placed = jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])
    return float(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))(placed))


def all_reduce_bandwidth() -> float | None:
    """Bytes/s that each device sends in an all-reduce, by the ring formula 2 (N - 1) / N; None for one device.

    The best of several runs; every process calls it. This is the bus bandwidth of nccl-tests.
    """
    mesh = _ring()
    if mesh.size == 1:
        return None
    size = ALL_REDUCE_BYTES.get(mesh.devices.flat[0].platform, DEFAULT_BYTES)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("all"), out_specs=P("all"))
    def reduce(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, "all") * jnp.ones_like(x)

    shape = (mesh.size, size // 4)
    make = jax.jit(lambda: jnp.ones(shape, jnp.float32), out_shardings=NamedSharding(mesh, P("all")))
    x, best = make(), float("inf")
    for attempt in range(REPEATS + 1):
        began = time.perf_counter()
        jax.block_until_ready(reduce(x))
        if attempt:  # the first one compiles
            best = min(best, time.perf_counter() - began)
    return 2 * (mesh.size - 1) / mesh.size * size / best
