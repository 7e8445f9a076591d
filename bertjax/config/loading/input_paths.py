"""The data sources and paths that a configuration reads, each with its dotted key."""

from collections.abc import Iterator, Sequence
from typing import Any

from bertjax.config.schema.data import Task
from bertjax.config.schema.evaluation import Evaluation
from bertjax.config.schema.run import Config, Stage
from bertjax.storage.pretrained import hub_name


def training_sources(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield (`tasks.docs.source.0`, source) for all data that stages, or the tokenizer, are trained on."""
    if config.tokenizer.path is None:
        yield from _numbered("tokenizer.train_on", config.tokenizer.train_on or ())
    tasks: dict[str, Task] = {}
    for stage in config.stages:
        tasks |= stage_tasks(config, stage)
    for key, task in tasks.items():
        yield from _numbered(f"{key}.source", task.source)


def stage_tasks(config: Config, stage: Stage) -> dict[str, Task]:
    """{key: task} of all data that a stage is trained on: `tasks.docs`, or `stages.NAME.data` where written there."""
    if isinstance(stage.data, Task):
        return {f"stages.{stage.name}.data": stage.data}
    return {f"tasks.{name}": task for name, task in config.stage_tasks(stage).items()}


def evaluation_sources(stages: Sequence[Stage], name: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (`stages.qa.evaluate.squad.data.source.0`, source) for all evaluations, or those called `name`."""
    for stage in stages:
        for evaluation in stage.evaluate:
            if name in (None, evaluation.name):
                yield from _numbered(f"{evaluation_task(stage, evaluation)}.source", evaluation.data.source)


def evaluation_task(stage: Stage, evaluation: Evaluation) -> str:
    """The key of an evaluation's task: `stages.qa.evaluate.squad.data`."""
    return f"stages.{stage.name}.evaluate.{evaluation.name}.data"


def _numbered(key: str, sources: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{key}.{number}", source) for number, source in enumerate(sources))


def input_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (key, path or glob as written) for all files and folders that a run reads, without models on the Hub."""
    models = [("tokenizer.path", config.tokenizer.path)]
    models += [(f"stages.{stage.name}.init_from", stage.init_from) for stage in config.stages]
    models += [
        (f"stages.{stage.name}.distillation.teacher", stage.distillation.teacher)
        for stage in config.stages
        if stage.distillation is not None
    ]
    for key, name in models:
        is_path = name is not None and (hub_name(name) is None or name.startswith(f"{config.run.root}/"))
        if is_path and name not in ("scratch", "previous", "best"):
            yield key, str(name)
    for key, source in (*training_sources(config), *evaluation_sources(config.stages)):
        for option in getattr(source, "paths", ("files",)):
            value = getattr(source, option, None) or ()
            for path in [value] if isinstance(value, str) else value:
                if option != "name" or path.startswith((".", "/", "~")):  # others are names of data sets
                    yield f"{key}.{option}", path
