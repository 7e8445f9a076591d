"""glibc's allocator, told to keep freed memory for a CPU run.

By default it returns the step's large temporary buffers to the system and takes them back, page fault by page fault,
at every step (1.3x of a small BERT's step; benchmarks/step.py).
"""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # malloc.h


def keep_freed_memory() -> bool:
    """Whether it could be told; does nothing where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 256 * 2**20), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
