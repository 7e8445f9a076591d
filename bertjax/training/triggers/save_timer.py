"""Checkpoints by time: decide between two steps whether the last one is old enough."""

import time
from collections.abc import Callable
from typing import Any

from bertjax.parallel.multihost import primary

MOST_STEPS = 100  # between two decisions: steps may become slower


class SaveTimer:
    """Whether a checkpoint is due because the last one is `minutes` old; all processes get the same answer.

    The primary process decides. With several processes it does so at few steps that all agreed on, so that most steps
    need no message: after each decision, half the steps that fit into the remaining time, at most MOST_STEPS, pass
    before the next one.
    """

    def __init__(
        self,
        minutes: float | None,
        step: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        agree: Callable[[Callable[[], Any]], Any] = primary.run_on_primary,
        every_step: bool | None = None,
    ) -> None:
        """step: the one that is saved already, or 0. every_step: ask at each step (default: with a single process)."""
        self.seconds = None if minutes is None else 60 * minutes
        self.clock, self.agree = clock, agree
        self.every_step = not primary.is_multiprocess() if every_step is None else every_step
        self.saved(step)

    def saved(self, step: int) -> None:
        """Start over at a step that was saved."""
        self._since, self._step, self._next = self.clock(), step, step + 1

    def due(self, step: int) -> bool:
        """Whether to save this step. All processes call it after each step."""
        if self.seconds is None or (step < self._next and not self.every_step):
            return False
        due, self._next = self.agree(lambda: self._decide(step))
        return bool(due)

    def _decide(self, step: int) -> tuple[bool, int]:
        """-> (whether to save this step, the step of the next decision)."""
        assert self.seconds is not None
        passed = self.clock() - self._since
        if passed >= self.seconds:
            return True, step + 1
        pace = max(passed / max(step - self._step, 1), 1e-6)  # seconds per step, with the pauses between them
        return False, step + max(1, min(MOST_STEPS, int((self.seconds - passed) / pace / 2)))
