"""Checks the first records of tasks before anything is prepared: a wrong field in the last one shows at once."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.config.schema.data import Task
from bertjax.data.preprocess.registry import Preview, record_of
from bertjax.data.sources.class_names import ClassSpec
from bertjax.data.sources.records import read_located
from bertjax.data.sources.registry import describe_source
from bertjax.data.sources.squad import stream_squad
from bertjax.data.sources.text import no_text_error, stream_texts
from bertjax.errors import UserError, escape_unprintable

RECORDS = 200  # of each source that are read


class Findings(NamedTuple):
    """What the first records of a task show: problems, a line each, and the classes of its labels."""

    problems: list[str]
    classes: ClassSpec | None = None  # for evaluations of the stage; None where they are not known


def preview_task(
    key: str, task: Task, base: Path, *, classes: ClassSpec | None = None, training: bool = True
) -> Findings:
    """Read the first records of each source of a task, as its preparation would. `key`: of the task, such as `tasks.a`.

    classes: of the stage's classifier; None where they are not known. Raises nothing but errors of storage.
    """
    preview = Preview(task, base, classes, training)
    problems = [f"{key}.source.{number}: {text}" for number, text in _source_problems(preview)]
    if problems:
        return Findings(problems)
    try:
        return Findings([], record_of(task.preprocess).check_classes(preview))
    except UserError as error:
        return Findings([f"{key}: {escape_unprintable(str(error))}"])


def find_text_problem(source: Any, base: Path) -> str | None:
    """Why a source gives no text to train a tokenizer on, by its first record; None if it does."""
    try:
        _first_text(source, base)
    except UserError as error:
        return escape_unprintable(str(error))
    return None


def _first_text(source: Any, base: Path) -> None:
    if next(stream_texts(source, base), None) is None:
        raise no_text_error(source)


def _source_problems(preview: Preview) -> Iterator[tuple[int, str]]:
    for number, source in enumerate(preview.task.source):
        one = replace(preview, task=preview.task.model_copy(update={"source": [source]}))
        try:
            _check_source(one, source)
        except UserError as error:
            text = escape_unprintable(str(error))
            place = describe_source(source)
            yield number, text if ": " in text else f"{place}: {text}"


def _check_source(preview: Preview, source: Any) -> None:
    kind = record_of(preview.task.preprocess)
    if kind.check is not None:
        # a sample may leave out any record that cannot be used, but the first one shows the fields
        kind.check(preview, RECORDS if preview.task.limit is None else 1)
    elif kind.reads in ("documents", "texts"):
        _first_text(source, preview.base)
    else:
        read = stream_squad if kind.reads == "questions" else read_located
        for _ in islice(read(source, preview.base), RECORDS):  # type: ignore[operator]
            pass
