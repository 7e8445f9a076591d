"""glibc's allocator, told to keep freed memory for a CPU run.

By default it returns the step's large temporary buffers to the system and takes them back, page fault by page fault,
at every step, which then takes 1.4 to 1.7 times as long (docs/results/performance.md).
"""

import ctypes
import os
import sys
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # malloc.h
_ACCELERATORS = ("nvidia0", "kfd", "accel0", "vfio/0")  # CUDA, ROCm, TPU


def cpu_only() -> bool:
    """Whether jax will run on the CPU, told without importing it: asked for, or no accelerator has a device file."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    return asked == "cpu" if asked else not any(Path("/dev", name).exists() for name in _ACCELERATORS)


def keep_freed_memory() -> bool:
    """Whether it could be told; does nothing where the C library is not glibc.

    Comes before jax starts its threads: each of them has an arena of its own once it has asked for memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 256 * 2**20), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
