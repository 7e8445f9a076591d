"""Taking turns: how benchmarks that run in one process compare their variants."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib import metadata
from typing import Any


def take_turns(steps: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Times every step function once a round, in an order that is reversed every round, after one round to warm up.

    -> {name: {median_ms, min_ms, max_ms, samples, cpu_ms, each_ms}}. cpu_ms: median time of all threads on all cores,
    which other processes change less than the time on the clock; each_ms: the samples in order.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    on_cores: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in list(steps) if number % 2 == 0 else list(steps)[::-1]:
            began, used = time.perf_counter(), time.process_time()
            float(steps[name]())
            if number:
                times[name].append(1000 * (time.perf_counter() - began))
                on_cores[name].append(1000 * (time.process_time() - used))
    return {
        name: {
            "median_ms": round(statistics.median(ms), 2),
            "min_ms": round(min(ms), 2),
            "max_ms": round(max(ms), 2),
            "samples": len(ms),
            "cpu_ms": round(statistics.median(on_cores[name]), 2),
            "each_ms": [round(one, 2) for one in ms],
        }
        for name, ms in times.items()
    }


def provenance() -> dict[str, Any]:
    """Where and when a measurement was made."""
    import jax

    return {
        "device": jax.devices()[0].device_kind,
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
