"""What the exit codes of a job's processes mean for it: done, again, or stop and say why. Standard library only."""

from __future__ import annotations

import signal
from collections.abc import Iterable

AGAIN = 75  # stopped after saving, or a peer is gone: run the same command again
INTERRUPTED = 128 + signal.SIGINT
REASONS = {
    2: "bad input",
    3: "training diverged",
    4: "storage failed",
    70: "a bug",
    INTERRUPTED: "interrupted",
}
# A process that lost its peers is aborted by JAX's runtime; the others are how machines and schedulers take one away.
_TAKEN = {128 + number for number in (signal.SIGABRT, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)}


def of_process(returncode: int) -> int:
    """The exit code of one process, from subprocess's (negative: a signal) or a shell's (128 + signal) code."""
    code = 128 - returncode if returncode < 0 else returncode
    return AGAIN if code in _TAKEN else code


def worst(returncodes: Iterable[int]) -> int:
    """One exit code for all processes.

    A reason of its own (2, 3, 4, 70, any other) wins over 75, since starting again would meet it again, and 75 over 0.
    """
    codes = {of_process(code) for code in returncodes}
    own = [code for code in REASONS if code in codes] + sorted(codes - REASONS.keys() - {0, AGAIN})
    return own[0] if own else AGAIN if AGAIN in codes else 0


def reason(code: int) -> str:
    """A code in words: `bad input (exit code 2)`."""
    if code in REASONS:
        return f"{REASONS[code]} (exit code {code})"
    return f"killed by {signal.Signals(code - 128).name}" if code - 128 in set(signal.Signals) else f"exit code {code}"
