"""What one device of a kind can do, by the makers' data sheets: the one table behind MFU and `bertjax plan`.

No jax here. Sources, by letter:
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
    """One JAX device. What is None is not published, or the kind is not planned for.

    Attributes:
        name: as `bertjax plan --topology` says it; "" for kinds that are only measured.
        kinds: pattern of `jax.Device.device_kind`.
        flops: dense 16-bit matrix peak in FLOP/s, never the "with sparsity" figure.
        memory: bytes.
        bandwidth: of that memory, bytes/s.
        link: bytes/s in one direction, of one ICI link of a TPU, of all NVLinks of a GPU together.
        torus: dimensions of the torus; 0: a switch, where all devices of a host reach each other at `link`.
        ring: a dimension of the torus whose extent is a multiple of this one closes into a ring.
        host: devices that share the network card of a host.
        network: bytes/s in one direction between hosts (GPU) or slices (TPU), of one host.
    """

    name: str
    kinds: str
    flops: float
    memory: int | None = None
    bandwidth: float | None = None
    link: float | None = None
    torus: int = 0
    ring: int = 1
    host: int = 8
    network: float | None = None


# The first pattern that matches decides. A device of TPU v2 and v3 is a core, half a chip: 180 and 492 TFLOP/s (G) for
# a board of eight cores; the two cores of a chip share its links. T4 and V100 have no bf16 units: theirs is fp16.
CHIPS: tuple[Chip, ...] = (
    Chip("", r"TPU v2\b", 22.5e12),
    Chip(
        "v3", r"TPU v3\b", 61.5e12,  # G: 123 TFLOP/s a chip
        memory=16 * GIB, bandwidth=450e9,  # G: 32 GiB and 900 GB/s a chip
        link=50e9, torus=2, ring=32,  # S: 100 GB/s a chip's link
    ),
    Chip(
        "v4", r"TPU v4\b(?! lite)", 275e12,  # G
        memory=32 * GIB, bandwidth=1200e9,  # G
        link=45e9, torus=3, ring=4,  # S
        host=4, network=25e9,  # S: 6.25 GB/s a chip; G: 4 chips a host
    ),
    Chip(
        "v5e", r"TPU v5 ?(lite|e)\b", 197e12,  # G
        memory=16 * GIB, bandwidth=819e9,  # G
        link=45e9, torus=2, ring=16,  # S (G: 400 GB/s a chip, four links, both directions)
        host=8, network=25e9,  # G: 2 x 100 Gb/s a host of 8 chips
    ),
    Chip(
        "v5p", r"TPU v5p?\b", 459e12,  # G
        memory=95 * GIB, bandwidth=2765e9,  # G
        link=90e9, torus=3, ring=4,  # S (G: 1200 GB/s a chip, six links, both directions)
        host=4, network=25e9,  # G: 50 Gb/s a chip, 4 chips a host
    ),
    Chip(
        "v6e", r"TPU v6 ?(lite|e)\b", 918e12,  # G
        memory=32 * GIB, bandwidth=1638e9,  # G
        link=90e9, torus=2, ring=16,  # S (G: 800 GB/s a chip, four links, both directions)
        host=8, network=100e9,  # S: 12.5 GB/s a chip; G: 8 chips a host
    ),
    Chip("", r"\bGB200\b", 2500e12),
    Chip(
        "b200", r"\bB200\b", 2250e12,  # N
        memory=191_514_411_008, bandwidth=7.67e12,  # X
        link=900e9, network=400e9,  # N: 1.8 TB/s; D
    ),
    Chip("", r"\b(H200|H100) NVL\b", 835e12),
    Chip("", r"\bH100 PCIe\b", 756e12),
    Chip(
        "h200", r"\bG?H200\b", 989e12,  # N
        memory=151_397_597_184, bandwidth=4.8e12,  # X
        link=450e9, network=400e9,  # N: 900 GB/s; D
    ),
    Chip(
        "h100", r"\bH100\b", 989e12,  # N
        memory=84_942_979_072, bandwidth=3.35e12,  # X
        link=450e9, network=400e9,  # N: 900 GB/s; D
    ),
    Chip(
        "a100", r"\bA100\b", 312e12,  # N
        memory=85_100_068_864, bandwidth=2.04e12,  # X, the 80 GB model
        link=300e9, network=200e9,  # N: 600 GB/s; D
    ),
    Chip("", r"\bV100-PCIE\b", 112e12),
    Chip("", r"\bV100\b", 125e12),
    Chip("", r"\bL4\b", 121e12),
    Chip("", r"\bT4\b", 65e12),
)  # fmt: skip
NAMED = {chip.name: chip for chip in CHIPS if chip.name}


def chip_of(device_kind: str) -> Chip | None:
    """The chip with this `jax.Device.device_kind`; None for a CPU or an unknown chip.

    A slice of a GPU ("... MIG 3g.71gb") is unknown as well: the data sheet speaks of the whole chip.
    """
    if re.search(r"\bMIG\b", device_kind):
        return None
    return next((chip for chip in CHIPS if re.search(chip.kinds, device_kind, re.IGNORECASE)), None)
