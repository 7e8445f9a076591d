"""How each kind of task becomes unpacked rows: its source read and checked, and cut into jobs for the shards."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertjax.data.jobs.jobs import Shuffle
from bertjax.data.jobs.shards import Blocks, RowSums

TARGET_SHARDS = 64  # a store has about this many, within these sizes:
MIN_SHARD_TOKENS, MAX_SHARD_TOKENS = 1 << 18, 1 << 23
MIN_POOL_TOKENS = 1 << 20  # less work than this is done before worker processes have started
EXAMPLES_PER_JOB = 4096  # questions or records in one shard
MIN_POOL_EXAMPLES = 4 * EXAMPLES_PER_JOB


def shard_tokens(total: int) -> int:
    """About how many tokens go into one shard; a function of the data alone."""
    return min(max(total // TARGET_SHARDS, MIN_SHARD_TOKENS), MAX_SHARD_TOKENS)


def needs_worker_pool(tokens: int) -> bool:
    return tokens > MIN_POOL_TOKENS


@dataclass(frozen=True)
class JobPlan:
    """How the unpacked rows of a task are made: arguments of `write_shards`, and what is known about the data.

    `facts` may be filled while `arguments` are consumed.
    """

    make: Callable[..., Blocks]
    shared: Any
    arguments: Iterable[Any]
    dtype: np.dtype
    use_pool: bool
    facts: dict[str, Any]
    shuffle: Shuffle | None = None
    row_sums: RowSums | None = None
