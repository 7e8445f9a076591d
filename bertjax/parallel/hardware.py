"""Data-sheet figures of devices, for MFU and `bertjax plan`; without jax. Sources, by letter:
G  Google Cloud's pages "TPU v3", "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs)
S  "How to Scale Your Model", chapter "How to Think About TPUs" (jax-ml.github.io/scaling-book/tpus): ICI bytes/s of a
   link in one direction, DCN bytes/s of a chip, and where a dimension of the torus closes into a ring
N  NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 and B200: NVLink is given there for both directions together
X  XLA's descriptions of these GPUs (openxla/xla, xla/backends/gpu/target_config/specs): memory and its bandwidth
D  NVIDIA's data sheets of DGX A100 (8 x 200 Gb/s), DGX H100, H200 and B200 (8 x 400 Gb/s): network of a host
"""

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A JAX device; bandwidths in bytes/s, in one direction. None: not published, or no target of `bertjax plan`."""

    name: str  # in `bertjax plan --topology`; "" for kinds with MFU only
    device_kinds: str  # pattern of `jax.Device.device_kind`
    flops: float  # dense 16-bit matrix peak in FLOP/s, never the "with sparsity" figure
    memory: int | None = None  # bytes
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None  # of one ICI link of a TPU, of all NVLinks of a GPU together
    torus: int = 0  # dimensions; 0: a switch, where all devices of a host reach each other at `link_bandwidth`
    ring_multiple: int = 1  # a dimension of the torus whose extent is a multiple of this one closes into a ring
    devices_per_host: int = 8  # that share the network card of a host
    network_bandwidth: float | None = None  # between hosts (GPU) or slices (TPU), of one host


# The first pattern that matches decides. A device of TPU v2 and v3 is a core, half a chip: 180 and 492 TFLOP/s (G) for
# a board of eight cores; the two cores of a chip share its links. T4 and V100 have no bf16 units: theirs is fp16.
CHIPS: tuple[Chip, ...] = (
    Chip("", r"TPU v2\b", 22.5e12),
    Chip(
        "v3", r"TPU v3\b", 61.5e12,  # G: 123 TFLOP/s a chip
        memory=16 * GIB, memory_bandwidth=450e9,  # G: 32 GiB and 900 GB/s a chip
        link_bandwidth=50e9, torus=2, ring_multiple=32,  # S: 100 GB/s a chip's link
    ),
    Chip(
        "v4", r"TPU v4\b(?! lite)", 275e12,  # G
        memory=32 * GIB, memory_bandwidth=1200e9,  # G
        link_bandwidth=45e9, torus=3, ring_multiple=4,  # S
        devices_per_host=4, network_bandwidth=25e9,  # S: 6.25 GB/s a chip; G: 4 chips a host
    ),
    Chip(
        "v5e", r"TPU v5 ?(lite|e)\b", 197e12,  # G
        memory=16 * GIB, memory_bandwidth=819e9,  # G
        link_bandwidth=45e9, torus=2, ring_multiple=16,  # S (G: 400 GB/s a chip, four links, both directions)
        devices_per_host=8, network_bandwidth=25e9,  # G: 2 x 100 Gb/s a host of 8 chips
    ),
    Chip(
        "v5p", r"TPU v5p?\b", 459e12,  # G
        memory=95 * GIB, memory_bandwidth=2765e9,  # G
        link_bandwidth=90e9, torus=3, ring_multiple=4,  # S (G: 1200 GB/s a chip, six links, both directions)
        devices_per_host=4, network_bandwidth=25e9,  # G: 50 Gb/s a chip, 4 chips a host
    ),
    Chip(
        "v6e", r"TPU v6 ?(lite|e)\b", 918e12,  # G
        memory=32 * GIB, memory_bandwidth=1638e9,  # G
        link_bandwidth=90e9, torus=2, ring_multiple=16,  # S (G: 800 GB/s a chip, four links, both directions)
        devices_per_host=8, network_bandwidth=100e9,  # S: 12.5 GB/s a chip; G: 8 chips a host
    ),
    Chip("", r"\bGB200\b", 2500e12),
    Chip(
        "b200", r"\bB200\b", 2250e12,  # N
        memory=191_514_411_008, memory_bandwidth=7.67e12,  # X
        link_bandwidth=900e9, network_bandwidth=400e9,  # N: 1.8 TB/s; D
    ),
    Chip("", r"\b(H200|H100) NVL\b", 835e12),
    Chip("", r"\bH100 PCIe\b", 756e12),
    Chip(
        "h200", r"\bG?H200\b", 989e12,  # N
        memory=151_397_597_184, memory_bandwidth=4.8e12,  # X
        link_bandwidth=450e9, network_bandwidth=400e9,  # N: 900 GB/s; D
    ),
    Chip(
        "h100", r"\bH100\b", 989e12,  # N
        memory=84_942_979_072, memory_bandwidth=3.35e12,  # X
        link_bandwidth=450e9, network_bandwidth=400e9,  # N: 900 GB/s; D
    ),
    Chip(
        "a100", r"\bA100\b", 312e12,  # N
        memory=85_100_068_864, memory_bandwidth=2.04e12,  # X, the 80 GB model
        link_bandwidth=300e9, network_bandwidth=200e9,  # N: 600 GB/s; D
    ),
    Chip("", r"\bV100-PCIE\b", 112e12),
    Chip("", r"\bV100\b", 125e12),
    Chip("", r"\bL4\b", 121e12),
    Chip("", r"\bT4\b", 65e12),
)  # fmt: skip
CHIPS_BY_NAME = {chip.name: chip for chip in CHIPS if chip.name}


def find_chip(device_kind: str) -> Chip | None:
    """The chip with this `jax.Device.device_kind`; None for a CPU or an unknown chip.

    A slice of a GPU ("... MIG 3g.71gb") is unknown: the data sheet is about the full chip.
    """
    if re.search(r"\bMIG\b", device_kind):
        return None
    return next((chip for chip in CHIPS if re.search(chip.device_kinds, device_kind, re.IGNORECASE)), None)


def peak_flops(device_kind: str) -> float | None:
    """The dense bf16 peak in FLOP/s of a device with this `jax.Device.device_kind`; None for a CPU or unknown chip."""
    chip = find_chip(device_kind)
    return None if chip is None else chip.flops


def utilization(flops: float, seconds: float, device_kind: str, devices: int) -> float | None:
    """MFU: `flops` of `devices` devices in `seconds` as a fraction of their peak; None if that is unknown."""
    peak = peak_flops(device_kind)
    return flops / (seconds * devices * peak) if peak is not None and seconds > 0 else None
