"""Open everything that monitors a run: preemption, phases, goodput, watchdog, profiler."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from bertjax.config.schema.run import Config
from bertjax.errors import StorageError
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter
from bertjax.storage.mirror import Mirror
from bertjax.training.monitor import goodput
from bertjax.training.monitor.goodput import GoodputLog
from bertjax.training.monitor.phases import Phases
from bertjax.training.monitor.preemption import PreemptionHandler
from bertjax.training.monitor.profiler import Profiler
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.monitor.watchdog import Watchdog


@dataclass(frozen=True)
class RunMonitor:
    """What the training loop uses to monitor a run."""

    stop: PreemptionHandler
    phases: Phases
    goodput_log: GoodputLog
    profiler: Profiler
    mirror: Mirror | None = None  # of a run in an object store

    def step_done(self, stage: int, step: int, *, last: bool) -> None:
        """Report a finished step."""
        self.phases.heartbeat()
        self.goodput_log.record_step(stage, step, last=last)


@contextmanager
def monitor_run(
    config: Config, stop: PreemptionHandler, phases: Phases, tracker: Tracker, mirror: Mirror | None = None
) -> Iterator[RunMonitor]:
    """Monitor a run whose folder exists, and log its goodput at the end."""
    is_primary = primary.is_primary()
    goodput_log = GoodputLog(config.run_dir, phases, is_primary=is_primary)
    profiler = Profiler(config.run_dir / "profile", config.run.profile, is_primary=is_primary, log=tracker.note)

    def on_hang() -> None:
        goodput_log.close()
        if mirror is not None:
            mirror.push_last()

    limits = config.run.watchdog if stop.ends_process else None
    watchdog = Watchdog(phases, limits, config.run_dir, jax.process_index(), on_hang)
    try:
        with watchdog, profiler.handle_signals():
            yield RunMonitor(stop, phases, goodput_log, profiler, mirror)
    finally:
        try:
            goodput_log.close()
        except StorageError as error:  # must not hide what ended the run
            reporter.say(str(error))
        if is_primary and (found := goodput.read(config.run_dir)):
            tracker.note(str(found))
