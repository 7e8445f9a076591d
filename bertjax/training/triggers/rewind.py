"""Go back to an earlier checkpoint after many spikes, and leave out the batches that led to them (PaLM, section 5.1).

The batches left out are in `rewinds.json` of the run folder, so that every later start reads the same ones: from step
`step` of a stage on, its batches are those `batches` further on.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bertjax.config.limits import MAX_COUNT
from bertjax.config.schema.training import Rewind
from bertjax.errors import DivergedError, StoppedSafely, StorageError
from bertjax.parallel.multihost.primary import run_on_primary
from bertjax.storage.atomic import write_json_atomic
from bertjax.storage.text import read_bytes
from bertjax.training.checkpoint.manager import CheckpointManager

FILE_NAME = "rewinds.json"  # {stage: [[step, batches], ...]}
Rewinds = list[list[int]]  # of a stage


def read_rewinds(run_dir: Path, stage: str) -> Rewinds:
    """The rewinds of a stage so far, the same on every process. Raises StorageError for a damaged file."""
    return list(run_on_primary(lambda: _read(run_dir / FILE_NAME).get(stage, [])))


def batch_position(rewinds: Sequence[Sequence[int]]) -> Callable[[int], int]:
    """The number, in the data, of the batch that follows a step."""
    return lambda step: step + sum(batches for since, batches in rewinds if since <= step)


def left_out(rewinds: Rewinds, start: int) -> str | None:
    """What the steps after `start` leave out, in one line; None if nothing."""
    later = [f"{batches} batches after step {step}" for step, batches in rewinds if step >= start]
    return f"leaves out {', '.join(later)} ({FILE_NAME}: the run has gone back there after spikes)" if later else None


def rewind(
    rule: Rewind, checkpoints: CheckpointManager, run_dir: Path, stage: str, spikes: Sequence[int], now: int,
    record: Callable[[int, int], None],
) -> NoReturn:  # fmt: skip
    """Move the checkpoints from the first of the `spikes` on aside, write which batches are left out, and end the run.

    record: is called with the step of the checkpoint to continue from and the number of batches. Raises StoppedSafely,
    or DivergedError after `rule.most` rewinds or without an earlier checkpoint; a collective.
    """
    where = f"stage '{stage}' step {now}: {len(spikes)} steps since step {spikes[0]} were spikes"
    before = read_rewinds(run_dir, stage)
    if len(before) >= rule.most:
        raise DivergedError(f"{where}, after {len(before)} rewinds; lower the learning rate or look at the data")
    checkpoints.wait()
    target = run_on_primary(lambda: _target(checkpoints.committed_steps(), spikes[0], rule.back))
    if target is None:
        raise DivergedError(
            f"{where}, and there is no checkpoint from before that; lower the learning rate or lengthen the warm-up"
        )
    batches = now - target + rule.skip
    checkpoints.set_aside(target + 1, f"a rewind to step {target}")  # first: without the file the spikes come again
    run_on_primary(lambda: _write(run_dir / FILE_NAME, stage, [*before, [target, batches]]))
    record(target, batches)
    raise StoppedSafely(
        f"{where}: back to step {target}, and the next {batches} batches are left out; run the same command again"
    )


def _target(steps: Sequence[int], first: int, back: int) -> int | None:
    """The newest checkpoint `back` steps before the first spike, else the newest before it."""
    earlier = [step for step in steps if step < first]
    return next((step for step in reversed(earlier) if step <= first - back), earlier[0] if earlier else None)


def _read(path: Path) -> dict[str, Rewinds]:
    try:
        found = json.loads(read_bytes(path))
        rewinds = {stage: [[step, batches] for step, batches in some] for stage, some in found.items()}
        numbers = [number for some in rewinds.values() for one in some for number in one]
        if not all(type(number) is int and 0 <= number <= MAX_COUNT for number in numbers):
            raise ValueError("a step or a number of batches is no count")
        return rewinds
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{path}: damaged ({error}); it says which batches this run leaves out") from None


def _write(path: Path, stage: str, rewinds: Rewinds) -> None:
    try:
        write_json_atomic(path, _read(path) | {stage: rewinds}, durable=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
