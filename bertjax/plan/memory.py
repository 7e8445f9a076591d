"""Memory of one device: the state of a stage, the buffers of its program, and the limit."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import jax

from bertjax.parallel.hardware import Chip
from bertjax.plan.compile import CompileResult, StageProgram

GIB, MIB = 2**30, 2**20
GPU_MEMORY_FRACTION = 0.75  # that jax preallocates (XLA_PYTHON_CLIENT_MEM_FRACTION)


def format_bytes(size: float) -> str:
    unit, name = (GIB, "GiB") if size >= GIB / 4 else (MIB, "MiB") if size >= MIB / 4 else (2**10, "KiB")
    return f"{size / unit:,.2f} {name}"


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device."""

    parameters: int
    optimizer: int
    batch: int  # the other arguments: rows, keys, and layout padding of small arrays
    temporaries: int  # activations, gradients and buffers of the step
    outputs: int  # results not written in place
    program: int  # code, which a TPU stores in the same memory

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def shard_bytes(arrays: Iterable[Any]) -> int:
    """Bytes on one device of abstract arrays with shardings."""
    return sum(prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def parameter_bytes(opened: StageProgram) -> int:
    """Of the model, and of the teacher of a distilled stage."""
    teacher = opened.program.teacher
    taught = teacher.abstract_params().values() if teacher else ()
    return shard_bytes([*opened.state.params.values(), *opened.state.frozen.values(), *taught])


def optimizer_bytes(opened: StageProgram) -> int:
    return shard_bytes(jax.tree.leaves(opened.state.opt_state))


def program_memory(opened: StageProgram, outcome: CompileResult, arguments: Iterable[Any] = ()) -> DeviceMemory:
    """Memory during training: parameters and optimizer state count even if the program does not read them.

    arguments: further abstract arrays in memory.
    """
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
    """Bytes of a device available to a program; None if unknown (CPU).

    The TPU compiler itself rejects what does not fit. On a GPU it is jax's fraction, or that of the environment.
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
