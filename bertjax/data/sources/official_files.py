"""Converts records of the files that GLUE and SuperGLUE publish into those of TFDS, which prompts read.

Records of MultiRC and ReCoRD are flattened as by super_glue_dataset_builder.py of tensorflow/datasets.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bertjax.data.sources.record_files import LocatedRecords
from bertjax.errors import UserError, escape_unprintable

Record = dict[str, Any]

# prompt -> its field -> the published column's name; used where the record lacks the former and has the latter
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "glue_mrpc": {"sentence1": ("#1 String",), "sentence2": ("#2 String",), "label": ("Quality",)},
    "glue_qqp": {"label": ("is_duplicate",)},
    "glue_stsb": {"label": ("score",)},
    "glue_mnli": {"premise": ("sentence1",), "hypothesis": ("sentence2",), "label": ("gold_label",)},
    "glue_ax": {"premise": ("sentence1", "Premise"), "hypothesis": ("sentence2", "Hypothesis"), "label": ("Label",)},
}
_NUMBERED = ("idx", "index")  # what the published files number their records by


def read_official_records(prompt: str, located: LocatedRecords) -> LocatedRecords:
    """The records of a source, those of MultiRC and ReCoRD one a question."""
    expand = {"super_glue_multirc": _multirc, "super_glue_record": _record}.get(prompt)
    return located if expand is None else _expanded(expand, located)


def _expanded(expand: Callable[[Record], Iterator[tuple[str, Record]]], located: LocatedRecords) -> LocatedRecords:
    for where, record in located:
        if not isinstance(record.get("passage"), Mapping):
            yield where, record
            continue
        try:
            for place, each in expand(record):
                yield f"{where}: {place}", each
        except UserError as error:
            raise UserError(escape_unprintable(f"{where}: {error}")) from None


def rename_columns(prompt: str, record: Record, training: bool) -> Record:
    """The record with the prompt's column names; without labels, outside of training, the label is -1, as in TFDS."""
    more = {
        ours: record[theirs]
        for ours, choices in COLUMNS.get(prompt, {}).items()
        for theirs in choices
        if ours not in record and theirs in record
    }
    if prompt == "glue_cola" and "sentence" not in record and len(record) == 4:
        raise UserError(
            "no field 'sentence'; CoLA's own files have no header: give the source 'kind: tsv' and "
            "'fields: [source, label, mark, sentence]'"
        )
    hidden = not training and "label" not in record | more and any(name in record for name in _NUMBERED)
    if hidden and prompt.startswith(("glue_", "super_glue_")) and prompt != "super_glue_record":
        more["label"] = -1
    return record | more


def _multirc(record: Record) -> Iterator[tuple[str, Record]]:
    passage = record["passage"]
    paragraph = _get(passage, "text", str, "passage")
    for q, question in enumerate(_get(passage, "questions", list, "passage"), 1):
        asked = _get(question, "question", str, f"passage: question {q}")
        for a, answer in enumerate(_get(question, "answers", list, f"passage: question {q}"), 1):
            where = f"question {q}, answer {a}"
            label = {"label": answer["label"]} if "label" in _object(answer, where) else {}
            index = _index(paragraph=record, question=question, answer=answer)
            text = _get(answer, "text", str, where)
            yield where, {"paragraph": paragraph, "question": asked, "answer": text} | index | label


def _record(record: Record) -> Iterator[tuple[str, Record]]:
    passage = record["passage"]
    text = _get(passage, "text", str, "passage")
    spans = [_object(span, "passage: an entity") for span in _get(passage, "entities", list, "passage")]
    bounds = [[_get(span, end, int, "passage: an entity") for end in ("start", "end")] for span in spans]
    entities = sorted({text[start : end + 1] for start, end in bounds})  # the end is the last character
    for q, qa in enumerate(_get(record, "qas", list, "ReCoRD"), 1):
        where = f"question {q}"
        found = _object(qa, where).get("answers")
        if found is not None and not isinstance(found, list):
            raise UserError(f"{where}: 'answers' is a {type(found).__name__}, not a list; correct the record")
        answers = sorted({_get(answer, "text", str, f"{where}: an answer") for answer in found or ()})
        index = _index(passage=record, query=qa)
        query = _get(qa, "query", str, where)
        yield where, {"passage": text, "query": query, "entities": entities, "answers": answers} | index


def _index(**numbered: Record) -> Record:
    """The numbers by which a question's examples are scored together, where all are given."""
    found = {name: item.get("idx") for name, item in numbered.items()}
    return {"idx": found} if None not in found.values() else {}


def _object(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise UserError(f"{where} is a {type(item).__name__}, not an object; correct the record")
    return item


def _get(item: Any, key: str, kind: type, where: str) -> Any:
    value = _object(item, where).get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        problem = "missing" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{where}: '{key}' is {problem}; correct the record")
    return value
