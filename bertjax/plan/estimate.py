"""How long a step takes at best: a roofline of the compiled program on the chip's data sheet. Nothing is measured.

Compute is the program's matrix products over the peak, memory its traffic over the memory's bandwidth, and each
collective the bytes that it brings to a device over the links that bring them:

- A ring of n devices brings (n-1)/n of the whole array to each for an all-gather or a reduce-scatter and twice that for
  an all-reduce. A dimension of a torus that closes into a ring brings it over two links, one that does not over one;
  groups that span several dimensions use the links of all.
- Between slices, or hosts of GPUs, each device has its share of the host's network, and first shares out the work with
  its group inside: 1/m of the array crosses where m devices of the group are inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertjax.parallel.hardware import Chip
from bertjax.plan.hlo.collectives import Collective

ASSUMPTIONS = "from data sheets, at full speed and with no waiting: real steps take longer, often twice as long"


@dataclass(frozen=True)
class Interconnect:
    """What joins the devices of a mesh, in the mesh's order."""

    chip: Chip
    devices: Sequence[Any]

    def seconds(self, one: Collective) -> float:
        """Of all runs of a collective in a step, none of it hidden behind other work."""
        if self.chip.link_bandwidth is None:
            return 0.0
        group = [self.devices[number] for number in one.group]
        parts: dict[int, list[Any]] = {}
        for device in group:
            parts.setdefault(self._part(device), []).append(device)
        inside = next(iter(parts.values()))
        return self._within(one, inside) + self._between(one, len(parts), len(inside))

    def _part(self, device: Any) -> int:
        """Devices of one part have fast links: a slice of TPUs, a host of GPUs."""
        return (getattr(device, "slice_index", 0) or 0) if self.chip.torus else device.process_index

    def _within(self, one: Collective, group: Sequence[Any]) -> float:
        if len(group) < 2:
            return 0.0
        if self.chip.torus and one.kind == "all-to-all":  # every byte goes a quarter of the way around
            return one.bytes * len(group) / 4 / self._bandwidth(group)
        return one.bytes * transfer_factor(one.kind, len(group)) / self._bandwidth(group)

    def _between(self, one: Collective, parts: int, inside: int) -> float:
        if parts < 2 or self.chip.network_bandwidth is None:
            return 0.0
        return (
            one.bytes
            / inside
            * transfer_factor(one.kind, parts)
            / (self.chip.network_bandwidth / self.chip.devices_per_host)
        )

    def _bandwidth(self, group: Sequence[Any]) -> float:
        """Bytes/s that a device of this group receives."""
        assert self.chip.link_bandwidth is not None
        if not self.chip.torus:
            return self.chip.link_bandwidth
        links = 0
        for axis in range(self.chip.torus):
            extent = len({device.coords[axis] for device in group})
            if extent > 1:
                closed = extent == self._extent(axis) and extent % self.chip.ring_multiple == 0
                links += 2 if closed else 1
        return self.chip.link_bandwidth * max(1, links)  # two cores of one chip talk at least as fast

    def _extent(self, axis: int) -> int:
        return 1 + max(device.coords[axis] for device in self.devices)


def transfer_factor(kind: str, devices: int) -> float:
    """Share of the whole array's bytes that a device receives."""
    if kind == "collective-permute":
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (devices - 1) / devices


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step on each device, and what follows for the whole job.

    Attributes:
        best: everything overlaps: the longest of the three.
        step: collectives overlap with nothing: the longer of compute and memory, and then the collectives.
        bound: what takes longest.
    """

    compute: float
    memory: float
    collectives: float
    tokens: int
    model_flops: float  # of one device

    @property
    def best(self) -> float:
        return max(self.compute, self.memory, self.collectives)

    @property
    def step(self) -> float:
        return max(self.compute, self.memory) + self.collectives

    @property
    def bound(self) -> str:
        times = {"compute": self.compute, "memory": self.memory, "collectives": self.collectives}
        return max(times, key=lambda name: times[name])

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step

    def mfu(self, chip: Chip) -> float:
        """Model FLOPs a second as a share of the peak, at `step`."""
        return self.model_flops / self.step / chip.flops


def roofline(
    chip: Chip, *, flops: int, model_flops: float, memory_bytes: int, transfers: float, tokens: int
) -> Roofline:
    """flops, memory_bytes: of the program, a step and device; transfers: seconds of all collectives.

    What a hand-written kernel multiplies cannot be seen in the program, so compute is at least the model's own FLOPs.
    """
    assert chip.memory_bandwidth is not None
    return Roofline(
        compute=max(flops, model_flops) / chip.flops,
        memory=memory_bytes / chip.memory_bandwidth,
        collectives=transfers,
        tokens=tokens,
        model_flops=model_flops,
    )
