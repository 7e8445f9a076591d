"""What every section of the configuration is made of."""

from typing import Annotated, Any, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from bertjax.storage.locations import path_problem

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _path_validator(remote: bool) -> AfterValidator:
    def check(path: str) -> str:
        if problem := path_problem(path, remote=remote):
            raise ValueError(problem)
        return path

    return AfterValidator(check)


LocalPath = Annotated[str, _path_validator(remote=False)]
AnyPath = Annotated[str, _path_validator(remote=True)]  # local, or in an object store


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def tagged_union(tag: str, default: str, **members: type[BaseModel]) -> Any:
    """A union told apart by the key `tag`; a section that leaves the key out is of the `default` kind."""

    def which(value: Any) -> str | None:
        found = value.get(tag, default) if isinstance(value, dict) else getattr(value, tag, None)
        return found if isinstance(found, str) and found in members else None

    names = ", ".join(members)
    kind = Discriminator(
        which, custom_error_type="unknown_kind", custom_error_message=f"'{tag}' must be one of: {names}"
    )
    return Annotated[Union[tuple(Annotated[cls, Tag(name)] for name, cls in members.items())], kind]  # noqa: UP007
