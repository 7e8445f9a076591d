"""What watches over a run beside the training itself, in one piece: stopping, phases, goodput, watchdog, profiler."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from bertjax.config.schema import Config
from bertjax.errors import StorageError
from bertjax.parallel import distributed
from bertjax.training import goodput
from bertjax.training.goodput import Ledger
from bertjax.training.phases import Phases
from bertjax.training.profiler import Profiler
from bertjax.training.stopping import Stop
from bertjax.training.tracking import Tracker
from bertjax.training.watchdog import Watchdog


@dataclass(frozen=True)
class Operations:
    """What the loop tells and asks while it trains."""

    stop: Stop
    phases: Phases
    ledger: Ledger
    profiler: Profiler

    def stepped(self, stage: int, step: int, *, last: bool) -> None:
        """A step of a stage is done."""
        self.phases.beat()
        self.ledger.reached(stage, step, last=last)


@contextmanager
def watching(config: Config, stop: Stop, phases: Phases, tracker: Tracker) -> Iterator[Operations]:
    """Watches a run whose folder is there; at the end, however it comes, its goodput is told in one line."""
    lead = distributed.is_lead()
    ledger = Ledger(config.run_dir, phases, lead=lead)
    profiler = Profiler(config.run_dir / "profile", config.run.profile, lead=lead, say=tracker.note)
    watchdog = Watchdog(phases, config.run.watchdog, config.run_dir, jax.process_index(), ledger.close)
    try:
        with watchdog, profiler.listening():
            yield Operations(stop, phases, ledger, profiler)
    finally:
        try:
            ledger.close()
        except StorageError as error:  # what ended the run matters more
            print(error, file=sys.stderr)
        if lead and (found := goodput.read(config.run_dir)):
            tracker.note(str(found))
