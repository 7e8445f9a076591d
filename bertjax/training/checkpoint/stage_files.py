"""Find, once, the files of a stage: its own checkpoints and the source of its first parameters."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bertjax.config.schema.run import Config, Stage
from bertjax.errors import UserError
from bertjax.training.checkpoint.locate import find, stage_folder
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
        return CheckpointReader(stage_folder(self.config.run_dir, self.index, self.stage.name))

    @property
    def has_begun(self) -> bool:
        return bool(self.checkpoints.committed_steps())

    @property
    def init_source(self) -> str:
        """Where the stage starts from: "scratch", "previous" or a folder."""
        return init_source(self.stage, self.index)

    @cached_property
    def init_folder(self) -> Path | None:
        """The folder that `init_from` names; None for scratch and previous."""
        return None if self.init_source in ("scratch", "previous") else self.base / Path(self.init_source).expanduser()

    @property
    def init_weights(self) -> Path | None:
        """`init_folder` if it holds Hugging Face weights (a config.json)."""
        return self.init_folder if self.init_folder and (self.init_folder / "config.json").is_file() else None

    @cached_property
    def init_checkpoints(self) -> CheckpointReader | None:
        """The checkpoint that the stage starts from; None for scratch and Hugging Face weights.

        Raises UserError when the folder of `init_from` holds neither weights nor a checkpoint.
        """
        if self.init_source == "previous":
            return (self.previous or StageFiles(self.config, self.index - 1, self.base)).checkpoints
        return None if self.init_folder is None or self.init_weights else CheckpointReader(find(self.init_folder))

    @property
    def init_name(self) -> str:
        """What the stage starts from, in messages."""
        previous = self.init_source == "previous"
        return f"stage '{self.config.stages[self.index - 1].name}'" if previous else f"{self.init_folder}"

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
