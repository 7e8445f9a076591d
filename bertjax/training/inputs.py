"""Check all inputs of a command by their first records and report all problems at once."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bertjax.config.loading import input_paths
from bertjax.config.loading.error_messages import config_error
from bertjax.config.schema.run import Config, Stage
from bertjax.data.sources.registry import record_of
from bertjax.data.tokenizers import locate
from bertjax.data.tokenizers.load import AnyTokenizer
from bertjax.errors import UserError
from bertjax.parallel import mesh
from bertjax.parallel.mesh_shape import find_problems as find_mesh_problems
from bertjax.storage import remote
from bertjax.storage.files import UNSUPPORTED, UNSUPPORTED_SUFFIXES, expand_globs, resolve_path
from bertjax.storage.pretrained import hub_name
from bertjax.training import preflight
from bertjax.training.checkpoint.stage_files import StageFiles, run_stages
from bertjax.training.checkpoint.teacher import TeacherFiles
from bertjax.training.run_context import load_tokenizer


class Checked(NamedTuple):
    """What the checks have read: the classes of each stage as far as known, and the tokenizer if it is not trained."""

    classes: preflight.StageClasses
    tokenizer: AnyTokenizer | None


def check_run(stages: Sequence[StageFiles]) -> Checked:
    """Check the data, the tokenizer, the mesh, and `init_from` and evaluations of unfinished stages, for `train`.

    Raises UserError with a line for each problem: `stages.qa.evaluate.squad.data.source.0.files: ...`.
    """
    config, base = stages[0].config, stages[0].base
    begun = [files.has_begun for files in stages]
    to_do = config.stages[max((i for i, has_begun in enumerate(begun) if has_begun), default=0) :]
    starts = [*_init_sources(files for files, has_begun in zip(stages, begun, strict=True) if not has_begun)]
    starts += _teachers(files for files in stages if not files.is_past)
    problems = [*_run_dir(config.run_dir), *_prepared_dir(config), *starts, *_data(config, base)]
    problems += _evaluations(to_do, base)
    begun_stages = {files.index for files, has_begun in zip(stages, begun, strict=True) if has_begun}
    lines, classes = preflight.find_data_problems(stages, preflight.broken_tasks(problems), begun_stages)
    lines = [*preflight.find_tokenizer_problems(config, base, problems), *lines]
    scores = [*preflight.find_score_problems(config)]
    tokenizer, misfit = _fitting_tokenizer(config, base, problems)
    lines = [*misfit, *_mesh(config, to_do), *lines]
    _raise_problems([*problems, *lines, *_evaluated(to_do, base, problems, classes), *scores])
    return Checked(classes, tokenizer)


def check_prepare(config: Config, base: Path) -> None:
    """Check the data of every stage, the tokenizer and the evaluations' data, for `prepare`. Raises UserError."""
    problems = [*_prepared_dir(config), *_data(config, base), *_evaluations(config.stages, base)]
    stages = run_stages(config, base)
    lines, classes = preflight.find_data_problems(stages, preflight.broken_tasks(problems))
    lines = [*preflight.find_tokenizer_problems(config, base, problems), *lines]
    _raise_problems([*problems, *lines, *_evaluated(config.stages, base, problems, classes)])


def check_data(config: Config, base: Path) -> None:
    """Check the training data of every stage and the tokenizer, for other commands. Raises UserError."""
    problems = [*_data(config, base)]
    lines, _ = preflight.find_data_problems(run_stages(config, base), preflight.broken_tasks(problems))
    _raise_problems([*problems, *lines])


def check_evaluations(stage: Stage, base: Path, name: str | None = None) -> None:
    """Check the data of a stage's evaluations, or of the one called `name`. Raises UserError."""
    problems = [*_evaluations([stage], base, name)]
    _raise_problems([*problems, *_evaluated([stage], base, problems, {}, name)])


def check_comparison(config: Config, base: Path, all_stages: bool) -> None:
    """Check what all stages, or only the last one, read, for `compare`. Raises UserError."""
    stages = config.stages if all_stages else config.stages[-1:]
    starts = _init_sources(files for files in run_stages(config, base) if files.stage in stages)
    data = _data(config.model_copy(update={"stages": stages}), base)
    problems = [*_run_dir(config.run_dir), *starts, *data, *_evaluations(stages, base)]
    own = [files for files in run_stages(config, base) if files.stage in stages]
    lines, _ = preflight.find_data_problems(own, preflight.broken_tasks(problems))
    _raise_problems([*problems, *lines, *_evaluated(stages, base, problems, {})])


def has_begun(config: Config) -> bool:
    """Whether a checkpoint of the last stage is on disk."""
    return run_stages(config, Path())[-1].has_begun


def _raise_problems(problems: Iterable[str]) -> None:
    if lines := list(problems):
        raise config_error(lines)


def _evaluations(stages: Sequence[Stage], base: Path, name: str | None = None) -> Iterator[str]:
    for key, source in input_paths.evaluation_sources(stages, name):
        yield from _source(key, source, base)


def _evaluated(
    stages: Sequence[Stage],
    base: Path,
    problems: Sequence[str],
    classes: preflight.StageClasses,
    name: str | None = None,
) -> Iterator[str]:
    """Check the first records of the evaluations whose files are there."""
    broken = preflight.broken_tasks(problems)
    for stage in stages:
        for evaluation in stage.evaluate:
            key = input_paths.evaluation_task(stage, evaluation)
            if name in (None, evaluation.name) and key not in broken:
                yield from preflight.find_evaluation_problems(key, evaluation, base, classes.get(stage.name))


def _fitting_tokenizer(config: Config, base: Path, problems: Sequence[str]) -> tuple[AnyTokenizer | None, list[str]]:
    """Load the tokenizer, unless it is trained or fetched first of all -> (it, what is wrong with its kind or size)."""
    path = config.tokenizer.path
    if path is None or remote.is_remote(path) or any(line.startswith("tokenizer.path:") for line in problems):
        return None, []
    try:
        return load_tokenizer(config, base), []
    except UserError as error:
        return None, [str(error) if str(error).startswith("model.") else f"tokenizer.path: {error}"]


def _mesh(config: Config, stages: Sequence[Stage]) -> list[str]:
    """Check that mesh and batches fit the devices of this run."""
    devices = mesh.all_devices()
    slices = mesh.count_slices(devices) if config.mesh.dcn == -1 else None
    return find_mesh_problems(config.mesh, stages, len(devices), slices, jax.process_count())


def _data(config: Config, base: Path) -> Iterator[str]:
    yield from _tokenizer(config.tokenizer, base)
    for key, source in input_paths.training_sources(config):
        yield from _source(key, source, base)


def _tokenizer(settings: Any, base: Path) -> Iterator[str]:
    if settings.path is None or remote.is_remote(settings.path):
        return  # a remote one is fetched first of all
    path = resolve_path(settings.path, base)
    if not path.exists() and hub_name(settings.path, base) is None:
        yield f"tokenizer.path: {path}: no such file or folder; relative names start at {base.resolve()}"
        return
    try:
        place = locate.locate(settings.path, base)
    except UserError as error:
        yield f"tokenizer.path: {error}"
        return
    if locate.find_tokenizer(place.path) is None:
        yield f"tokenizer.path: {place}: the folder holds none of {', '.join(locate.FILES)}; name a file"
    else:
        yield from _unreadable("tokenizer.path", [place.path])


def _source(key: str, source: Any, base: Path) -> Iterator[str]:
    record = record_of(source)
    if problem := record.find_problem(source, base):
        yield f"{key}.{getattr(source, 'paths', ('files',))[0]}: {problem}"
    key = f"{key}.files"
    for pattern in record.files(source):
        try:
            found = expand_globs([pattern], base)
        except UserError as error:
            yield f"{key}: {error}"
            continue
        yield from _unreadable(key, found)
        yield from (f"{key}: {p}: {p.suffix} {UNSUPPORTED}" for p in found if p.suffix in UNSUPPORTED_SUFFIXES)


def _unreadable(key: str, paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        if not remote.is_remote(path) and not os.access(path, os.R_OK):
            yield f"{key}: {path}: cannot be opened (permission denied); check its permissions"


def _prepared_dir(config: Config) -> Iterator[str]:
    """Check that prepared data can be written where `run.prepared_dir` says."""
    if config.run.prepared_dir and not remote.is_remote(config.run.prepared_dir):
        yield from _unwritable("run.prepared_dir", resolve_path(config.run.prepared_dir, Path.cwd()))


def _init_sources(stages: Iterable[StageFiles]) -> Iterator[str]:
    """Check that the folder of `init_from` holds a model or a checkpoint; `validate` checks that it fits."""
    for files in stages:
        if files.starts_from_previous:
            continue
        try:
            _ = files.init_checkpoints
        except UserError as error:
            yield f"stages.{files.stage.name}.init_from: {error}"


def _teachers(stages: Iterable[StageFiles]) -> Iterator[str]:
    """Check that the teachers are there; `stage.plan` checks that they fit."""
    for files in stages:
        if files.stage.distillation is not None:
            try:
                TeacherFiles(files)
            except UserError as error:
                yield str(error)


def _run_dir(run_dir: Path) -> Iterator[str]:
    """Check that the run folder can be created or written."""
    yield from _unwritable("run.root", run_dir)


def _unwritable(key: str, wanted: Path) -> Iterator[str]:
    there = next(folder for folder in (wanted, *wanted.absolute().parents) if folder.exists())
    if not there.is_dir():
        yield f"{key}: {there}: is a file; name a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"{key}: {there}: cannot be written (permission denied); name another folder"
