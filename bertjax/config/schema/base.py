"""Base class and value types of the configuration sections, and fields whose section is chosen by its kind."""

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Annotated, Any, TypeVar, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, GetCoreSchemaHandler, Tag

from bertjax.config.limits import MAX_COUNT, MAX_LAYERS, MAX_RECORDS, MAX_SEED, MAX_SIZE, MAX_VOCABULARY
from bertjax.storage.locations import folder_problem, path_problem
from bertjax.storage.remote import is_remote

Positive = Annotated[int, Field(gt=0, le=MAX_COUNT)]
NonNegative = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Size = Annotated[int, Field(gt=0, le=MAX_SIZE)]  # an axis of an array: a width, a length, rows of a batch
VocabSize = Annotated[int, Field(gt=0, le=MAX_VOCABULARY)]
Layers = Annotated[int, Field(gt=0, le=MAX_LAYERS)]
Limit = Annotated[int, Field(gt=0, le=MAX_RECORDS)]  # counted on the host alone
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _path_validator(find_problem: Callable[[str], str | None]) -> AfterValidator:
    def check(path: str) -> str:
        if problem := find_problem(path):
            raise ValueError(problem)
        return path

    return AfterValidator(check)


def _check_root(path: str) -> str:
    if problem := folder_problem(path):
        raise ValueError(problem)
    if is_remote(path) and not path.startswith("gs://"):
        raise ValueError(
            f"{path[:100]!a}: runs are kept in a local folder or in gs://; prepared data may be in s3:// and az://"
        )
    scheme, separator, name = path.partition("://")
    return scheme + separator + re.sub("/+", "/", name).rstrip("/") if separator else path


LocalPath = Annotated[str, _path_validator(partial(path_problem, remote=False))]
AnyPath = Annotated[str, _path_validator(partial(path_problem, remote=True))]  # local, or in an object store
AnyFolder = Annotated[str, _path_validator(folder_problem)]  # the same, to write to
RunRoot = Annotated[str, AfterValidator(_check_root)]  # local, or in gs://
ConfigFrom = Annotated[
    AnyPath | None, Field(description="Hugging Face folder, model on the Hub, run or checkpoint with the sizes.")
]


class Section(BaseModel):
    """A frozen group of options that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class KindOf:
    """Marks a field whose section is looked up in a table by a key (`kind`, `family`); `default` if the key is missing.

    Use it as `Annotated[Any, KindOf("kind", "text", SOURCES)]`. The table maps kinds to sections; `register` adds one.
    """

    def __init__(self, tag: str, default: str, table: dict[str, type[Section]]):
        self.tag, self.default, self.table = tag, default, table

    def which(self, value: Any) -> str | None:
        """The kind of a section, or of the mapping that it is validated from; None when the table has no such kind."""
        found = value.get(self.tag, self.default) if isinstance(value, dict) else getattr(value, self.tag, None)
        return found if isinstance(found, str) and found in self.table else None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        sections = tuple(Annotated[section, Tag(kind)] for kind, section in self.table.items())
        kinds = Discriminator(
            self.which,
            custom_error_type="unknown_kind",
            custom_error_message=f"'{self.tag}' must be one of: {', '.join(self.table)}",
        )
        return handler.generate_schema(Annotated[Union[sections], kinds])  # noqa: UP007


Record = TypeVar("Record")


class MissingRecordError(TypeError):
    """A kind has a section and no record."""


def record_at(place: str, expected: type[Record]) -> Record:
    """Import the record at "package.module:NAME". Raises MissingRecordError if it is not one of `expected`."""
    module, _, name = place.partition(":")
    record = getattr(import_module(module), name, None) if module else None
    if not isinstance(record, expected):
        raise MissingRecordError(f"there is no {expected.__name__} at '{place}'")
    return record


def record_of(section: Section | type[Section], expected: type[Record]) -> Record:
    """Import the record that a section's `implementation` names.

    Raises TypeError where it names none: a kind without a record never passes for another one.
    """
    own = vars(section if isinstance(section, type) else type(section))  # not the record of a kind that it extends
    place = own.get("implementation", "")
    if isinstance(place, expected):  # registered with its section
        return place
    place = place if isinstance(place, str) else type(place).__name__
    try:
        return record_at(place, expected)
    except MissingRecordError:
        kind = getattr(section, "kind", None) or getattr(section, "family", None)
        name = kind or getattr(section, "__name__", type(section).__name__)
        raise TypeError(f"kind '{name}' has no {expected.__name__} record: implementation is '{place}'") from None


def register(table: dict[str, type[Section]], kind: str, section: type[Section]) -> None:
    """Add a kind to a table and rebuild the sections, so that configurations may use it.

    A class that is defined again, as by a notebook cell that runs twice, replaces the one before.
    """
    place = lambda one: (one.__module__, one.__qualname__)  # noqa: E731
    if kind in table and place(table[kind]) != place(section):
        raise ValueError(f"kind '{kind}' is already registered")
    if kind not in {section.model_fields[tag].default for tag in ("kind", "family") if tag in section.model_fields}:
        raise ValueError(f"{section.__name__} is not of kind '{kind}': see the default of its `kind` or `family`")
    table[kind] = section
    rebuild()


def rebuild() -> None:
    """Build the validators of all sections again.

    A section copies those it contains. The order of definition puts them first, except for sections registered later:
    repeating it updates those that contain them, and the sections that contain these.
    """
    models: list[type[BaseModel]] = [*Section.__subclasses__()]
    for model in models:  # the list grows meanwhile
        models += model.__subclasses__()
    for model in [*dict.fromkeys(models)] * 3:
        model.model_rebuild(force=True)
