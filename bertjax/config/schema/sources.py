"""Configuration sections of the data sources, one per source kind."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from bertjax.config.schema.base import AnyPath, KindOf, LocalPath, NonNegative, Section


class TextFiles(Section):
    """Plain text. `sentences`: one sentence a line, blank lines between documents; `paragraphs`: blank lines between
    documents, whose sentences are found; `documents`: one document a file, whose sentences are found.
    """

    implementation: ClassVar[str] = "bertjax.data.sources.text:TEXT"
    kind: Literal["text"] = "text"
    files: list[AnyPath] = Field(min_length=1)  # paths or globs; .gz, .xz and .bz2 are read as they are
    layout: Literal["sentences", "paragraphs", "documents"] = "documents"


class JsonLines(Section):
    implementation: ClassVar[str] = "bertjax.data.sources.records:JSONL"
    kind: Literal["jsonl"] = "jsonl"
    files: list[AnyPath] = Field(min_length=1)
    text_field: str = "text"


class Json(Section):
    """JSON files that hold one list of objects."""

    implementation: ClassVar[str] = "bertjax.data.sources.records:JSON"
    kind: Literal["json"] = "json"
    files: list[AnyPath] = Field(min_length=1)
    text_field: str = "text"


class Tsv(Section):
    """Tab-separated values, a record a line; quotes are ordinary characters, as in the GLUE files."""

    implementation: ClassVar[str] = "bertjax.data.sources.records:TSV"
    kind: Literal["tsv"] = "tsv"
    files: list[AnyPath] = Field(min_length=1)
    fields: list[str] | None = None  # names of the columns; default: the first line's
    skip_lines: NonNegative = 0  # a header to pass over when `fields` are given
    text_field: str = "text"


class Parquet(Section):
    implementation: ClassVar[str] = "bertjax.data.sources.records:PARQUET"
    kind: Literal["parquet"] = "parquet"
    files: list[AnyPath] = Field(min_length=1)
    text_field: str = "text"


class HuggingFaceData(Section):
    """A folder made by `Dataset.save_to_disk`, a local dataset folder, or a name on the Hugging Face Hub."""

    implementation: ClassVar[str] = "bertjax.data.sources.hub:HUGGINGFACE"
    kind: Literal["huggingface"] = "huggingface"
    name: LocalPath
    config: str | None = None
    split: str = "train"
    text_field: str = "text"


class TfdsData(Section):
    """A TensorFlow Datasets builder prepared as array_record; read through `tfds.data_source`, without TensorFlow."""

    implementation: ClassVar[str] = "bertjax.data.sources.hub:TFDS"
    kind: Literal["tfds"] = "tfds"
    name: str
    split: str = "train"
    data_dir: LocalPath | None = None
    text_field: str = "text"


class StdlibDocs(Section):
    """The documentation inside the Python standard library; one document a module, split by a hash of its name."""

    implementation: ClassVar[str] = "bertjax.data.sources.stdlib.docs:STDLIB_DOCS"
    kind: Literal["stdlib_docs"] = "stdlib_docs"
    split: Literal["train", "heldout", "all"] = "train"


class SquadFiles(Section):
    """The official SQuAD JSON (v1.1 or v2.0), plain or compressed."""

    implementation: ClassVar[str] = "bertjax.data.sources.squad:SQUAD"
    kind: Literal["squad"] = "squad"
    files: list[AnyPath] = Field(min_length=1)


class StdlibQa(Section):
    """SQuAD-form questions made from the standard library's documentation; splits share no module."""

    implementation: ClassVar[str] = "bertjax.data.sources.squad:STDLIB_QA"
    kind: Literal["stdlib_qa"] = "stdlib_qa"
    split: Literal["train", "heldout"] = "train"


SOURCES: dict[str, type[Section]] = {
    "text": TextFiles,
    "jsonl": JsonLines,
    "json": Json,
    "tsv": Tsv,
    "parquet": Parquet,
    "huggingface": HuggingFaceData,
    "tfds": TfdsData,
    "stdlib_docs": StdlibDocs,
    "squad": SquadFiles,
    "stdlib_qa": StdlibQa,
}
Source = Annotated[Any, KindOf("kind", "text", SOURCES)]


Sources = Annotated[list[Source], BeforeValidator(lambda v: v if isinstance(v, list) else [v]), Field(min_length=1)]
