"""Names of classes: which name or number means which id, and the names that a data set itself gives (ClassLabel)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertjax.config.data_schema import HuggingFaceData, Parquet, TfdsData
from bertjax.data import hub, remote
from bertjax.data.files import expand, resolve

HIDDEN = -1  # the id of a label that the data do not disclose, as in the test files of GLUE
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_UNNAMED = re.compile(r"LABEL_(\d+)")  # what transformers calls classes without names


def number_in(text: str) -> float | None:
    """The number that a text spells, or None."""
    return float(text) if _NUMBER.fullmatch(text) else None


def whole_number(value: Any) -> int | None:
    """A number, or a text that spells one, as an id; None for fractions and words. LABEL_3 is 3."""
    if isinstance(value, str):
        unnamed = _UNNAMED.fullmatch(value)
        found = float(unnamed[1]) if unnamed else number_in(value)
    else:
        found = value
    return int(found) if found is not None and found == found and found in (int(found),) else None


def are_numbers(names: Sequence[str]) -> bool:
    """Whether every name spells an integer, so that numbers are matched by name and not taken for ids."""
    return all(number_in(name) is not None and whole_number(name) is not None for name in names)


def find(label: str | int | bool | None, names: Sequence[str]) -> int | None:
    """The id of a label among `names`: by name, case and outer space apart, or by number; HIDDEN; None if unknown.

    A number is an id, or one of the names where all of those are numbers. -1, null and an empty text are hidden.
    """
    if label is None or label == "":
        return HIDDEN
    text = str(label).strip()
    if text in names:
        return list(names).index(text)
    folded = [number for number, name in enumerate(names) if name.strip().casefold() == text.casefold()]
    if folded:
        return folded[0] if len(folded) == 1 else None
    number = whole_number(text if isinstance(label, str) else label)
    if number == HIDDEN and not _UNNAMED.fullmatch(text):
        return HIDDEN
    if number is None or not 0 <= number < len(names) or are_numbers(names):
        return None
    return number


def shown(names: Sequence[str], most: int = 100) -> str:
    """Names on part of a line."""
    text = ", ".join(names)
    return text if len(text) <= most else text[: most - 3] + "..."


# ---- names that a data set gives ------------------------------------------------------------------------------------


def of_source(source: Any, base: Path, field: str) -> tuple[str, ...] | None:
    """The names by id of a ClassLabel `field` of a data set; None where the field, or the source, has none."""
    if isinstance(source, HuggingFaceData):
        path = resolve(source.name, base)
        if path.is_file():  # `datasets` is not asked about formats without features
            return _of_parquet(path, field) if path.suffix == ".parquet" else None
        return _names(getattr(hub.open_dataset(source, base), "features", None), field)
    if isinstance(source, TfdsData):
        return _names(hub.tfds_builder(source, base).info.features, field)
    return _of_parquet(expand(source.files, base)[0], field) if isinstance(source, Parquet) else None


def _names(features: Any, field: str) -> tuple[str, ...] | None:
    try:
        names = features[field].names
    except (KeyError, TypeError, AttributeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list | tuple) and names else None


def _of_parquet(path: Path, field: str) -> tuple[str, ...] | None:
    """`datasets` writes the features of a file beside its schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with remote.reaching(path), path.open("rb") as opened:
            about = (pq.read_schema(opened).metadata or {}).get(b"huggingface")
        names = json.loads(about)["info"]["features"][field]["names"] if about else None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None  # a damaged file is reported by who reads its records
    return tuple(map(str, names)) if isinstance(names, list) and names else None
