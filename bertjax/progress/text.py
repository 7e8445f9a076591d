"""Format numbers for people: counts, shares, rates, bytes and times."""

import math
from typing import Any


def number(value: Any) -> str:
    """Format a number with four significant digits, an integer with thousands separators, anything else as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "n/a"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    try:
        value = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if 1e-2 <= abs(value) < 10 else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def decimals(value: float, digits: int) -> str:
    """Format a number with `digits` decimals, in at most 11 characters where they are two: large ones as 4.307e+06."""
    return f"{value:,.{digits}f}" if abs(value) < 1e6 else f"{value:.3e}"


def percent(share: Any) -> str:
    """Format a share (0..1) as a percentage."""
    return "n/a" if share is None else f"{100 * float(share):.1f}%"


def compact(value: float) -> str:
    """Format a large number with three digits and a letter: 12.3k, 4.56M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    """Format a short time: 850 us, 12.3 ms, 1.25 s."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= size or unit == "us":
            return f"{value / size:.3g} {unit}"
    raise AssertionError("unreachable")


def memory(value: float | None) -> str:
    """Format bytes in GiB, or in MiB below 1 GiB."""
    if value is None:
        return "n/a"
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def size(value: float) -> str:
    """Format bytes of files with decimal units: 850 B, 12.3 kB, 4.56 MB, 120 GB."""
    for unit, letter in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g} {letter}" if value < 999.5 * unit else f"{value / unit:,.0f} {letter}"
    return f"{value:.0f} B"


def duration(value: float | None) -> str:
    """Format a long time: 42s, 3m05s, 1h02m, 2d03h."""
    if value is None or not math.isfinite(value):
        return "n/a"
    total = max(0, round(value))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600:02d}h"
