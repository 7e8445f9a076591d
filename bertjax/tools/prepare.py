"""`bertjax prepare`: prepare the data of every stage before a run."""

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bertjax.config.schema.run import Config, Stage
from bertjax.data.jobs.jobs import LocalRunner, Runner
from bertjax.data.pipeline.loader import Batches
from bertjax.errors import UserError
from bertjax.progress import reporter
from bertjax.training import inputs
from bertjax.training.checkpoint.stage_files import run_stages
from bertjax.training.monitor.phases import PREPARE, Phases
from bertjax.training.monitor.watchdog import watch_preparation
from bertjax.training.run_context import load_tokenizer, prepared_dir, source_fingerprints
from bertjax.training.stage.plan import open_data


def open_stage_data(
    config: Config, report: Callable[[str], None], runner: Runner | None = None
) -> Iterator[tuple[Stage, Batches]]:
    """Each stage with its data, prepared first if necessary."""
    base = Path.cwd()
    fingerprint = source_fingerprints(base)
    tokenizer = load_tokenizer(config, base, fingerprint)
    options = {"cache": prepared_dir(config), "report": report, "runner": runner, "fingerprint": fingerprint}
    labels = None
    for files in run_stages(config, base):
        batches, labels = open_data(files, tokenizer, labels, fetch=False, **options)
        yield files.stage, batches


def make_runner(name: str, beam_args: Sequence[str] = (), workers: int = 1) -> Runner:
    """The runner called `name`; without options for Beam it runs in `workers` processes of this machine.

    Raises UserError when Beam is not installed or does not know one of the options.
    """
    if name == "local":
        if beam_args:
            raise UserError(f"options for Beam ({beam_args[0][:60]} ...) need --runner beam")
        return LocalRunner()
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise UserError(
            "--runner beam: Apache Beam is missing; in an environment of its own: pip install 'bertjax[beam,gcs]'"
        ) from None

    from bertjax.data.jobs.beam_runner import BeamRunner

    return BeamRunner(beam_args, workers)


def prepare_command(config: Config, runner: str, beam_args: str | None, rest: Sequence[str], verify: bool) -> None:
    """Prepare and print the number of rows. `beam_args`, `rest`: Beam options. `verify`: read all shards back.

    Raises StorageError for a shard that differs from its manifest, StoppedSafely after SIGTERM.
    """
    phases = Phases(started=time.time())
    with watch_preparation(phases, config.run.watchdog, is_here=runner == "local"), phases.enter(PREPARE):
        _prepare(config, runner, beam_args, rest, verify)


def _prepare(config: Config, runner: str, beam_args: str | None, rest: Sequence[str], verify: bool) -> None:
    inputs.check_prepare(config, Path.cwd())
    workers = config.run.prepare_workers or os.cpu_count() or 1
    try:
        options = [*shlex.split(beam_args or ""), *rest]
    except ValueError as error:
        raise UserError(f"--beam-args: {error} in {beam_args!a:.80}; close the quotes") from None
    chosen = make_runner(runner, options, workers)
    for stage, batches in open_stage_data(config, reporter.result, chosen):
        counts = ", ".join(f"{name} {count:,}" for name, count in batches.row_counts.items())
        reporter.result(f"{stage.name}: rows: {counts}")
        for name, store in batches.stores.items() if verify else ():
            store.verify(workers)
            size = f"{len(store.shards)} shards, {store.num_bytes:,} bytes"
            reporter.result(f"{name}: {size}: as the manifest says")
