"""Check that all inputs of a command exist and report all problems at once; contents and data set hubs are not read."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bertjax.config.loading import input_paths
from bertjax.config.loading.error_messages import config_error
from bertjax.config.schema.run import Config, Stage
from bertjax.data.sources.registry import record_of
from bertjax.data.tokenizers import load
from bertjax.errors import UserError
from bertjax.storage import remote
from bertjax.storage.files import UNSUPPORTED, UNSUPPORTED_SUFFIXES, expand_globs, resolve_path
from bertjax.training.checkpoint.stage_files import StageFiles, run_stages


def check_run(stages: Sequence[StageFiles]) -> None:
    """Check the data, the tokenizer, and `init_from` and evaluations of unfinished stages, for `train`.

    Raises UserError with a line for each problem: `stages.qa.evaluate.squad.data.source.0.files: ...`.
    """
    config, base = stages[0].config, stages[0].base
    begun = [files.has_begun for files in stages]
    to_do = config.stages[max((i for i, has_begun in enumerate(begun) if has_begun), default=0) :]
    starts = _init_sources(files for files, has_begun in zip(stages, begun, strict=True) if not has_begun)
    _raise_problems([*_run_dir(config.run_dir), *starts, *_data(config, base), *_evaluations(to_do, base)])


def check_prepare(config: Config, base: Path) -> None:
    """Check the data of every stage, the tokenizer and the evaluations' data, for `prepare`. Raises UserError."""
    _raise_problems([*_data(config, base), *_evaluations(config.stages, base)])


def check_data(config: Config, base: Path) -> None:
    """Check the training data of every stage and the tokenizer, for other commands. Raises UserError."""
    _raise_problems(_data(config, base))


def check_evaluations(stage: Stage, base: Path, name: str | None = None) -> None:
    """Check the data of a stage's evaluations, or of the one called `name`. Raises UserError."""
    _raise_problems(_evaluations([stage], base, name))


def check_comparison(config: Config, base: Path, all_stages: bool) -> None:
    """Check what all stages, or only the last one, read, for `compare`. Raises UserError."""
    stages = config.stages if all_stages else config.stages[-1:]
    starts = _init_sources(files for files in run_stages(config, base) if files.stage in stages)
    data = _data(config.model_copy(update={"stages": stages}), base)
    _raise_problems([*_run_dir(config.run_dir), *starts, *data, *_evaluations(stages, base)])


def has_begun(config: Config) -> bool:
    """Whether a checkpoint of the last stage is on disk."""
    return run_stages(config, Path())[-1].has_begun


def _raise_problems(problems: Iterable[str]) -> None:
    if lines := list(problems):
        raise config_error(lines)


def _evaluations(stages: Sequence[Stage], base: Path, name: str | None = None) -> Iterator[str]:
    for key, source in input_paths.evaluation_sources(stages, name):
        yield from _source(key, source, base)


def _data(config: Config, base: Path) -> Iterator[str]:
    yield from _tokenizer(config.tokenizer, base)
    for key, source in input_paths.training_sources(config):
        yield from _source(key, source, base)


def _tokenizer(settings: Any, base: Path) -> Iterator[str]:
    if settings.path is None or remote.is_remote(settings.path):
        return  # a remote one is fetched first of all
    path = resolve_path(settings.path, base)
    if not path.exists():
        yield f"tokenizer.path: {path}: no such file or folder; relative names start at {base.resolve()}"
    elif path.is_dir() and not any((path / name).is_file() for name in load.FILES):
        yield f"tokenizer.path: {path}: the folder holds none of {', '.join(load.FILES)}; name a file"
    else:
        yield from _unreadable("tokenizer.path", [path])


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


def _init_sources(stages: Iterable[StageFiles]) -> Iterator[str]:
    """Check that the folder of `init_from` holds a model or a checkpoint; `validate` checks that it fits."""
    for files in stages:
        try:
            _ = files.init_checkpoints
        except UserError as error:
            yield f"stages.{files.stage.name}.init_from: {error}"


def _run_dir(run_dir: Path) -> Iterator[str]:
    """Check that the run folder can be created or written."""
    there = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not there.is_dir():
        yield f"run.root: {there}: is a file; name a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"run.root: {there}: cannot be written (permission denied); name another folder"
