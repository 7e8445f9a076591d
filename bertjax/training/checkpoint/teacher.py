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

    def _size_problem(self) -> str | None:
        """Vocabularies of logits, widths of vectors, positions of the rows."""
        teacher: Any = self.model
        model, rule = self.config.model, self.stage.distillation
        assert rule is not None
        if teacher.tokenizer != model.tokenizer or ("encoder" in teacher.stacks) != ("encoder" in model.stacks):
            return f"is a {teacher.family} model, which cannot teach a {model.family}"
        if {"mlm", "lm"} & set(self.stage.objective.heads) and teacher.vocab_size != model.vocab_size:
            return f"its vocab_size is {teacher.vocab_size}, model.vocab_size {model.vocab_size}: make them equal"
        width, own = _width(teacher), _width(model)
        if width != own and objectives.build(self.stage.objective).vectors is not None:
            return f"its vectors have {width} numbers, those of the model {own}: name a teacher of this hidden size"
        if width != own and rule.cosine_weight:
            return f"its hidden size is {width}, that of the model {own}: set distillation.cosine_weight=0"
        longest = max(task.preprocess.sequence_length for task in self.config.stage_tasks(self.stage).values())
        if teacher.max_length is not None and longest > teacher.max_length:
            return f"reads {teacher.max_length} tokens, sequence_length is {longest}"
        return None

    def _head_problem(self) -> str | None:
        section, rule = self.stage.objective, self.stage.distillation
        assert rule is not None
        if missing := [head for head in objectives.teacher_heads(section, rule) if head not in self.heads]:
            has = f"has the heads {', '.join(self.heads)}" if self.heads else "has no head"
            return f"{has}; objective {section.kind} needs a teacher with the head '{missing[0]}'"
        classes, objective = self._classes(), objectives.build(section)
        if classes is None:
            return None
        if classes.outputs != objective.num_labels:
            return f"its classifier has {classes.outputs} outputs, that of this stage {objective.num_labels}"
        if classes.multi_label != objective.multi_label:
            several = {True: "any number of labels", False: "one label"}
            return f"gives a text {several[classes.multi_label]}, this stage {several[objective.multi_label]}"
        return None

    def _classes(self) -> InitClasses | None:
        """Its classifier, if the objective reads one."""
        if label_head(self.stage.objective.heads) is None:
            return None
        return classifier_in(None if self.checkpoints else self.place.path, self.checkpoints, str(self.place))

    def check_tokenizer(self, ctx: RunContext) -> None:
        """Raise UserError for a teacher with another tokenizer."""
        try:
            with pretrained.name_in_errors(self.place):
                if self.checkpoints is not None:
                    warmstart.check_same_tokenizer(self.checkpoints, ctx)
                else:
                    warmstart.check_tokenizer(self.place.path, ctx)
            if ctx.tokenizer is not None and self.model.vocab_size < ctx.tokenizer.vocab_size:
                pieces = f"{self.model.vocab_size} rows for the {ctx.tokenizer.vocab_size} pieces of the tokenizer"
                raise UserError(f"{self.place}: has {pieces}; name a teacher with this tokenizer")
        except UserError as error:
            raise _error(self.stage, error) from None

    def check_labels(self, labels: StageLabels) -> None:
        """Raise UserError for a classifier with other class names, or the same in another order."""
        classes = self._classes()
        if classes is None or classes.names is None or labels.names is None or list(classes.names) == labels.names:
            return
        raise _error(
            self.stage,
            f"{self.place}: its classes are {_listed(classes.names)}, those of this stage {_listed(labels.names)}; "
            "set preprocess.labels to its classes in its order",
        )

    def load(self, ctx: RunContext, program: TrainProgram) -> LoadedTeacher:
        """Its parameters in their shards, float32. Raises like `CheckpointReader.restore`."""
        assert program.teacher is not None
        loaded: Mapping[str, Any]
        if self.checkpoints is None:
            loaded = hf_folder.load_params(self.place.path, self.model)
        else:
            loaded = adapters.restore_params(self.checkpoints, ctx)[1]
        shardings = program.teacher.param_shardings()
        params = {path: jax.device_put(loaded[path], where) for path, where in shardings.items()}
        return LoadedTeacher(params, {"name": str(self.place), "digest": adapters.params_digest(params)})


def load_teacher(ctx: RunContext, files: StageFiles, program: TrainProgram) -> LoadedTeacher | None:
    """The teacher of a program; None for a program without one."""
    return None if program.teacher is None else TeacherFiles(files).load(ctx, program)


def _width(model: Any) -> int:
    return int(getattr(model, "hidden_size", 0) or model.d_model)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _error(stage: Stage, error: UserError | str) -> UserError:
    return UserError(f"stages.{stage.name}.distillation.teacher: {error}")
