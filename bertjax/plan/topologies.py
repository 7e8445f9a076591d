"""Devices that are not attached, by name: v5e:16x16, v5p-128, h200:2x8, cpu:8. Only `devices` imports jax.

A TPU slice is named by the shape of its torus, or by its Cloud TPU type, whose number counts cores for v3, v4 and v5p
and chips for v5e and v6e. GPUs are named by hosts x GPUs per host.
"""

import importlib.util
import os
import re
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from bertjax.config.schema.run import Config
from bertjax.errors import UserError
from bertjax.parallel.hardware import CHIPS_BY_NAME, Chip

EXAMPLES = "v5e:16x16, v5p:4x4x8, v5litepod-256, h100:8, h200:2x8 or cpu:8"
_SHAPE = re.compile(r"([a-z]\w*):(\d+(?:x\d+)*)$")
_TYPE = re.compile(r"(v\d+\w*)-(\d+)$")
# Shapes of Cloud TPU types by number of chips (cloud.google.com/tpu/docs).
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_V3 = {4: "2x2", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16", 512: "16x32", 1024: "32x32"}
_BLOCKS = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"}  # smaller than a cube of 4x4x4 chips
_MAX_CUBES = {"v4": 64, "v5p": 96}  # cubes of one slice


def _cube_shape(count: int) -> str:
    """The shape of so many cubes with the smallest sum of sides, as in the tables of xpk and GKE."""
    found = [
        (a, b, count // (a * b)) for a in range(1, count + 1) if count % a == 0
        for b in range(a, count // a + 1) if count // a % b == 0 and b <= count // (a * b)
    ]  # fmt: skip
    return "x".join(str(4 * side) for side in min(found, key=sum))


_CUBES = {kind: _BLOCKS | {64 * n: _cube_shape(n) for n in range(1, most + 1)} for kind, most in _MAX_CUBES.items()}
_TYPES = {"v3": (_V3, 2), "v4": (_CUBES["v4"], 2), "v5p": (_CUBES["v5p"], 2), "v5e": (_FLAT, 1), "v6e": (_FLAT, 1)}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}
# What XLA compiles for, in its protobuf text form; numbers from openxla/xla, xla/backends/gpu/target_config/specs.
# Without versions of CUDA it leaves out what needs a newer one, such as products of eight-bit floats.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: {cores}
  fpus_per_core: {fpus} shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {block} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 clock_rate_ghz: {clock}
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: {cache} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }} device_description_str: "NVIDIA {name}"
"""
_HOPPER = {"cores": 132, "fpus": 128, "shared": 233472, "block": 232448, "clock": 1.98, "cache": 52428800, "major": 9}
_GPUS: dict[str, dict[str, float]] = {
    "a100": {"cores": 108, "fpus": 64, "shared": 167936, "block": 166912, "clock": 1.41, "cache": 41943040, "major": 8},
    "h100": _HOPPER,
    "h200": _HOPPER,
    "b200": _HOPPER | {"cores": 148, "clock": 1.965, "cache": 132644864, "major": 10},
}


@dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    name: str  # as the user wrote it
    kind: str  # v3, v4, v5e, v5p, v6e, a100, h100, h200, b200 or cpu
    shape: tuple[int, ...]  # chips along each torus dimension; (hosts, GPUs per host); (devices,) for a CPU
    slices: int = 1  # of a TPU (`mesh.dcn`), connected by the data center network

    @property
    def platform(self) -> str:
        return "cpu" if self.kind == "cpu" else "gpu" if self.kind in _GPUS else "tpu"

    @property
    def chip(self) -> Chip | None:
        return CHIPS_BY_NAME.get(self.kind)

    @property
    def size(self) -> int:
        return self.slices * prod(self.shape) * (2 if self.kind == "v3" else 1)


def parse(name: str, slices: int = 1) -> Topology:
    """Parse the name of one of `slices` TPU slices (-1: one), or of all GPUs or CPU devices.

    Raises UserError for an invalid name.
    """
    wanted = name.strip().lower()
    if found := _TYPE.match(wanted):
        wanted = _type_to_shape(name, _ALIASES.get(found[1], found[1]), int(found[2]))
    if not (found := _SHAPE.match(wanted)):
        raise UserError(f"--topology: {name[:80]!a} is not a topology; write {EXAMPLES}")
    kind, shape = _ALIASES.get(found[1], found[1]), tuple(map(int, found[2].split("x")))
    if kind != "cpu" and kind not in CHIPS_BY_NAME:
        raise UserError(f"--topology: no chip '{found[1][:20]}'; known: {', '.join(sorted(CHIPS_BY_NAME))}, cpu")
    topology = Topology(name, kind, (1, *shape) if kind in _GPUS and len(shape) == 1 else shape)
    wide = {"cpu": 1, "gpu": 2}.get(topology.platform) or CHIPS_BY_NAME[kind].torus
    if len(topology.shape) != wide or not 1 <= topology.size <= 65536:
        torus = f"{kind}:{'x'.join('4' * wide)}"
        form = {"cpu": "cpu:8", "gpu": f"{kind}:8 or {kind}:2x8"}.get(topology.platform, torus)
        raise UserError(f"--topology: {name[:80]!a}: write {kind} like {form}")
    return replace(topology, slices=max(1, slices)) if topology.platform == "tpu" else topology


def count_slices(config: Config, topology: Topology) -> Config:
    """The configuration with the number of slices that `mesh.dcn: -1` counts: hosts of GPUs, one TPU slice, one CPU."""
    if config.mesh.dcn != -1:
        return config
    found = topology.shape[0] if topology.platform == "gpu" else topology.slices
    return config.model_copy(update={"mesh": config.mesh.model_copy(update={"dcn": found})})


def _type_to_shape(name: str, kind: str, number: int) -> str:
    if kind not in _TYPES:
        raise UserError(f"--topology: {name[:80]!a} is not a known Cloud TPU type; write {EXAMPLES}")
    shapes, cores = _TYPES[kind]
    if number % cores or number // cores not in shapes:
        sizes = ", ".join(str(chips * cores) for chips in shapes if kind not in _MAX_CUBES or chips <= 64)
        sizes += f" and multiples of 128 up to {128 * _MAX_CUBES[kind]}" if kind in _MAX_CUBES else ""
        raise UserError(f"--topology: {name[:80]!a}: {kind} comes in {sizes}; or give its shape, {kind}:AxB")
    return f"{kind}:{shapes[number // cores]}"


def check_installed(topology: Topology) -> None:
    """Raises UserError when the compiler for these devices is not installed."""
    gpu = topology.platform == "gpu"
    names = ("jax_cuda13_plugin", "jax_cuda12_plugin") if gpu else ("libtpu",)
    if topology.platform != "cpu" and not any(importlib.util.find_spec(name) for name in names):
        wanted = "'jax[cuda13]'" if gpu else "libtpu"
        raise UserError(f"--topology {topology.name}: its compiler is not installed; pip install {wanted}")


def compiler_env(topology: Topology) -> dict[str, str]:
    """Environment variables for jax and the compilers: arrays on the CPU, no search for a TPU."""
    found = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if topology.platform == "tpu":
        found["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # or a second plan would wait for the lock of the chips
        found |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    if topology.platform == "cpu":
        ours = f"--xla_force_host_platform_device_count={topology.size}"
        others = [f for f in os.environ.get("XLA_FLAGS", "").split() if "force_host_platform_device_count" not in f]
        found["XLA_FLAGS"] = " ".join([*others, ours])
    return found


def devices(topology: Topology) -> list[Any]:
    """The devices, in jax's order, to compile for. The process must have been started with `compiler_env`.

    Raises UserError for a shape unknown to the compiler.
    """
    import jax
    from jax.experimental import topologies

    if topology.platform == "cpu":
        here = jax.devices("cpu")
        if len(here) < topology.size:
            raise UserError(f"--topology {topology.name}: this process has {len(here)} CPU devices")
        return here[: topology.size]
    try:
        if topology.platform == "gpu":
            chip, (hosts, each) = CHIPS_BY_NAME[topology.kind], topology.shape
            target = _GPU.format(
                name=topology.kind.upper(), bandwidth=chip.memory_bandwidth, memory=chip.memory, **_GPUS[topology.kind]
            )
            shape = f"1x{hosts}x{each}"
            found = topologies.get_topology_desc(topology.kind, "cuda", target_config=target, topology=shape)
            return list(found.devices)
        # The compiler knows only full hosts; a single chip is one of them.
        shape = topology.kind + ":" + ("2x2" if topology.shape == (1, 1) else "x".join(map(str, topology.shape)))
        more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
        if topology.kind == "v4":  # one device per chip of two cores, as on real machines
            more["chip_config_name"] = "megacore"
        return list(topologies.get_topology_desc(shape, "tpu", **more).devices)[: topology.size]
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--topology {topology.name}: the compiler does not know it ({reason})") from None
