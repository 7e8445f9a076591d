"""Roofline estimate of a step: the compiled program on the chip's data sheet. Nothing is measured.

Compute time is matmul FLOPs over peak FLOP/s, memory time is HBM traffic over bandwidth, and a collective takes the
bytes each device receives over the bandwidth of its links:

- In a ring of n devices each receives (n-1)/n of the full array for an all-gather or reduce-scatter, and twice that for
  an all-reduce. A torus dimension that closes into a ring has two links per device, another dimension one; groups that
  span several dimensions use the links of all of them.
- Between slices, or hosts of GPUs, each device has its share of the host's network. The group inside a slice or host
  splits the work first: with m devices inside, each sends 1/m of the array.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertjax.parallel.hardware import Chip
from bertjax.plan.hlo.collectives import Collective

ASSUMPTIONS = "lower bounds from data sheets, without any waiting: real steps take longer, often twice as long"


@dataclass(frozen=True)
class Interconnect:
    """The links between the devices of a mesh, in mesh order."""

    chip: Chip
    devices: Sequence[Any]

    def seconds(self, one: Collective) -> float:
        """Total time of a collective in a step, without overlap."""
        if self.chip.link_bandwidth is None:
            return 0.0
        group = [self.devices[number] for number in one.group]
        parts: dict[int, list[Any]] = {}
        for device in group:
            parts.setdefault(self._part(device), []).append(device)
        inside = next(iter(parts.values()))
        return self._within(one, inside) + self._between(one, len(parts), len(inside))

    def _part(self, device: Any) -> int:
        """The slice (TPU) or host (GPU) of a device, within which links are fast."""
        return (getattr(device, "slice_index", 0) or 0) if self.chip.torus else device.process_index

    def _within(self, one: Collective, group: Sequence[Any]) -> float:
        if len(group) < 2:
            return 0.0
        if self.chip.torus and one.kind == "all-to-all":  # every byte travels a quarter of the ring
            return one.bytes * len(group) / 4 / self._bandwidth(group)
        return one.bytes * transfer_factor(one.kind, len(group)) / self._bandwidth(group)

    def _between(self, one: Collective, parts: int, inside: int) -> float:
        if parts < 2 or self.chip.network_bandwidth is None:
            return 0.0
        bandwidth = self.chip.network_bandwidth / self.chip.devices_per_host
        return one.bytes / inside * transfer_factor(one.kind, parts) / bandwidth

    def _bandwidth(self, group: Sequence[Any]) -> float:
        """Bytes/s that a device of this group can receive."""
        assert self.chip.link_bandwidth is not None
        if not self.chip.torus:
            return self.chip.link_bandwidth
        links = 0
        for axis in range(self.chip.torus):
            extent = len({device.coords[axis] for device in group})
            if extent > 1:
                mesh_extent = 1 + max(device.coords[axis] for device in self.devices)
                closed = extent == mesh_extent and extent % self.chip.ring_multiple == 0
                links += 2 if closed else 1
        return self.chip.link_bandwidth * max(1, links)  # the two cores of a chip are at least as fast


def transfer_factor(kind: str, devices: int) -> float:
    """Bytes that a device receives, as a fraction of the full array."""
    if kind == "collective-permute":
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (devices - 1) / devices


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step on each device, and derived figures of the job."""

    compute: float
    memory: float
    collectives: float
    tokens: int
    model_flops: float  # per device

    @property
    def best(self) -> float:
        """Seconds if everything overlaps."""
        return max(self.compute, self.memory, self.collectives)

    @property
    def step(self) -> float:
        """Seconds if collectives do not overlap."""
        return max(self.compute, self.memory) + self.collectives

    @property
    def bound(self) -> str:
        times = {"compute": self.compute, "memory": self.memory, "collectives": self.collectives}
        return max(times, key=lambda name: times[name])

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step

    def mfu(self, chip: Chip) -> float:
        """Model FLOPs utilization at `step`."""
        return self.model_flops / self.step / chip.flops


def roofline(
    chip: Chip, *, flops: int, model_flops: float, memory_bytes: int, transfers: float, tokens: int
) -> Roofline:
    """flops, memory_bytes: of the program, per step and device; transfers: seconds of all collectives."""
    assert chip.memory_bandwidth is not None
    return Roofline(
        compute=max(flops, model_flops) / chip.flops,  # the program does not show the FLOPs of custom kernels
        memory=memory_bytes / chip.memory_bandwidth,
        collectives=transfers,
        tokens=tokens,
        model_flops=model_flops,
    )
