"""Write to TensorBoard and Weights & Biases on request; a run continues without them if they are missing."""

import importlib.util
import secrets
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bertjax.storage.atomic import write_text_atomic
from bertjax.training.monitor.console import Console


class TensorBoardWriter:
    """Event files through tensorboardX, in one folder for each stage, since steps of each stage start at 0."""

    def __init__(self, folder: Path, notes: Console | None) -> None:
        self.folder, self.notes, self.is_broken = folder, notes, False
        self.writers: dict[str, Any] = {}
        self.purge: dict[str, int] = {}
        self.before: set[str] | None = None

    def rewind(self, stages_before: Collection[str], stage: str, step: int) -> None:
        self.before, self.purge = set(stages_before), {stage: step + 1}

    def write_scalars(self, stage: str, step: int, group: str, values: Mapping[str, float]) -> None:
        if self.is_broken:
            return
        writer = self.writers.get(stage)
        if writer is None:
            try:
                from tensorboardX import SummaryWriter  # imports torch where it is installed, which takes seconds
            except ImportError as error:  # installed, but not what it needs
                self.is_broken = True
                if self.notes is not None:
                    self.notes.note(f"TensorBoard is off: tensorboardX cannot be imported ({str(error)[:100]})")
                return
            # Events at or after the purge step are hidden: for a stage after the restored one all of them.
            purge = None if self.before is None or stage in self.before else self.purge.get(stage, 0)
            unique = f".{time.time_ns()}"  # tensorboardX names files by the second
            writer = SummaryWriter(str(self.folder / stage), purge_step=purge, filename_suffix=unique)
            self.writers[stage] = writer
        for key, value in values.items():
            writer.add_scalar(f"{group}/{key}", value, step)
        writer.flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class WandbWriter:
    """Weights & Biases, with a step metric for each stage, so that a resumed run may write a step again."""

    def __init__(self, run: Any, stages: list[str]) -> None:
        self.run = run
        for stage in stages:
            run.define_metric(f"{stage}/step")
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def write_scalars(self, stage: str, step: int, group: str, values: Mapping[str, float]) -> None:
        self.run.log({f"{stage}/step": step} | {f"{stage}/{group}/{key}": value for key, value in values.items()})

    def close(self) -> None:
        self.run.finish()


def open_tensorboard(folder: Path, notes: Console | None) -> TensorBoardWriter | None:
    """Open TensorBoard; None, with a note to `notes`, if the package is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        if notes is not None:
            notes.note("TensorBoard is off: tensorboardX is not installed (pip install 'bertjax[tensorboard]')")
        return None
    return TensorBoardWriter(folder, notes)


def open_wandb(run_dir: Path, config: Mapping[str, Any], stages: list[str], notes: Console) -> WandbWriter | None:
    """Open Weights & Biases, continuing the run of an earlier process; None with a note if it is missing or fails."""
    try:
        import wandb
    except ImportError:
        notes.note("Weights & Biases is off: wandb is not installed (pip install 'bertjax[wandb]')")
        return None
    saved = run_dir / "wandb_id"
    try:
        run_id = saved.read_text().strip() if saved.exists() else secrets.token_hex(4)
        run_dir.mkdir(parents=True, exist_ok=True)
        run = wandb.init(name=run_dir.name, id=run_id, resume="allow", dir=str(run_dir), config=dict(config))
        write_text_atomic(saved, run_id + "\n")
        return WandbWriter(run, stages)
    except Exception as error:  # no login, no network: training continues
        reason = str(error).strip().splitlines()
        notes.note(f"Weights & Biases is off: {reason[0] if reason else type(error).__name__} (try WANDB_MODE=offline)")
        return None
