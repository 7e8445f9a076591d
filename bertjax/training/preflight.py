"""Checks what the data hold and what evaluations give, before anything is prepared; each problem is one line."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bertjax.config.loading import input_paths
from bertjax.config.schema import base as schema
from bertjax.config.schema.evaluation import Evaluation
from bertjax.config.schema.run import Config, Stage
from bertjax.data.pipeline.preview import find_text_problem, preview_task
from bertjax.data.pipeline.row_fields import find_mixing_problem
from bertjax.data.sources.class_names import ClassSpec
from bertjax.errors import BertjaxError, UserError
from bertjax.training.checkpoint import label_mapping
from bertjax.training.checkpoint.stage_files import StageFiles
from bertjax.training.untrained_heads import LABEL_HEADS, label_head

StageClasses = dict[str, ClassSpec | None]  # {stage: the classes of its data}; None where they are not known


@runtime_checkable
class EvaluationChecks(Protocol):
    """What the checks ask of the record of an evaluation kind (`evaluation.evaluators.registry`)."""

    # (section, base) -> what its data or this installation lack, a line each
    problems: Callable[[Any, Path], Iterable[str]]
    # (section, stage) -> the names of all scores that it can give; None where they are not known
    scores: Callable[[Any, Stage], Collection[str] | None]


def checks_of(evaluation: Evaluation) -> EvaluationChecks:
    return schema.record_of(evaluation, EvaluationChecks)  # type: ignore[type-abstract]


def find_tokenizer_problems(config: Config, base: Path, problems: Collection[str]) -> Iterator[str]:
    """Read the first text of the sources that a tokenizer is trained on; `problems`: of missing files."""
    sources = config.tokenizer.train_on if config.tokenizer.path is None else None
    for number, source in enumerate(sources or ()):
        key = f"tokenizer.train_on.{number}"
        if any(line.startswith(f"{key}.") for line in problems):
            continue
        if problem := find_text_problem(source, base):
            yield f"{key}: {problem}"


def find_data_problems(
    stages: Sequence[StageFiles], skip: Collection[str], begun: Collection[int] = ()
) -> tuple[list[str], StageClasses]:
    """Read the first records of the training data -> (problems, the classes of each stage).

    skip: keys of tasks whose files are missing; begun: indexes of stages with a checkpoint, which decides the classes.
    """
    problems: list[str] = []
    classes: StageClasses = {}
    for files in stages:
        if mixing := find_mixing_problem(files.config, files.stage):
            problems.append(f"stages.{files.stage.name}.data: {mixing}")
        tasks = input_paths.stage_tasks(files.config, files.stage)
        expected = None if files.index in begun else _expected_classes(files, stages[: files.index])
        found: ClassSpec | None = None
        for number, (key, task) in enumerate(tasks.items()):
            if key in skip:
                expected = found = None
                continue
            lines, named = preview_task(key, task, files.base, classes=expected)
            problems += lines
            if number == 0 and expected is not None:  # later tasks have the labels of the first
                found = named
                expected = named and replace(named, required=named.names is not None, keep_unlabeled=False)
        classes[files.stage.name] = found
    return list(dict.fromkeys(problems)), classes


def _expected_classes(files: StageFiles, before: Sequence[StageFiles]) -> ClassSpec | None:
    """The classes of the classifier of a stage; None where it may start from one whose names are not known yet."""
    count = getattr(files.stage.objective, "num_labels", None)
    head = label_head(files.stage.objective.heads)
    if head is None or count is None:
        return None
    if files.starts_from_previous and head not in files.stage.fresh and count != 1:
        if any(head in one.stage.objective.heads or one.init_folder is not None for one in before):
            return None
    elif not files.starts_from_previous:
        try:
            start = label_mapping.init_classes(files, None)
        except BertjaxError:  # reported by the check of init_from
            return None
        return ClassSpec.of_objective(files.stage.objective, start.names if start else None)
    return ClassSpec.of_objective(files.stage.objective)


def find_evaluation_problems(
    key: str, evaluation: Evaluation, base: Path, classes: ClassSpec | None = None
) -> Iterator[str]:
    """Read the first records of an evaluation's data. `key`: of its task; `classes`: those of the training data."""
    training = evaluation.preprocess is None  # the loss is that of rows as for training
    fitting = None if training else classes or ClassSpec(keep_unlabeled=True)
    if found := preview_task(key, evaluation.data, base, classes=fitting, training=training).problems:
        yield from found
        return
    try:
        yield from (f"{key.removesuffix('.data')}: {text}" for text in checks_of(evaluation).problems(evaluation, base))
    except UserError as error:
        yield f"{key.removesuffix('.data')}: {error}"


def find_score_problems(config: Config) -> Iterator[str]:
    """Check that evaluations can give the scores in `run.checkpoint.keep_best` and `early_stopping`."""
    given: dict[str, set[str] | None] = {}
    for stage in config.stages:
        for evaluation in stage.evaluate:
            scores, before = checks_of(evaluation).scores(evaluation, stage), given.get(evaluation.name, set())
            given[evaluation.name] = None if scores is None or before is None else {*before, *scores}
    wanted = [("run.checkpoint.keep_best", score) for score in config.run.checkpoint.best_metrics]
    rules = [(stage.name, stage.early_stopping) for stage in config.stages if stage.early_stopping]
    wanted += [(f"stages.{stage}.early_stopping.metric", rule.metric) for stage, rule in rules]
    for key, score in wanted:
        name, _, metric = score.partition("/")
        known = given.get(name)
        if known is not None and metric not in known:
            there = ", ".join(f"{name}/{one}" for one in sorted(known)) or "none"
            yield f"{key}: evaluation '{name}' gives no score '{metric}'; its scores are {there}"


def broken_tasks(problems: Iterable[str]) -> set[str]:
    """The keys of the tasks that problems of sources are about: `tasks.a` of `tasks.a.source.0.files: ...`."""
    heads = (line.split(":", 1)[0] for line in problems)
    return {head.partition(".source.")[0] for head in heads if ".source." in head}


def maybe_fresh(stage: Stage, classes: Mapping[str, ClassSpec | None]) -> tuple[str, ...]:
    """Heads whose shapes cannot be checked yet: a classifier starts fresh if its labels turn out to be others."""
    known = classes.get(stage.name)
    numbered = known is not None and known.names is None and known.count != 1
    return tuple(stage.fresh) if numbered else tuple(dict.fromkeys([*stage.fresh, *LABEL_HEADS]))
