"""The device mesh: slices (or hosts) outermost, devices of each laid out along its links."""

import os
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jax.sharding import Mesh as JaxMesh

from bertjax.config.schema.run import MeshConfig
from bertjax.errors import UserError
from bertjax.parallel.mesh_shape import AXES, axis_sizes

_DEVICE_OPTIONS = {"cuda": "--device gpu", "tpu": "--device tpu", "cpu": "--device cpu"}  # by JAX_PLATFORMS
_INSTALL = {
    "cuda": "install NVIDIA's driver and pip install 'bertjax[cuda13]' (or cuda12)",
    "tpu": "on a TPU VM pip install 'bertjax[tpu]'",
}


def all_devices() -> list[jax.Device]:
    """jax's devices of all processes. Raises UserError if there are none of the requested kind."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax has no error of its own for it
        raise UserError(_no_device(os.environ.get("JAX_PLATFORMS", ""), error)) from error


def _no_device(platforms: str, error: Exception) -> str:
    variable = f"JAX_PLATFORMS={platforms}"
    asked = f"{_DEVICE_OPTIONS[platforms]} ({variable})" if platforms in _DEVICE_OPTIONS else variable
    first = " ".join(str(error).split("(set JAX_PLATFORMS")[0].split())[:160]
    reason = f" ({first})" if first else ""
    remedy = _INSTALL.get(platforms.split(",")[0], "install jax's support for it")
    # Several processes would wait for each other.
    present = "" if jax.distributed.is_initialized() else f"this machine has {_available_devices()}; "
    return f"{asked}: jax finds no such device{reason}; {present}{remedy}, or choose another --device"


def _available_devices() -> str:
    try:
        jax.config.update("jax_platforms", None)
        found = Counter(device.device_kind for device in jax.devices())
    except (RuntimeError, AssertionError):
        return "none at all"
    return ", ".join(f"{count} x {kind}" for kind, count in found.items())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> JaxMesh:
    """A mesh with axes (dcn, data, fsdp, tensor) over all devices; `dcn` is 1 unless the configuration has slices.

    Raises UserError if the product of the sizes, or the number of slices, does not match the devices.
    """
    devices = all_devices() if devices is None else list(devices)
    slices, *shape = axis_sizes(config, len(devices), count_slices(devices)).values()
    grid = np.stack([arrange_devices(part, tuple(shape)) for part in group_by_slice(devices, slices)])
    return JaxMesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def count_slices(devices: Sequence[jax.Device]) -> int:
    """How many slices the devices form, for `mesh.dcn: -1`: groups with a slow network between them.

    TPUs: slices. GPUs: hosts, or NVLink domains of several hosts, as jax numbers them. CPUs: processes, so that a
    rehearsal on one machine has as many slices as processes.
    """
    indices = {getattr(device, "slice_index", None) for device in devices}
    if devices[0].platform == "cpu" or (None in indices and devices[0].platform != "tpu"):
        return len({device.process_index for device in devices})
    return len(indices)


def group_by_slice(devices: Sequence[jax.Device], count: int) -> list[list[jax.Device]]:
    """The devices in `count` equal groups with fast links inside: TPU slices or groups of GPU hosts.

    CPU devices of one process are divided into equal runs, for tests. Raises UserError.
    """
    devices = list(devices)
    found = _group_by_index(devices)
    platform = devices[0].platform
    if platform == "tpu" and len(found) != count:
        raise UserError(f"mesh.dcn: these TPU devices form {len(found)} slices, not {count}; set it to {len(found)}")
    if count == 1:
        return [[device for part in found for device in part]]
    if len(found) == 1 and platform == "cpu":
        size = len(devices) // count
        return [devices[i * size : (i + 1) * size] for i in range(count)]
    if len(found) % count or len({len(part) for part in found}) > 1:
        held = ", ".join(str(len(part)) for part in found[:8])
        raise UserError(f"mesh.dcn: {count} does not part {len(found)} hosts with {held} devices into equal groups")
    each = len(found) // count
    return [[d for part in found[i * each : (i + 1) * each] for d in part] for i in range(count)]


def _group_by_index(devices: list[jax.Device]) -> list[list[jax.Device]]:
    """By `slice_index` (TPU slices, NVLink domains); by process if no device has one or all have the same."""
    indices = {getattr(device, "slice_index", None) for device in devices}
    by_process = len(indices) == 1 and devices[0].platform != "tpu"
    parts: dict[int, list[jax.Device]] = {}
    for device in devices:
        parts.setdefault(device.process_index if by_process else getattr(device, "slice_index", 0), []).append(device)
    return [parts[key] for key in sorted(parts)]


def arrange_devices(devices: Sequence[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """A slice's devices as an array of this shape, whose axes follow the torus of a TPU where possible."""
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    try:
        v5e = devices[0].device_kind in ("TPU v5 lite", "TPU v5e")  # whose axes jax.make_mesh splits at once
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=v5e)
    except NotImplementedError:  # no product of torus axes has these sizes
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
