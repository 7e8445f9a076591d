"""XLA flags by platform: those that a training step is compiled with, and those that a benchmark changes.

The step passes them as options of its own compilation, so that they need no variable before jax starts. A flag that
the user gives in XLA_FLAGS or LIBTPU_INIT_ARGS keeps the user's value. docs/results/performance.md says what is
measured; `benchmarks/gpu.py --ablate-flags` and `benchmarks/tpu.py --ablate-flags` change each flag in turn.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_VARIABLES = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}
Option = bool | int | str


@dataclass(frozen=True)
class Flag:
    """A flag of XLA on one platform.

    Attributes:
        platform: gpu or tpu.
        name: without dashes.
        ours: what steps are compiled with; None: the compiler's default, which `why` says.
        other: what an ablation sets instead.
        why: one line.
        least_devices: of a program for which we set it.
    """

    platform: str
    name: str
    ours: Option | None
    other: Option
    why: str
    least_devices: int = 1

    def environment(self) -> dict[str, str]:
        """The variable that gives the flag its other value, beside the flags that are there."""
        variable = _VARIABLES[self.platform]
        value = str(self.other).lower() if isinstance(self.other, bool) else str(self.other)
        return {variable: f"{os.environ.get(variable, '')} --{self.name}={value}".strip()}


FLAGS = (
    Flag(
        "gpu", "xla_gpu_enable_latency_hiding_scheduler", True, False, least_devices=2,
        why="runs collectives beside computation (docs.jax.dev/en/latest/gpu_performance_tips.html)",
    ),
    Flag("gpu", "xla_gpu_enable_triton_gemm", None, False, why="on by default: autotuning tries Triton beside cuBLAS"),
    Flag("gpu", "xla_gpu_autotune_level", None, 0, why="on by default: kernels are chosen by time"),
    Flag("gpu", "xla_gpu_enable_command_buffer", None, "", why="on by default: fusions are launched as CUDA graphs"),
    Flag(
        "tpu", "xla_tpu_enable_latency_hiding_scheduler", None, False,
        why="on by default: runs collectives beside computation",
    ),
    Flag("tpu", "xla_enable_async_all_gather", None, False, why="on by default: all-gathers run beside computation"),
    Flag(
        "tpu", "xla_tpu_enable_async_collective_fusion", None, False,
        why="on by default: collectives run inside the fusions that use them",
    ),
    Flag("tpu", "xla_tpu_scoped_vmem_limit_kib", None, 98304, why="memory on the chip for one fusion or kernel"),
)  # fmt: skip


def compiler_options(platform: str, devices: int, environ: Mapping[str, str] = os.environ) -> dict[str, Option]:
    """{name: value} of the flags to compile a program over so many devices with; without those in `environ`."""
    given = " ".join(environ.get(variable, "") for variable in _VARIABLES.values())
    named = set(re.findall(r"--([a-z0-9_]+)", given))
    return {
        flag.name: flag.ours
        for flag in FLAGS
        if flag.platform == platform and flag.ours is not None and devices >= flag.least_devices
        and flag.name not in named
    }  # fmt: skip
