"""Agreement between the processes of a run, for work on shared files that only one of them may do."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from bertjax import errors

T = TypeVar("T")


def is_lead() -> bool:
    """Whether this is process 0, the one that writes small files."""
    return jax.process_index() == 0


def from_lead(make: Callable[[], Any]) -> Any:
    """Runs `make` on process 0 alone and returns its JSON result, or raises its BertjaxError, on every process.

    A collective: every process calls it, from its main thread.
    """
    if jax.process_count() == 1:
        return make()
    from jax.experimental import multihost_utils

    reply: dict[str, Any] = {}
    if is_lead():
        try:
            reply = {"value": make()}
        except errors.BertjaxError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        except Exception as error:  # the others must not be left waiting for a broadcast that never comes
            reply = {"error": "BertjaxError", "message": f"process 0: {type(error).__name__}: {error}"}
    text = np.frombuffer(json.dumps(reply).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    padded = text if is_lead() else np.zeros(size, np.uint8)
    reply = json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))
    if "error" in reply:
        raise getattr(errors, reply["error"], errors.BertjaxError)(reply["message"])
    return reply["value"]


def lead_first(make: Callable[[], T]) -> T:
    """Runs `make` on process 0 and, once that has succeeded, on the others, which find in caches what it left there.

    What `make` raises on one process ends all. A collective: every process calls it, from its main thread.
    """
    if jax.process_count() == 1:
        return make()
    made: list[T] = []
    from_lead(lambda: made.append(make()))
    error: errors.BertjaxError | None = None
    try:
        if not is_lead():
            made.append(make())
    except errors.BertjaxError as found:
        error = found
    if reason := first_reason(str(error) if error else None):
        raise error or errors.UserError(reason)
    return made[0]


def first_reason(reason: str | None) -> str | None:
    """The reason of the first process that has one, on every process; None when none has. A collective."""
    if jax.process_count() == 1:
        return reason
    from jax.experimental import multihost_utils

    mine = np.zeros(512, np.uint8)
    text = np.frombuffer((reason or "").encode()[:512], np.uint8)
    mine[: text.size] = text
    for row in multihost_utils.process_allgather(mine):
        if row.any():
            return bytes(row[row > 0]).decode(errors="replace")
    return None
