"""The few words that processes exchange without a device: the key-value store of jax's coordinator.

Nothing here starts a computation, so it works before the first one, and a wait may be as long as it takes: a
collective on the devices has limits of its own.
"""

from typing import Any

import jax

PREFIX = "bertjax/"
WAIT_MS = 10_000  # milliseconds of one wait; between two of them the process can be reached by a signal


def client() -> Any:
    """jax's client of the coordinator; None in a job of one process."""
    from jax._src import distributed  # jax has no public name for it; Orbax and Flax use this one

    return distributed.global_state.client


def process_index() -> int:
    """The number of this process, known as soon as it has joined; jax.process_index() would start the devices."""
    from jax._src import distributed

    return distributed.global_state.process_id


def put(key: str, value: str) -> None:
    """Raises JaxRuntimeError when the key is there already, or when the coordinator is gone."""
    client().key_value_set(PREFIX + key, value)


def get(key: str) -> str:
    """Waits for the key. Raises JaxRuntimeError when the coordinator is gone."""
    while True:
        try:
            return client().blocking_key_value_get(PREFIX + key, WAIT_MS)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise


def try_get(key: str, prefix: str = PREFIX) -> str | None:
    """The key's value, or None. Raises JaxRuntimeError when the coordinator is gone."""
    try:
        return client().key_value_try_get(prefix + key)
    except jax.errors.JaxRuntimeError as error:
        if str(error).startswith("NOT_FOUND"):
            return None
        raise


def delete(key: str) -> None:
    """Removes the key, or with a slash at its end all below it."""
    client().key_value_delete(PREFIX + key)
