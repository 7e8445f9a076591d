"""What a configuration reads, each with the dotted key that names it: sources of data, and the paths beside them."""

from collections.abc import Iterator, Sequence
from typing import Any

from bertjax.config.schema.data import Task
from bertjax.config.schema.run import Config, Stage


def training_sources(config: Config) -> Iterator[tuple[str, Any]]:
    """(`tasks.docs.source.0`, source) of what the stages train on, and of the text that a tokenizer is made from."""
    if config.tokenizer.path is None:
        yield from _numbered("tokenizer.train_on", config.tokenizer.train_on or ())
    tasks: dict[str, Task] = {}
    for stage in config.stages:
        if isinstance(stage.data, Task):
            tasks[f"stages.{stage.name}.data"] = stage.data
        else:
            tasks |= {f"tasks.{name}": task for name, task in config.stage_tasks(stage).items()}
    for key, task in tasks.items():
        yield from _numbered(f"{key}.source", task.source)


def evaluation_sources(stages: Sequence[Stage], name: str | None = None) -> Iterator[tuple[str, Any]]:
    """(`stages.qa.evaluate.squad.data.source.0`, source) of the evaluations of these stages, or those called `name`."""
    for stage in stages:
        for evaluation in stage.evaluate:
            if name in (None, evaluation.name):
                key = f"stages.{stage.name}.evaluate.{evaluation.name}.data.source"
                yield from _numbered(key, evaluation.data.source)


def _numbered(key: str, sources: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{key}.{number}", source) for number, source in enumerate(sources))


def input_paths(config: Config) -> Iterator[tuple[str, str]]:
    """(key, path or glob) of every file and folder that a run reads, as written; names of data sets are left out."""
    if config.tokenizer.path is not None:
        yield "tokenizer.path", config.tokenizer.path
    for stage in config.stages:
        if stage.init_from not in (None, "scratch", "previous"):
            yield f"stages.{stage.name}.init_from", str(stage.init_from)
    for key, source in (*training_sources(config), *evaluation_sources(config.stages)):
        for pattern in getattr(source, "files", ()):
            yield f"{key}.files", pattern
        if source.kind == "huggingface" and source.name.startswith((".", "/", "~")):
            yield f"{key}.name", source.name
        if source.kind == "tfds" and source.data_dir is not None:
            yield f"{key}.data_dir", source.data_dir
