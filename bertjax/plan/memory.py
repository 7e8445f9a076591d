"""Bytes of one device's memory: what a stage keeps there, what its program adds, and whether that fits."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import jax

from bertjax.parallel.hardware import Chip
from bertjax.plan.compile import CompileResult, StageProgram

# jax takes this share of a GPU's memory when it starts (XLA_PYTHON_CLIENT_MEM_FRACTION).
GPU_MEMORY_FRACTION = 0.75


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one device.

    Attributes:
        parameters, optimizer: their shards.
        batch: the other arguments: rows, keys, and what the device's layout adds to small arrays.
        temporaries: activations, gradients and buffers of the step.
        outputs: what is not written in place.
        program: its code, which a TPU keeps in the same memory.
    """

    parameters: int
    optimizer: int
    batch: int
    temporaries: int
    outputs: int
    program: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def shard_bytes(arrays: Iterable[Any]) -> int:
    """Bytes of one device's shards of abstract arrays with shardings."""
    return sum(prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def parameter_bytes(opened: StageProgram) -> int:
    return shard_bytes([*opened.state.params.values(), *opened.state.frozen.values()])


def optimizer_bytes(opened: StageProgram) -> int:
    return shard_bytes(jax.tree.leaves(opened.state.opt_state))


def program_memory(opened: StageProgram, outcome: CompileResult, arguments: Iterable[Any] = ()) -> DeviceMemory:
    """Of a program that was compiled, inside training: the parameters and the optimizer's state are there whether it
    reads them or not. `arguments`: abstract arrays that are there besides."""
    found = outcome.compiled.memory_analysis()
    params, opt = parameter_bytes(opened), optimizer_bytes(opened)
    read = found.argument_size_in_bytes
    rest = read - params - opt if read > params + opt else read - params
    return DeviceMemory(
        parameters=params,
        optimizer=opt,
        batch=max(shard_bytes(arguments), rest),
        temporaries=found.temp_size_in_bytes,
        outputs=max(0, found.output_size_in_bytes - found.alias_size_in_bytes),
        program=found.generated_code_size_in_bytes,
    )


def usable_bytes(chip: Chip | None, environment: Mapping[str, str] = os.environ) -> int | None:
    """Bytes that a program may take of a device; None where that is not known (a CPU).

    The TPU compiler refuses by itself what does not fit. A GPU's share is jax's, or the one that the environment sets.
    """
    if chip is None or chip.memory is None:
        return None
    if chip.torus:
        return chip.memory
    given = environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or environment.get("XLA_CLIENT_MEM_FRACTION")
    try:
        share = float(given) if given else GPU_MEMORY_FRACTION
    except ValueError:
        share = GPU_MEMORY_FRACTION
    return int(chip.memory * share)
