"""What every section of the configuration is made of."""

from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def tagged(tag: str, default: str, **members: type[BaseModel]) -> Any:
    """A union told apart by the key `tag`; a section that leaves the key out is of the `default` kind."""

    def which(value: Any) -> str | None:
        found = value.get(tag, default) if isinstance(value, dict) else getattr(value, tag, None)
        return found if found in members else None

    names = ", ".join(members)
    kind = Discriminator(
        which, custom_error_type="unknown_kind", custom_error_message=f"'{tag}' must be one of: {names}"
    )
    return Annotated[Union[tuple(Annotated[cls, Tag(name)] for name, cls in members.items())], kind]  # noqa: UP007
