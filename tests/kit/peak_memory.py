"""The peak memory of this process."""

import resource
import sys
from pathlib import Path


def peak_mb() -> int:
    """The most memory that this process had, in MB. (getrusage begins with that of the process that forked it.)"""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 << 20)  # macOS: bytes
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
