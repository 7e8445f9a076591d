"""Agreement between the processes of a run, for work on shared files that only one of them may do.

All of it goes through the coordinator's key-value store: nothing waits for a device, and process 0 may take hours over
its part. Each call has a number, the same on every process, since all make the same calls in the same order.
"""

import json
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

import jax

from bertjax import errors
from bertjax.parallel import keys

T = TypeVar("T")
REASON = 400  # characters of a reason that are passed on
_calls = count()


def is_lead() -> bool:
    """Whether this is process 0, the one that writes small files."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes to agree with."""
    return keys.client() is not None and jax.process_count() > 1


def from_lead(make: Callable[[], Any]) -> Any:
    """Runs `make` on process 0 alone and returns its JSON result, or raises its BertjaxError, on every process.

    Every process calls it, from its main thread.
    """
    if not several():
        return make()
    key = f"lead/{next(_calls)}"
    if is_lead():
        keys.put(key, json.dumps(_reply(make)))
    reply = json.loads(keys.get(key))
    if "error" in reply:
        raise getattr(errors, reply["error"], errors.BertjaxError)(reply["message"])
    return reply["value"]


def _reply(make: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": make()}
    except errors.BertjaxError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # the others must not be left waiting for a word that never comes
        return {"error": "BertjaxError", "message": f"process 0: {type(error).__name__}: {error}"}


def lead_first(make: Callable[[], T]) -> T:
    """Runs `make` on process 0 and, once that has succeeded, on the others, which find in caches what it left there.

    What `make` raises on one process ends all. Every process calls it, from its main thread.
    """
    if not several():
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
    """The reason of the first process that has one, on every process; None when none has. Every process calls it."""
    return judged((reason or "")[:REASON], lambda said: next((each for each in said if each), None))


def judged(mine: str, judge: Callable[[list[str]], Any]) -> Any:
    """What process 0 makes of the words of all, in the order of the processes: its JSON, or its error, on every one.

    Every process calls it, from its main thread.
    """
    if not several():
        return judge([mine])
    place = f"said/{next(_calls)}/"
    if not is_lead():
        keys.put(f"{place}{jax.process_index()}", mine)
        return from_lead(lambda: None)
    said = [mine, *(keys.get(f"{place}{index}") for index in range(1, jax.process_count()))]
    keys.delete(place)
    return from_lead(lambda: judge(said))
