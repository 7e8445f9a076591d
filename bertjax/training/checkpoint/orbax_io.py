"""Read and write checkpoint steps with Orbax; no other module imports it.

A step is a folder with three Orbax items: `state` (the arrays), `meta` and `digest` (see `integrity`). Orbax's
`CheckpointManager` can read it but is not used: it lists a step before it is committed, skips a save silently after a
fallback, replaces an existing folder, and has no hook after the commit.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from bertjax.models import param_paths
from bertjax.storage.text import check_regular
from bertjax.training.checkpoint.integrity import unwrap_prng_key

# Orbax logs the traceback of each failure besides raising it; our errors are one line each.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


def open_writer(before_commit: Callable[[], None]) -> ocp.AsyncCheckpointer:
    """A writer that calls `before_commit` on process 0 once every file of a step is written.

    Then a folder on a disk gets its final name, and one in an object store its `commit_success.txt`.
    """
    options = ocp.AsyncOptions(post_finalization_callback=before_commit)
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)


def start_save(
    writer: ocp.AsyncCheckpointer, step: Path, leaves: Mapping[str, Any], meta_item: Any, record: Any
) -> None:
    """Start writing {path: array} and the two JSON items; return when the arrays may change again."""
    state = param_paths.unflatten({path: unwrap_prng_key(leaf) for path, leaf in leaves.items()})
    items = {"state": ocp.args.PyTreeSave(state)}
    items |= {"meta": ocp.args.JsonSave(meta_item), "digest": ocp.args.JsonSave(record)}
    _event_loops.enter()
    try:
        writer.save(step, args=ocp.args.Composite(**items))
    except BaseException:
        _event_loops.leave()
        raise


def finish_save(writer: ocp.AsyncCheckpointer) -> None:
    """Wait until the save that `start_save` began is committed; raise its error."""
    try:
        writer.wait_until_finished()
    finally:
        _event_loops.leave()


def read_json(step: Path, item: str) -> Any:
    check_regular(step / item / "metadata")
    return ocp.JsonCheckpointHandler().restore(epath.Path(step / item))


def read_arrays(step: Path, wanted: Mapping[str, Any], prefix: str) -> dict[str, jax.Array]:
    """Read the arrays `prefix` + path of a step for {path: abstract array}, PRNG keys as words; not a collective."""
    target = param_paths.unflatten({f"{prefix}{path}": unwrap_prng_key(leaf) for path, leaf in wanted.items()})
    arguments = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    with _event_loops:
        read = ocp.PyTreeCheckpointHandler().restore(epath.Path(step / "state"), args=arguments)
    found = param_paths.flatten(read)
    return {path: found[f"{prefix}{path}"] for path in wanted}


class _WaitingEventLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for its tasks before it closes.

    Orbax closes its loop when the first array fails; each other read or write would print a traceback.
    """

    def close(self) -> None:
        if not self.is_closed():
            self.set_exception_handler(lambda loop, context: None)
            while pending := asyncio.all_tasks(self):
                self.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        with suppress(AttributeError):  # the collector closes a loop for which there was no file handle too
            super().close()


class _WaitingEventLoopPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _WaitingEventLoop()


class _WaitingEventLoops:
    """Makes new event loops wait, while at least one read or save is under way; they may overlap, in any thread."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._before: asyncio.AbstractEventLoopPolicy | None = None

    def enter(self) -> None:
        with self._lock:
            if not self._users:
                self._before = asyncio.get_event_loop_policy()
                asyncio.set_event_loop_policy(_WaitingEventLoopPolicy())
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                asyncio.set_event_loop_policy(self._before)

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *exception: object) -> None:
        self.leave()


_event_loops = _WaitingEventLoops()
