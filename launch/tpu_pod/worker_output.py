"""Output of worker.py: every line starts with the worker and is written at once. Standard library, Python 3.8+."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

MAX_LINE_BYTES = 3000  # bytes per write: less than a pipe writes atomically
_prefix = ""


def set_prefix(prefix: str) -> None:
    global _prefix
    _prefix = prefix


def print_line(line: str) -> None:
    """Writes a line at once: the lines of all workers share one stream."""
    data = f"{_prefix}{line}".encode()[:MAX_LINE_BYTES] + b"\n"
    try:
        os.write(sys.stdout.fileno(), data)
    except BrokenPipeError:
        sys.exit(1)


def run_logged(argv: Sequence[str], cwd: Path) -> int:
    """Runs a command and prints its output -> its exit code."""
    with subprocess.Popen(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print_line(line.rstrip())
        code = process.wait()
    if code:
        print_line(f"launch: {argv[0]} failed with {code}")
    return code


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process at a time: after a dropped connection there may be two."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
