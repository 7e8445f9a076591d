"""The time of one call: which part still fits, and how long a part may take."""

import time
from collections.abc import Callable


class Budget:
    """So many minutes from now on.

    `fits` compares what is left with the estimate of a part in seconds, times how much longer (or shorter, but not
    less than half) the parts so far took than their estimates.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic):
        self.clock, self.began, self.seconds = clock, clock(), 60 * minutes
        self._estimated = self._taken = 0.0

    def used(self) -> float:
        return self.clock() - self.began

    def left(self) -> float:
        return self.seconds - self.used()

    def expect(self, estimate: float) -> float:
        """Seconds that a part will take, by its estimate and the parts so far."""
        return estimate * (max(0.5, self._taken / self._estimated) if self._estimated else 1.0)

    def fits(self, estimate: float) -> bool:
        return self.expect(estimate) <= self.left()

    def finished(self, estimate: float, seconds: float) -> None:
        """Learn from a part that ran to its end."""
        self._estimated += estimate
        self._taken += seconds
