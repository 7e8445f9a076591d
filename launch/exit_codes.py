"""Exit codes of a job: combine those of its processes, and decide whether to retry. Standard library only."""

from __future__ import annotations

import signal
from collections.abc import Iterable

RETRY = 75  # stopped after saving, or lost a peer: run the same command again
INTERRUPTED = 128 + signal.SIGINT
REASONS = {
    2: "bad input",
    3: "training diverged",
    4: "storage failed",
    70: "a bug",
    INTERRUPTED: "interrupted",
}
# JAX aborts a process that lost its peers; the other signals come from machines and schedulers that preempt.
_KILL_SIGNALS = {128 + number for number in (signal.SIGABRT, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)}


def from_returncode(returncode: int) -> int:
    """The exit code of one process from a return code of subprocess (negative: signal) or a shell (128 + signal)."""
    code = 128 - returncode if returncode < 0 else returncode
    return RETRY if code in _KILL_SIGNALS else code


def combine(returncodes: Iterable[int]) -> int:
    """One exit code for all processes.

    A failure (2, 3, 4, 70 or any other) wins over 75, because a retry would repeat it, and 75 wins over 0.
    """
    codes = {from_returncode(code) for code in returncodes}
    own = [code for code in REASONS if code in codes] + sorted(codes - REASONS.keys() - {0, RETRY})
    return own[0] if own else RETRY if RETRY in codes else 0


def describe(code: int) -> str:
    """A description such as `bad input (exit code 2)`."""
    if code in REASONS:
        return f"{REASONS[code]} (exit code {code})"
    return f"killed by {signal.Signals(code - 128).name}" if code - 128 in set(signal.Signals) else f"exit code {code}"
