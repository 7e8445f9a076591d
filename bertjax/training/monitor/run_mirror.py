"""Open and close the mirror of a run in an object store (storage/mirror.py); a run on a disk has none."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from bertjax.config.schema.run import Config
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter
from bertjax.storage import remote
from bertjax.storage.mirror import Mirror


@contextmanager
def mirrored(config: Config) -> Iterator[Mirror | None]:
    """The mirror of a run, closed at the end, when its log is; None for a run on a disk.

    Raises StorageError at the end of a block without an error, when the last files could not be uploaded.
    """
    if not remote.is_remote(config.run.root):
        yield None
        return
    mirror = Mirror(config.run_place, config.run_dir)
    try:
        yield mirror
    except BaseException:
        mirror.close(failed=True)
        raise
    mirror.close(failed=False)


def open_mirror(mirror: Mirror | None, config: Config) -> None:
    """Take the lease of the run and fetch its small files, on the primary process first. Every process calls it.

    Raises UserError for a bucket that is missing or cannot be written, and when another process writes the run;
    StorageError for one out of reach.
    """
    if mirror is None:
        return
    primary.primary_first(lambda: mirror.open(primary.is_primary(), jax.process_index()))


def note_prepared_dir(config: Config) -> None:
    """Say where the data of a run in an object store are prepared, if run.prepared_dir does not name it."""
    if remote.is_remote(config.run.root) and config.run.prepared_dir is None:
        folder = config.run_dir.parent / "prepared"
        reporter.say(f"note: data are prepared in {folder} on each machine; run.prepared_dir=gs://... shares them")
