"""A source kind of the tests' own: the lines of one file. `SECTION` and `RECORD` are all that a new kind needs."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from bertjax.config.schema.base import Section
from bertjax.data.sources.registry import SourceKind


class ToySource(Section):
    implementation: ClassVar[str] = "toy_source:RECORD"
    paths: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["toy"] = "toy"
    path: str
    prefix: str = ""


def texts(source: ToySource, base: Path) -> Iterator[str]:
    for line in (base / source.path).read_text(encoding="utf-8").splitlines():
        yield source.prefix + line


def content(source: ToySource, base: Path) -> str:
    return hashlib.sha256((base / source.path).read_bytes()).hexdigest()


def find_problem(source: ToySource, base: Path) -> str | None:
    return None if (base / source.path).is_file() else f"{base / source.path}: no such file"


SECTION = ToySource
RECORD = SourceKind(
    content=content, texts=texts, find_problem=find_problem, describe=lambda source: source.path, version=1
)
