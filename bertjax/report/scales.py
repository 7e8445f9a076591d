"""The numbers behind charts: axis ticks, fewer points, smoothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOG_RATIO = 100  # an axis is logarithmic where the largest value is this many times the median


@dataclass(frozen=True)
class Curve:
    """Points of a curve, float64 [N]: means, minima and maxima of `counts` neighbouring values; NaN breaks the line."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray

    @property
    def is_exact(self) -> bool:
        """Whether each point is one recorded value."""
        return bool((self.counts <= 1).all())


def downsample(x: Sequence[float], y: Sequence[float], most: int) -> Curve:
    """At most `most` points with the mean, minimum and maximum of their values; NaN where none is finite."""
    steps, values = np.asarray(x, float), np.asarray(y, float)
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) <= most:
        return Curve(steps, values, values, values, np.ones(len(steps), int))
    edges = np.linspace(0, len(steps), most + 1).astype(int)
    spans = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    means, lows, highs, counts = np.full((4, most), np.nan)
    for i, span in enumerate(spans):
        found = values[span][~np.isnan(values[span])]
        counts[i] = len(found)
        if len(found):
            means[i], lows[i], highs[i] = min(max(found.mean(), found.min()), found.max()), found.min(), found.max()
    return Curve(np.array([steps[span].mean() for span in spans]), means, lows, highs, counts.astype(int))


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean over `reach` neighbours on either side, [N] -> [N]; symmetric near the start, where curves are steep."""
    place = np.arange(len(values))
    before = np.minimum(reach, place)
    after = np.minimum(before, place[::-1])
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[place + after + 1] - sums[place - before]) / (before + after + 1)


def runs_of_finite(values: np.ndarray) -> list[slice]:
    """The longest ranges without NaN."""
    finite = np.concatenate([[False], np.isfinite(values), [False]])
    edges = np.flatnonzero(finite[1:] != finite[:-1])
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def wants_log(values: np.ndarray) -> bool:
    """Whether positive values [N] spread so far that a linear axis would flatten most of them."""
    with np.errstate(over="ignore"):  # the mean of two huge numbers
        return len(values) > 0 and bool(values.min() > 0) and float(values.max()) > LOG_RATIO * float(np.median(values))


def axis_range(values: np.ndarray, from_zero: bool, log: bool) -> tuple[float, float]:
    """Ends of an axis for finite values [N], with some room."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.2, high * 1.2
    low = min(low, 0.0) if from_zero else low
    # Halves, so that the difference of two huge numbers stays finite.
    room = 0.06 * (high / 2 - low / 2) * 2 if high > low else max(abs(high) * 0.1, 1e-9)
    return low if from_zero and low == 0 else low - room, high + room


def ticks(low: float, high: float, most: int, *, log: bool = False, integers: bool = False) -> list[float]:
    """At most about `most` round numbers from low to high."""
    if log:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        decades = [10.0**p for p in powers]
        if len(decades) >= 2:
            return decades[:: -(-len(decades) // most)]
        lowest = math.floor(math.log10(low))
        found = [n * 10.0**p for p in range(lowest, lowest + 3) for n in (1, 2, 5) if low <= n * 10.0**p <= high]
        if len(found) >= 3:
            return found
    span = (high / most - low / most) or 1.0
    size = 10.0 ** math.floor(math.log10(span))
    step = next(size * n for n in (1, 2, 5, 10) if size * n >= span * 0.75)
    step = max(1.0, round(step)) if integers else step
    first = math.ceil(low / step - 1e-9)
    last = min(math.floor(high / step + 1e-9), first + 4 * most)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]
