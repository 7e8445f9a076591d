"""Configuration sections of the data sources, one per kind, and the table of kinds."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from bertjax.config.schema.base import AnyPath, KindOf, LocalPath, NonNegative, Section
from bertjax.config.schema.slices import parse_slice

Files = Annotated[list[AnyPath], Field(min_length=1, description="Paths or globs; .gz, .xz, .bz2, .zst are unpacked.")]
TextField = Annotated[str, Field(description="Field of a record that holds the text of a document.")]


def _check_slice(text: str | None) -> str | None:
    if text is not None:
        parse_slice(text)
    return text


def _check_delimiter(text: str) -> str:
    text = "\t" if text == r"\t" else text
    if len(text) != 1 or text in '"\r\n':
        raise ValueError('must be one character, such as "," or ";" or "\\t", and no quote or line end')
    return text


FileSplit = Annotated[
    str | None,
    AfterValidator(_check_slice),
    Field(
        exclude_if=lambda split: split is None,
        description="Part to read, by record order over all files: `[:90%]`, `[90%:]`, `[:1000]`. Default: everything.",
    ),
]


class TextFiles(Section):
    """Plain text files."""

    implementation: ClassVar[str] = "bertjax.data.sources.text:TEXT"
    kind: Literal["text"] = "text"
    files: Files
    layout: Literal["sentences", "paragraphs", "documents"] = Field(
        "documents",
        description="`sentences`: a sentence per line, an empty line between documents; `paragraphs`: an empty line "
        "between documents, which are split into sentences; `documents`: a document per file, split into sentences.",
    )
    split: FileSplit = None


class JsonLines(Section):
    """JSON Lines files: one JSON object per line."""

    implementation: ClassVar[str] = "bertjax.data.sources.records:JSONL"
    kind: Literal["jsonl"] = "jsonl"
    files: Files
    text_field: TextField = "text"
    split: FileSplit = None


class Json(Section):
    """JSON files that hold one list of objects."""

    implementation: ClassVar[str] = "bertjax.data.sources.records:JSON"
    kind: Literal["json"] = "json"
    files: Files
    text_field: TextField = "text"
    split: FileSplit = None


class Tsv(Section):
    """Tab-separated files, one record per line. Quotes are ordinary characters, as in the GLUE files."""

    implementation: ClassVar[str] = "bertjax.data.sources.records:TSV"
    kind: Literal["tsv"] = "tsv"
    files: Files
    fields: list[str] | None = Field(None, description="Column names. Default: those in the first line.")
    skip_lines: NonNegative = Field(0, description="Header lines to skip when `fields` is given.")
    text_field: TextField = "text"
    split: FileSplit = None


class Csv(Section):
    """CSV files (RFC 4180): a cell in double quotes may hold delimiters, line ends and doubled quotes."""

    implementation: ClassVar[str] = "bertjax.data.sources.records:CSV"
    kind: Literal["csv"] = "csv"
    files: Files
    delimiter: Annotated[str, AfterValidator(_check_delimiter)] = Field(",", description="Character between cells.")
    fields: list[str] | None = Field(None, description="Column names. Default: those in the first row.")
    skip_lines: NonNegative = Field(0, description="Header lines to skip when `fields` is given.")
    text_field: TextField = "text"
    split: FileSplit = None


class Parquet(Section):
    """Parquet files."""

    implementation: ClassVar[str] = "bertjax.data.sources.records:PARQUET"
    kind: Literal["parquet"] = "parquet"
    files: Files
    text_field: TextField = "text"
    split: FileSplit = None


class Conll(Section):
    """Files in columns, as of CoNLL-2003: a word and its labels per line, an empty line between sentences."""

    implementation: ClassVar[str] = "bertjax.data.sources.conll:CONLL"
    kind: Literal["conll"] = "conll"
    files: Files
    fields: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Names of the columns; one is `tokens`. Default: the first is `tokens`, the last `ner_tags`; of "
        "CoNLL-U files: `tokens` (FORM), `lemmas`, `upos_tags`, `xpos_tags`, ...",
    )
    comment: str | None = Field(
        None, min_length=1, description="Lines that begin with this text are skipped. CoNLL-U files: `#`."
    )
    split: FileSplit = None


class HuggingFaceData(Section):
    """A Hugging Face dataset: a `Dataset.save_to_disk` folder, a local dataset folder or a name on the Hub."""

    paths: ClassVar[tuple[str, ...]] = ("name",)

    implementation: ClassVar[str] = "bertjax.data.sources.hub:HUGGINGFACE"
    kind: Literal["huggingface"] = "huggingface"
    name: LocalPath = Field(description="Folder (it starts with `.`, `/` or `~`) or name on the Hub.")
    config: str | None = Field(None, description="Configuration of the dataset, such as `mrpc` of `glue`.")
    split: str = Field("train", description="Split to read.")
    text_field: TextField = "text"


class TfdsData(Section):
    """A TensorFlow Datasets builder prepared as array_record; read by `tfds.data_source`, without TensorFlow."""

    paths: ClassVar[tuple[str, ...]] = ("data_dir",)

    implementation: ClassVar[str] = "bertjax.data.sources.hub:TFDS"
    kind: Literal["tfds"] = "tfds"
    name: str = Field(description="Name of the dataset, such as `glue/mrpc`.")
    split: str = Field("train", description="Split to read.")
    data_dir: LocalPath | None = Field(None, description="Folder of the prepared datasets. Default: that of TFDS.")
    text_field: TextField = "text"


class StdlibDocs(Section):
    """The documentation inside the Python standard library: a document per module, split by a hash of its name."""

    implementation: ClassVar[str] = "bertjax.data.sources.stdlib.docs:STDLIB_DOCS"
    kind: Literal["stdlib_docs"] = "stdlib_docs"
    split: Literal["train", "heldout", "all"] = Field("train", description="Modules to read.")


class SquadFiles(Section):
    """Files in SQuAD's JSON format (v1.1 or v2.0)."""

    implementation: ClassVar[str] = "bertjax.data.sources.squad:SQUAD"
    kind: Literal["squad"] = "squad"
    files: Files
    split: FileSplit = None


class StdlibQa(Section):
    """SQuAD-style questions made from the standard library's documentation; no module is in two splits."""

    implementation: ClassVar[str] = "bertjax.data.sources.squad:STDLIB_QA"
    kind: Literal["stdlib_qa"] = "stdlib_qa"
    split: Literal["train", "heldout"] = Field("train", description="Modules to read.")


# A section may name the options that hold paths in `paths`; by default it is `files`.
SOURCES: dict[str, type[Section]] = {
    "text": TextFiles,
    "jsonl": JsonLines,
    "json": Json,
    "tsv": Tsv,
    "csv": Csv,
    "parquet": Parquet,
    "conll": Conll,
    "huggingface": HuggingFaceData,
    "tfds": TfdsData,
    "stdlib_docs": StdlibDocs,
    "squad": SquadFiles,
    "stdlib_qa": StdlibQa,
}
Source = Annotated[Any, KindOf("kind", "text", SOURCES)]
Sources = Annotated[list[Source], BeforeValidator(lambda v: v if isinstance(v, list) else [v]), Field(min_length=1)]
