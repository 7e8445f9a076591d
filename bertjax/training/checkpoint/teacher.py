"""Read the teacher of a distilled stage: a run, a checkpoint or a Hugging Face model of another size."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax

from bertjax.config.loading.pretrained import read_model
from bertjax.config.schema.run import Stage
from bertjax.errors import UserError
from bertjax.interop import hf_folder
from bertjax.models import families
from bertjax.models.peft_options import PeftOptions
from bertjax.objectives import registry as objectives
from bertjax.storage import pretrained
from bertjax.training.checkpoint import adapters, warmstart
from bertjax.training.checkpoint.label_mapping import InitClasses, StageLabels, classifier_in
from bertjax.training.checkpoint.locate import find
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.checkpoint.stage_files import StageFiles
from bertjax.training.program import Teacher, TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params
from bertjax.training.untrained_heads import all_heads, label_head


def planned_teacher(stage: Stage) -> Teacher | None:
    """The teacher of a stage for a plan, which needs its sizes alone. Raises UserError naming the option."""
    if stage.distillation is None:
        return None
    try:
        return Teacher(read_model(stage.distillation.teacher))
    except UserError as error:
        raise _error(stage, error) from None


class LoadedTeacher(NamedTuple):
    """The parameters of a teacher, and the entry `teacher` in the meta data of the checkpoints of its stage."""

    params: Params
    record: dict[str, str]

    def check_same(self, stage: Stage, meta: Mapping[str, Any]) -> None:
        """Raise UserError if a stage with these meta data was begun with another teacher."""
        before = meta.get("teacher", self.record)
        if before["digest"] != self.record["digest"]:
            raise _error(
                stage,
                f"{self.record['name']} has other weights than when this stage began (then {before['name']}); name the "
                "same step, or give this run another run.name",
            )

    @property
    def line(self) -> str:
        """What is said when a stage begins."""
        return f"teacher: {self.record['name']} ({sum(x.size for x in self.params.values()):,} parameters)"


class TeacherFiles:
    """The files of a stage's teacher. Raises UserError, naming the option, for a place that holds no model."""

    def __init__(self, files: StageFiles) -> None:
        self.stage, self.config = files.stage, files.config
        try:
            place = files.teacher_place
            assert place is not None, "the stage is distilled"
            self.place = place
            with pretrained.name_in_errors(place):
                weights = (place.path / "config.json").is_file()
                self.checkpoints = None if weights else CheckpointReader(find(place.path))
                self.model = self.checkpoints.config().model if self.checkpoints else read_model(place.path)
        except UserError as error:
            raise _error(self.stage, error) from None

    @cached_property
    def heads(self) -> tuple[str, ...]:
        if self.checkpoints is not None:
            return all_heads(self.checkpoints.meta())
        return families.record_of(self.model).find_heads(hf_folder.load_params(self.place.path, self.model))

    @property
    def teacher(self) -> Teacher:
        """Its model, with the layers that its own training added."""
        peft = PeftOptions() if self.checkpoints is None else adapters.checkpoint_peft(self.checkpoints)
        return Teacher(self.model, peft)

    def check(self) -> None:
        """Raise UserError where its sizes or heads do not fit the stage, whatever the labels are."""
        if problem := self._size_problem() or self._head_problem():
            raise _error(self.stage, f"{self.place}: {problem}")

    def _width(model: Any) -> int:
    return int(getattr(model, "hidden_size", 0) or model.d_model)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _error(stage: Stage, error: UserError | str) -> UserError:
    return UserError(f"stages.{stage.name}.distillation.teacher: {error}")
