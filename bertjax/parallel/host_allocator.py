"""Make glibc's allocator keep freed memory in CPU runs.

By default a step's large buffers are page-faulted in each time: 1.4 to 1.7 times as long (docs/results/performance.md).
"""

import ctypes
import os
import sys
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # malloc.h
_ACCELERATORS = ("nvidia0", "kfd", "accel0", "vfio/0")  # CUDA, ROCm, TPU


def cpu_only() -> bool:
    """Whether jax will run on the CPU, by JAX_PLATFORMS or missing accelerator device files; does not import jax."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    return asked == "cpu" if asked else not any(Path("/dev", name).exists() for name in _ACCELERATORS)


def keep_freed_memory() -> bool:
    """Configure glibc; False with another C library. Call it before jax starts its threads, which get own arenas."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 256 * 2**20), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
