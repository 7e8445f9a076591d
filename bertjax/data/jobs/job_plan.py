"""What a preparation is about (`PrepareContext`) and how a kind of preprocessing divides it into jobs (`JobPlan`)."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.config.schema.data import Task
from bertjax.data.jobs.jobs import LocalRunner, Runner, Shuffle
from bertjax.data.jobs.text_counts import TextCounts
from bertjax.data.sources.class_names import ClassSpec

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer

ReportFn = Callable[[str], None]
Blocks = Iterator[np.ndarray]  # of rows; a job makes one shard of them
CountedBlocks = Generator[np.ndarray, None, TextCounts]  # returns what it has counted of the texts

# Raise JOBS_FORMAT when these or other code divide the work differently (see scratch_dir).
TARGET_SHARDS = 64  # a store has about this many, within these sizes:
MIN_SHARD_TOKENS, MAX_SHARD_TOKENS = 1 << 18, 1 << 23
MIN_POOL_TOKENS = 1 << 20  # less work than this is done before worker processes have started
EXAMPLES_PER_JOB = 4096  # questions or records in one shard
MIN_POOL_EXAMPLES = 4 * EXAMPLES_PER_JOB


def shard_tokens(total: int) -> int:
    """About how many tokens go into one shard; a function of the data only."""
    return min(max(total // TARGET_SHARDS, MIN_SHARD_TOKENS), MAX_SHARD_TOKENS)


def needs_worker_pool(tokens: int) -> bool:
    return tokens > MIN_POOL_TOKENS


@dataclass(frozen=True)
class PrepareContext:
    """The arguments of one call of `prepare`. `folder` holds the files between the sources and the store."""

    task: Task
    name: str
    tokenizer: "Tokenizer"
    seed: int
    base: Path
    folder: Path
    workers: int
    classes: ClassSpec | None
    report: ReportFn
    runner: Runner = LocalRunner()


@dataclass(frozen=True)
class JobPlan:
    """Jobs that make the shards of a store, one each. `make` and `row_sums` are module-level functions."""

    make: Callable[..., Blocks]  # (shared, argument of a job) -> blocks of rows
    shared: Any  # sent to each process once
    arguments: Iterable[Any]
    dtype: np.dtype
    use_pool: bool
    facts: dict[str, Any]  # for `Store.meta`; may be filled while `arguments` are consumed
    shuffle: Shuffle | None = None  # brings to distributed jobs what others read from `shared` at random
    row_sums: Callable[[np.ndarray], dict[str, int]] | None = None  # counts to add up, of a block of rows
