"""The text that a tokenizer is trained on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.config.schema.data import Task
from bertjax.data.preprocess.registry import record_of
from bertjax.data.sources.pieces import split_documents
from bertjax.data.sources.records import stream_records
from bertjax.data.sources.registry import record_of as source_record
from bertjax.data.sources.text import read_documents

DEFAULT_FIELD = "text"


class TokenizerSource(NamedTuple):
    """A source; `task`: the one whose fields are read, where records have no `text_field`."""

    source: Any
    task: Task | None = None

    @property
    def key(self) -> str:
        """What the text depends on besides the source."""
        return "" if self.task is None else self.task.preprocess.model_dump_json()

    def documents(self, base: Path) -> Iterator[list[str]]:
        if self.task is None:
            return read_documents(self.source, base)
        texts = record_of(self.task.preprocess).texts
        assert texts is not None, "of_tasks chooses tasks with texts"
        found = (text for text in texts(self.task, self.source, base) if text and not text.isspace())
        return filter(None, split_documents(found))


def of_sources(sources: Sequence[Any]) -> list[TokenizerSource]:
    return [TokenizerSource(source) for source in sources]


def of_tasks(tasks: Sequence[Task], base: Path) -> list[TokenizerSource]:
    """The sources of tasks. Where records have no field `text` and `text_field` names no other, the texts of the task's
    examples are read: `text_a` and `text_b` of a classification, the inputs and targets of a prompt, contexts."""
    return [
        TokenizerSource(source, task if _reads_fields(task, source, base) else None)
        for task in tasks
        for source in task.source
    ]


def _reads_fields(task: Task, source: Any, base: Path) -> bool:
    kind = source_record(source)
    if record_of(task.preprocess).texts is None or kind.records is None or kind.texts or kind.documents:
        return False
    if getattr(source, "text_field", None) != DEFAULT_FIELD:
        return False
    _, record = next(stream_records(source, base, None), ("", {DEFAULT_FIELD: ""}))
    return DEFAULT_FIELD not in record
