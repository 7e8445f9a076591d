"""What one preparation is about: handed from `prepare` to all that plans and makes its shards."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bertjax.config.schema.data import Task
from bertjax.data.jobs.jobs import LocalRunner, Runner
from bertjax.data.sources.class_names import ClassSpec

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer

ReportFn = Callable[[str], None]


@dataclass(frozen=True)
class PrepareContext:
    """What one call of `prepare` is about. `folder` holds what lies between the sources and the store."""

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

    def progress(self, what: str) -> Callable[[int], None]:
        """Reports a count, at most every five seconds."""
        last = time.monotonic()

        def update(count: int) -> None:
            nonlocal last
            if time.monotonic() - last > 5:
                last = time.monotonic()
                self.report(f"{self.name}: {count:,} {what}")

        return update
