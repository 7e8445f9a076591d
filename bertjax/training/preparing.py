"""`bertjax prepare`: the data of every stage, ahead of a run."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bertjax.config.schema import Config, Stage
from bertjax.data.jobs import Runner
from bertjax.data.loader import Batches
from bertjax.data.runners import beam_options, choose
from bertjax.data.stopping import stoppable
from bertjax.training import inputs
from bertjax.training.setup import cache_of, load_tokenizer
from bertjax.training.stage_plan import open_data


def opened(
    config: Config, report: Callable[[str], None], runner: Runner | None = None
) -> Iterator[tuple[Stage, Batches]]:
    """Each stage with its data, prepared first where it is not yet."""
    base, cache = Path.cwd(), cache_of(config)
    tokenizer = load_tokenizer(config, base)
    labels = None
    for index, stage in enumerate(config.stages):
        batches, labels = open_data(
            config, index, tokenizer, labels, base=base, cache=cache, report=report, runner=runner, fetch=False
        )
        yield stage, batches


def prepare_command(config: Config, runner: str, together: str | None, apart: Sequence[str], verify: bool) -> None:
    """Prepares and tells. `together` and `apart`: options for Beam. `verify`: the shards are read again afterwards.

    Raises StorageError for a shard that is not what its manifest says, StoppedSafely after SIGTERM.
    """
    inputs.check_prepare(config, Path.cwd())
    workers = config.run.prepare_workers or os.cpu_count() or 1
    chosen = choose(runner, beam_options(together, apart), workers)
    with stoppable():
        for stage, batches in opened(config, partial(print, flush=True), chosen):
            counts = ", ".join(f"{name} {count:,}" for name, count in batches.counts.items())
            print(f"{stage.name}: rows: {counts}", flush=True)
            for name, store in batches.stores.items() if verify else ():
                store.verify(workers)
                print(f"{name}: {len(store.shards)} shards, {store.bytes:,} bytes: as the manifest says", flush=True)
