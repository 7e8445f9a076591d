"""`bertjax predict tag`: entities of texts, and labels of the words of files in columns."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bertjax.config.schema.sources import Conll
from bertjax.data.sources.conll import sentences
from bertjax.data.sources.record_files import read_by_suffix
from bertjax.errors import StorageError, UserError
from bertjax.evaluation.inference.tag_decoding import Aggregation
from bertjax.evaluation.predictors.tags import Tagger, stage_options
from bertjax.storage.atomic import replace_file
from bertjax.storage.files import content_suffix, read_lines
from bertjax.tools import prediction_files as files
from bertjax.tools.predict import Request, finish, report, with_ids
from bertjax.tools.prediction_files import Record

COLUMNS = (".conll", ".conllu", ".iob", ".iob2", ".bio")  # endings of files with a word a line
_WORDS, _CELLS = "words", "cells"


def tag(request: Request, aggregation: Aggregation, column: str | None) -> Any:
    """Label texts or words -> the predictions to print, or None when they were written to a file.

    A file in columns, or records with a list of words and without a text, gives {"words", "labels", "scores"}; texts
    give their entities. In a .conll output each word has a line, with its columns and its label.
    """
    tagger = request.open(Tagger)
    options = stage_options(tagger.restored)
    if request.file is not None and content_suffix(request.file) in COLUMNS:
        return _words(request, tagger, _column_words(request.file, tagger.restored))
    field = column or (options.text if options and options.text else "text")
    listed = options.tokens if options else "tokens"
    if request.file is not None and (found := _listed_words(request.file, column, listed)):
        return _words(request, tagger, found)
    records = request.records([field], "; name another with --column")
    if _is_columns(request.output):
        texts = (one[field] for one in records)
        return _write_columns(request, tagger, ({_WORDS: text} for text in texts), tagger.tag_text_words)
    predict = lambda chunk: with_ids(chunk, tagger([one[field] for one in chunk], aggregation))  # noqa: E731
    return finish(request, tagger, records, predict)


def _is_columns(path: Path | None) -> bool:
    return path is not None and path.suffix == ".conll"


def _column_words(path: Path, restored: Any) -> Iterator[Record]:
    """The words of each sentence of a file in columns, which may have no labels, and its lines.

    Columns have the names of the training data if there are as many.
    """
    config = restored.ctx.config
    tasks = config.stage_tasks(config.stages[restored.stage]).values()
    trained = next((one for task in tasks for one in task.source if isinstance(one, Conll)), None)
    fields, comment = (trained.fields, trained.comment) if trained else (None, None)
    first = next((line for _, line in read_lines(path) if line.strip()), "")
    if fields is not None and len(re.split(r"\t| +", first.strip())) != len(fields):
        fields = None
    for _, record in sentences(path, fields, comment, unlabelled=True):
        if "tokens" not in record:
            raise UserError(f"{path}: none of the columns is called 'tokens'; name them as in the training data")
        own = [name for name in record if name != "text"]
        yield {_WORDS: record["tokens"], _CELLS: list(zip(*(record[name] for name in own), strict=True))}


def _listed_words(path: Path, column: str | None, field: str) -> Iterator[Record] | None:
    """The lists of words of a file of records; None for a file of texts."""
    located = read_by_suffix(path)
    first = next(located, None) if located is not None else None
    name = column or field
    if located is None or first is None or (column is None and isinstance(first[1].get("text"), str)):
        return None
    if not isinstance(first[1].get(name), list):
        return None

    def found() -> Iterator[Record]:
        for where, record in chain([first], located):
            words = record.get(name)
            if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
                raise UserError(f"{where}: '{name}' is not a list of words; correct the record")
            yield {_WORDS: words} | ({files_id: record[files_id]} if (files_id := "id") in record else {})

    return found()


def _words(request: Request, tagger: Tagger, records: Iterable[Record]) -> Any:
    if _is_columns(request.output):
        return _write_columns(request, tagger, records, tagger.tag_words)
    predict = lambda chunk: with_ids(chunk, tagger.tag_words([one[_WORDS] for one in chunk]))  # noqa: E731
    return finish(request, tagger, records, predict)


def _write_columns(request: Request, tagger: Tagger, records: Iterable[Record], label: Any) -> None:
    """Write a word a line with its label in a last column, and an empty line after each sentence."""
    assert request.output is not None
    began, count = time.perf_counter(), 0  # of sentences

    def predict(chunk: list[Record]) -> Sequence[tuple[Record, Any]]:
        return list(zip(chunk, label([one[_WORDS] for one in chunk]), strict=True))

    try:
        with replace_file(request.output) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
            for record, found in files.predict_chunks(records, predict, request.file):
                count += 1
                cells = record.get(_CELLS) or [(word,) for word in found["words"]]
                for own, tag_ in zip(cells, found["labels"], strict=True):
                    file.write("\t".join([*(" ".join(cell.split()) for cell in own), tag_]) + "\n")
                file.write("\n")
    except OSError as error:
        raise StorageError(f"{request.output}: cannot be written: {error.strerror}") from error
    report(request.output, count, began)
    tagger.print_notes()
