"""`bertjax prepare`: prepare the data of every stage before a run."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bertjax.config.schema.run import Config, Stage
from bertjax.data.jobs.jobs import Runner
from bertjax.data.jobs.runners import beam_options, make_runner
from bertjax.data.jobs.scratch_dir import KEPT_MESSAGE
from bertjax.data.pipeline.loader import Batches
from bertjax.interrupts import exit_on_signal
from bertjax.training import inputs
from bertjax.training.checkpoint.stage_files import run_stages
from bertjax.training.run_context import load_tokenizer, prepared_dir, source_fingerprints
from bertjax.training.stage_plan import open_data


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


def prepare_command(config: Config, runner: str, beam_args: str | None, rest: Sequence[str], verify: bool) -> None:
    """Prepare and print the number of rows. `beam_args`, `rest`: Beam options. `verify`: read all shards back.

    Raises StorageError for a shard that differs from its manifest, StoppedSafely after SIGTERM.
    """
    inputs.check_prepare(config, Path.cwd())
    workers = config.run.prepare_workers or os.cpu_count() or 1
    chosen = make_runner(runner, beam_options(beam_args, rest), workers)
    with exit_on_signal(lambda: f"stopped; {KEPT_MESSAGE}", f"interrupted; {KEPT_MESSAGE}"):
        for stage, batches in open_stage_data(config, partial(print, flush=True), chosen):
            counts = ", ".join(f"{name} {count:,}" for name, count in batches.row_counts.items())
            print(f"{stage.name}: rows: {counts}", flush=True)
            for name, store in batches.stores.items() if verify else ():
                store.verify(workers)
                size = f"{len(store.shards)} shards, {store.num_bytes:,} bytes"
                print(f"{name}: {size}: as the manifest says", flush=True)
