"""Run functions on the primary process (0), which may take hours, and share results and errors with all processes.

Messages go through the coordinator's key-value store. All processes make the same calls in the same order, from their
main threads.
"""

import json
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

import jax

from bertjax import errors
from bertjax.parallel.multihost import kv_store

T = TypeVar("T")
MAX_REASON_CHARS = 400  # of a message that is sent
_ERRORS = {2: "UserError", 4: "StorageError", 70: "BertjaxError"}
_calls = count()


def is_primary() -> bool:
    """Whether this is process 0, the one that writes small files."""
    return jax.process_index() == 0


def is_multiprocess() -> bool:
    """Whether there are other processes."""
    return kv_store.client() is not None and jax.process_count() > 1


def run_on_primary(make: Callable[[], Any]) -> Any:
    """Run `make` only on process 0, and return its JSON result or raise its BertjaxError on every process."""
    if not is_multiprocess():
        return make()
    key = f"primary/{next(_calls)}"
    if is_primary():
        kv_store.put(key, json.dumps(_reply(make)))
    reply = json.loads(kv_store.get(key))
    if "error" in reply:
        raise getattr(errors, reply["error"], errors.BertjaxError)(reply["message"])
    return reply["value"]


def _reply(make: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": make()}
    except errors.BertjaxError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # the others wait for a reply
        kind = _ERRORS[errors.exit_code(error)]  # a full disk is no bug
        return {"error": kind, "message": f"process 0: {type(error).__name__}: {error}"}


def primary_first(make: Callable[[], T]) -> T:
    """Run `make` on process 0 and then on the others, which find its results in caches.

    Raises the error of `make` on any process on all of them.
    """
    if not is_multiprocess():
        return make()
    made: list[T] = []
    run_on_primary(lambda: made.append(make()))
    error: errors.BertjaxError | None = None
    try:
        if not is_primary():
            made.append(make())
    except errors.BertjaxError as found:
        error = found
    if reason := any_error(str(error) if error else None):
        raise error or errors.UserError(reason)
    return made[0]


def any_error(reason: str | None) -> str | None:
    """The first reason that is not empty, in the order of the processes, on all of them; None without one."""
    return reduce_on_primary((reason or "")[:MAX_REASON_CHARS], lambda messages: next(filter(None, messages), None))


def reduce_on_primary(mine: str, reduce: Callable[[list[str]], Any]) -> Any:
    """`reduce` on process 0 of the messages of all processes, in order; its JSON result or error on every process."""
    if not is_multiprocess():
        return reduce([mine])
    place = f"messages/{next(_calls)}/"
    if not is_primary():
        kv_store.put(f"{place}{jax.process_index()}", mine)
        return run_on_primary(lambda: None)
    messages = [mine, *(kv_store.get(f"{place}{index}") for index in range(1, jax.process_count()))]
    kv_store.delete(place)
    return run_on_primary(lambda: reduce(messages))
