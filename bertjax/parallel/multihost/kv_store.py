"""The key-value store of jax's coordinator, for messages between processes without devices and time limits."""

from typing import Any

import jax

PREFIX = "bertjax/"
WAIT_MS = 10_000  # of one wait; signals are handled between two of them


def client() -> Any:
    """jax's coordinator client; None in a single-process job."""
    from jax._src import distributed  # jax has no public name for it; Orbax and Flax use this one

    return distributed.global_state.client


def process_index() -> int:
    """The number of this process, without starting the devices as jax.process_index() does."""
    from jax._src import distributed

    return distributed.global_state.process_id


def put(key: str, value: str) -> None:
    """Set a key. Raises JaxRuntimeError if it exists or the coordinator is gone."""
    client().key_value_set(PREFIX + key, value)


def get(key: str) -> str:
    """Wait for a key. Raises JaxRuntimeError if the coordinator is gone."""
    while True:
        try:
            return client().blocking_key_value_get(PREFIX + key, WAIT_MS)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise


def try_get(key: str, prefix: str = PREFIX) -> str | None:
    """The value of a key, or None. Raises JaxRuntimeError if the coordinator is gone."""
    try:
        return client().key_value_try_get(prefix + key)
    except jax.errors.JaxRuntimeError as error:
        if str(error).startswith("NOT_FOUND"):
            return None
        raise


def delete(key: str) -> None:
    """Delete a key, or all keys with this prefix if it ends in a slash."""
    client().key_value_delete(PREFIX + key)
