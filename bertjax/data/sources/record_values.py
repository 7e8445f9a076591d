"""Reads fields of a record as texts and numbers; other values raise UserError, which names the field."""

import math
from collections.abc import Mapping
from typing import Any

from bertjax.errors import UserError

Record = Mapping[str, Any]
_LARGE = 10**300  # numbers beyond it count nothing


def get_field(record: Record, name: str) -> Any:
    """A field; 'a/b' is field b inside of a. Raises UserError naming the field and those there are."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            there = ", ".join(map(to_text, record))[:150]
            raise UserError(
                f"no field '{name}'; there are: {there or '(none)'}; name the right one: preprocess.fields.{name}=FIELD"
            )
        value = value[part]
    return value


def text_field(record: Record, name: str) -> str:
    """A field as text: numbers written out, lists of texts joined by spaces."""
    value = get_field(record, name)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    if is_text_like(value):
        return str(value)
    raise UserError(
        f"field '{name}' holds {describe_value(value)}, not text; give another: preprocess.fields.{name}=FIELD"
    )


def is_text_like(value: Any) -> bool:
    """A text, or a number that can be written out."""
    if isinstance(value, int):
        return -_LARGE < value < _LARGE
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def to_text(value: Any) -> str:
    """Any value as text; Python refuses to write out numbers of thousands of digits."""
    if isinstance(value, int) and not -_LARGE < value < _LARGE:
        return "of many digits"
    try:
        return str(value)
    except ValueError:  # such a number inside of a list
        return f"a {type(value).__name__}"


def describe_value(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    return f"the number {to_text(value)}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def record_id(record: Record) -> dict[str, Any]:
    found = record.get("id", record.get("idx"))
    inside = list(found.values()) if isinstance(found, Mapping) else [found]
    if not all(item is None or is_text_like(item) for item in inside):
        raise UserError("'id' (or 'idx') holds something that is no text and no number; correct or remove it")
    return {} if found is None else {"id": found}
