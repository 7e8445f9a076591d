"""What the predictors share: opening a checkpoint, its heads, and notes about texts that are cut."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from bertjax.data.jobs import text_counts
from bertjax.errors import UserError, brief
from bertjax.evaluation.inference.length_batches import Forward, LengthBatches
from bertjax.evaluation.restore import RestoredCheckpoint, restore
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter

Checkpoint = str | Path | RestoredCheckpoint


class Predictor:
    """A restored checkpoint and its compiled programs for one task; `batch_size`: rows computed at once, at most.

    Without a `batch_size` a number is chosen for the device.
    """

    head: ClassVar[str | None] = None  # that the task needs

    def __init__(self, restored: RestoredCheckpoint, batch_size: int | None = None) -> None:
        """Raises UserError when the checkpoint cannot do the task."""
        if batch_size is not None:
            check_count("batch_size", batch_size)
        if self.head is not None:
            require_head(restored, self.head)
        self.restored, self.batch_size = restored, batch_size
        self.tokenizer, self.params = restored.ctx.tokenizer, restored.params
        self._counts: text_counts.TextCounts = {}
        self._limit: tuple[int, str] = (0, "")

    def length_batches(self, forward: Forward) -> LengthBatches:
        return LengthBatches(
            self.restored.program, forward, batch_size=self.batch_size, pad_id=self.tokenizer.pad_id
        )  # fmt: skip

    def count_tokens(self, ids: Sequence[Sequence[int]], room: int | None, why: str) -> None:
        """Count texts cut to `room` tokens, `why` says by whom, and unknown pieces; `print_notes` reports them."""
        counts = {"texts": text_counts.count(ids, room, self.tokenizer.unk_id)}
        self._counts = text_counts.merge_counts(self._counts, counts)
        self._limit = (room or 0, why)

    def print_notes(self) -> None:
        """Report on stderr what was counted since the last report: texts that were cut, unknown characters."""
        counts, self._counts = self._counts, {}
        if (n := counts.get("texts")) and n["cut"]:
            room, why = self._limit
            share = text_counts.share(n["tokens_cut"], n["tokens"])
            print_note(
                f"{n['cut']:,} of {n['texts']:,} texts cut to {room:,} tokens, {why} ({share} of all tokens lost)"
            )
            counts["texts"] = n | {"cut": 0}
        for line in text_counts.report_lines("note", counts, None):
            print_line(line)


def restore_for_prediction(
    path: str | Path, *, stage: str | None = None, step: int | None = None, best: str | None = None,
    device: Literal["cpu", "gpu", "tpu"] | None = None, dtype: Literal["float32", "bfloat16"] | None = None,
    base_model: str | Path | None = None,
) -> RestoredCheckpoint:  # fmt: skip
    """`restore` on the devices of one kind (default: the best one that jax has).

    Without `dtype` the run's `compute_dtype` holds; where that is `auto`, a CPU computes in float32 also if it could
    compute in bfloat16, so that predictions agree with other programs and do not depend on the batch.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"dtype: must be 'float32' or 'bfloat16' (got {dtype!r})")
    overrides = [f"run.compute_dtype={dtype}"] if dtype else []
    found = restore(
        path, stage=stage, step=step, best=best, overrides=overrides, base_model=base_model, devices=_devices(device)
    )
    if found.better is not None:
        print_note(found.better)
    compute = found.program.compute
    if found.ctx.config.run.compute_dtype == "auto" and compute.platform == "cpu":
        found = replace(
            found, program=replace(found.program, compute=replace(compute, dtype=jnp.dtype(jnp.float32)))
        )  # fmt: skip
    return found


def _devices(kind: str | None) -> list[jax.Device] | None:
    if kind is None:
        return None
    if kind not in ("cpu", "gpu", "tpu"):
        raise UserError(f"device: must be 'cpu', 'gpu' or 'tpu' (got {kind!r})")
    try:
        return jax.devices(kind)
    except RuntimeError as error:
        raise UserError(f"device: jax finds no {kind} ({brief(error)}); leave it out to take the best one") from None


def as_restored(checkpoint: Checkpoint, overrides: Sequence[str] = ()) -> RestoredCheckpoint:
    return checkpoint if isinstance(checkpoint, RestoredCheckpoint) else restore(checkpoint, overrides=overrides)


def restore_with_head(checkpoint: Checkpoint, head: str, overrides: Sequence[str] = ()) -> RestoredCheckpoint:
    """Restore a checkpoint that has this head, else UserError; `overrides` (key.path=value) change its config."""
    restored = as_restored(checkpoint, overrides)
    require_head(restored, head)
    return restored


def require_head(restored: RestoredCheckpoint, head: str) -> None:
    """Raise UserError when the checkpoint has no such head; note on stderr when its stage has not trained it."""
    if head not in restored.program.heads:
        raise UserError(
            f"{restored.where}: has no '{head}' head (it has: {', '.join(restored.program.heads) or 'none'}); "
            "name a checkpoint of a stage that trained one"
        )
    if head in restored.untrained_heads:
        how = f"stage '{restored.ctx.config.stages[restored.stage].name}' trained the encoder without the '{head}' head"
        print_note(f"{how}; the stage that trained it gives better predictions")


def print_note(line: str) -> None:
    print_line(f"note: {line}")


def print_line(line: str) -> None:
    if primary.is_primary():
        reporter.say(line)


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an int if it is an integer from `least` to `most`, NumPy's included; else UserError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        bound = f"of {least} or more" if least != 1 else "above 0"
        raise UserError(f"{name}: must be an integer {bound} (got {value!r})")
    if most is not None and int(value) > most:
        raise UserError(f"{name}: must be at most {most} (got {value!s:.40})")
    return int(value)


def check_number(name: str, value: Any) -> float | None:
    """`value` as a float if it is a finite number, NumPy's included, or None; else UserError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{name}: must be a finite number (got {value!r})")
    return float(value)


def quoted(text: str) -> str:
    """The start of a text for an error message, in ASCII."""
    return ascii(text[:60])


def flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return [item for items in lists for item in items]
