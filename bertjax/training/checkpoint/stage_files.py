"""Find, once, the files of a stage: its own checkpoints and the source of its first parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bertjax.config.loading.pretrained import locate_model
from bertjax.config.schema.run import Config, Stage
from bertjax.errors import StorageError, UserError
from bertjax.storage import pretrained, remote
from bertjax.storage.pretrained import Pretrained
from bertjax.training.checkpoint.locate import CheckpointRef, find, stage_folder
from bertjax.training.checkpoint.reader import CheckpointReader


@dataclass(frozen=True)
class StageFiles:
    """The files of stage `index` of a run; relative paths start at `base`."""

    config: Config
    index: int
    base: Path
    previous: "StageFiles | None" = None

    @property
    def stage(self) -> Stage:
        return self.config.stages[self.index]

    @cached_property
    def checkpoints(self) -> CheckpointReader:
        """The stage's own checkpoints."""
        return CheckpointReader(stage_folder(self.config.run_place, self.index, self.stage.name))

    @property
    def has_begun(self) -> bool:
        return bool(self.checkpoints.committed_steps())

    @property
    def init_source(self) -> str:
        """Where the stage starts from: "scratch", "previous", "best" (of the previous stage) or a folder."""
        return init_source(self.stage, self.index)

    @property
    def starts_from_previous(self) -> bool:
        """Whether the stage starts from a checkpoint of the previous stage."""
        return self.init_source in ("previous", "best")

    @cached_property
    def init_place(self) -> Pretrained | None:
        """What `init_from` names, fetched if it is not on this machine; None for scratch and previous.

        Raises UserError for a name that is neither a folder nor a model that can be fetched.
        """
        return (
            None if self.init_source in ("scratch", "previous", "best") else locate_model(self.init_source, self.base)
        )

    @property
    def init_folder(self) -> Path | None:
        """The folder, on this machine, of what `init_from` names."""
        return self.init_place.path if self.init_place else None

    @property
    def init_weights(self) -> Path | None:
        """`init_folder` if it holds Hugging Face weights (a config.json)."""
        return self.init_folder if self.init_folder and (self.init_folder / "config.json").is_file() else None

    @property
    def init_checkpoints(self) -> CheckpointReader | None:
        """The checkpoint that the stage starts from; None for scratch and Hugging Face weights.

        Raises UserError when the folder of `init_from` holds neither weights nor a checkpoint; for `best` also when the
        previous stage has no scores yet.
        """
        if not self.starts_from_previous:
            return self._named_checkpoints
        previous = self.previous or StageFiles(self.config, self.index - 1, self.base)
        if self.init_source == "previous":
            return previous.checkpoints
        score = self.config.best_score(previous.stage)
        assert score is not None, "the configuration is checked"
        mode = self.config.run.checkpoint.best_mode
        folder = previous.checkpoints.folder  # a new reader: its scores have changed since the run began
        return CheckpointReader(CheckpointRef(folder, CheckpointReader(folder).best_step(score, mode)))

    @cached_property
    def _named_checkpoints(self) -> CheckpointReader | None:
        if self.init_place is None or self.init_weights:
            return None
        with pretrained.name_in_errors(self.init_place):
            return CheckpointReader(find(self.init_place.path))

    @cached_property
    def teacher_place(self) -> Pretrained | None:
        """What `distillation.teacher` names, fetched if it is not on this machine; None without distillation.

        Raises UserError for a name that is neither a folder nor a model that can be fetched.
        """
        rule = self.stage.distillation
        return None if rule is None else locate_model(rule.teacher, self.base)

    @property
    def is_past(self) -> bool:
        """Whether a later stage has begun, so that this one is not trained any more."""
        later = range(self.index + 1, len(self.config.stages))
        return any(StageFiles(self.config, index, self.base).has_begun for index in later)

    @property
    def init_name(self) -> str:
        """What the stage starts from, in messages."""
        best = "the best checkpoint of " if self.init_source == "best" else ""
        previous = self.starts_from_previous
        return f"{best}stage '{self.config.stages[self.index - 1].name}'" if previous else f"{self.init_place}"

    @property
    def adapter_base(self) -> Path | None:
        """The folder that `adapter_base` names."""
        return self.base / Path(self.stage.adapter_base).expanduser() if self.stage.adapter_base else None


def init_source(stage: Stage, index: int) -> str:
    return stage.init_from or ("previous" if index else "scratch")


def init_error(stage: Stage, error: UserError) -> UserError:
    return UserError(f"stage '{stage.name}': init_from: {error}")


def run_stages(config: Config, base: Path) -> list[StageFiles]:
    """The files of each stage of a run."""
    stages: list[StageFiles] = []
    for index in range(len(config.stages)):
        stages.append(StageFiles(config, index, base, stages[-1] if stages else None))
    return stages


def newest_meta(stages: Sequence[StageFiles]) -> Mapping[str, Any] | None:
    """The meta data of the run's newest sound checkpoint, compared with their digest; None without one."""
    for files in reversed(stages):
        try:
            if files.has_begun:
                return files.checkpoints.meta()
        except StorageError:  # every step is damaged: restoring the stage reports it
            continue
    return None


def hub_models(config: Config, stages: Sequence[StageFiles]) -> dict[str, str]:
    """The models on the Hub that a run reads now: {key of the configuration: name@commit}."""
    found = {f"stages.{one.stage.name}.init_from": one.init_place for one in stages if not one.has_begun}
    found |= {f"stages.{one.stage.name}.distillation.teacher": one.teacher_place for one in stages if not one.is_past}
    path = config.tokenizer.path
    if path is not None and not remote.is_remote(path):
        found["tokenizer.path"] = pretrained.locate(path, stages[0].base, weights=False)
    return {key: str(place) for key, place in found.items() if place is not None and place.commit}
