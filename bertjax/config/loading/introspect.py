"""Look up annotations, union members, valid keys and close matches in the schema."""

import difflib
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Discriminator, Tag

from bertjax.config.loading import foreign_names
from bertjax.config.schema.base import KindOf
from bertjax.config.schema.run import Config

TagFunction = Callable[[Any], str | None]


@cache
def field_types(section: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of a section with their full annotations."""
    every = get_type_hints(section, include_extras=True)
    return {name: every[name] for name in section.model_fields}


def unwrap(annotation: Any) -> tuple[Any, TagFunction | None]:
    """Return the type without Annotated and Optional, and the function that selects members of a tagged union or None.

    For a field with a table of kinds, the type is its `KindOf`.
    """
    which = None
    while get_origin(annotation) is Annotated:
        for item in annotation.__metadata__:
            if isinstance(item, KindOf):
                return item, item.which
            which = item.discriminator if isinstance(item, Discriminator) else which
        annotation = annotation.__origin__
    if is_union(annotation) and which is None:
        real = [arg for arg in get_args(annotation) if arg is not type(None)]
        if len(real) == 1:
            return unwrap(real[0])
    return annotation, which  # type: ignore[return-value]


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def union_members(union: Any) -> dict[str, Any]:
    """Return the members of a tagged union or of a table of kinds, by tag."""
    if isinstance(union, KindOf):
        return dict(union.table)
    pairs = ((arg, getattr(arg, "__metadata__", ())) for arg in get_args(union))
    return {item.tag: unwrap(arg)[0] for arg, metadata in pairs for item in metadata if isinstance(item, Tag)}


def item_annotation(annotation: Any, key: Any, value: Any) -> Any:
    """Return the annotation of `value[key]`, where `value` has type `annotation`; None if unknown."""
    core, which = unwrap(annotation)
    if which is not None:
        core = union_members(core).get(which(value) or "")
    if get_origin(core) is list:
        element = get_args(core)[0]
        return item_annotation(element, key, value) if isinstance(value, dict) else element
    if get_origin(core) is dict:
        return get_args(core)[1]
    return field_types(core).get(key) if is_section(core) else None


def key_paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield dotted paths of the keys in a section and its sections, without those in lists."""
    for name, annotation in field_types(section).items():
        yield prefix + name
        core, which = unwrap(annotation)
        for member in [core] if which is None else dict.fromkeys(union_members(core).values()):
            if is_section(member):
                yield from key_paths(member, f"{prefix}{name}.")


ELEMENT_NAMES = {"stages": "STAGE", "tasks": "TASK", "mixtures": "NAME", "evaluate": "NAME", "compare": "NAME"}


@cache
def all_paths() -> tuple[str, ...]:
    """Dotted paths of all keys, those in lists and in tables of names included: `stages.STAGE.optimizer.b1`."""
    return tuple(dict.fromkeys(_all_paths(Config, "")))


def _all_paths(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, annotation in field_types(section).items():
        yield prefix + name
        core, which = unwrap(annotation)
        below = f"{prefix}{name}."
        if get_origin(core) in (list, dict):
            below += f"{ELEMENT_NAMES[name]}." if name in ELEMENT_NAMES else ""
            core, which = unwrap(get_args(core)[-1])
        for member in [core] if which is None else dict.fromkeys(union_members(core).values()):
            if is_section(member):
                yield from _all_paths(member, below)


def closest_match(word: str, words: Any, cutoff: float = 0.6) -> str | None:
    found = difflib.get_close_matches(word, [str(item) for item in words], 1, cutoff)
    return found[0] if found else None


def suggest_key(key: str, section: Any, siblings: dict[str, Any]) -> str:
    """Return `; did you mean ...?` for an unknown key of `section`; `siblings` are the other members of its union."""
    own = field_types(section) if is_section(section) else {}
    for tag, member in siblings.items():
        if is_section(member) and member is not section and key in field_types(member):
            return f"; it is a key of kind '{tag}'"
    below = (
        next((path for path in key_paths(section) if path.endswith(f".{key}")), None) if is_section(section) else None
    )
    if below:
        return f"; did you mean '{below}'?"
    if known := foreign_names.explain(key):
        return f"; {known}"
    if found := closest_match(key, own, 0.75) or next((name for name in own if name.endswith(f"_{key}")), None):
        return f"; did you mean '{found}'?"
    for root in (section, Config):
        paths = {path.rsplit(".", 1)[-1]: path for path in key_paths(root)} if is_section(root) else {}
        if found := closest_match(key, paths, 0.8):
            return f"; did you mean '{paths[found]}'?"
    places = [path for path in all_paths() if path.rsplit(".", 1)[-1] == key]
    if places:
        return f"; did you mean '{min(places, key=len)}'?"
    if found := closest_match(key, own):
        return f"; did you mean '{found}'?"
    others = {name for member in siblings.values() if is_section(member) for name in field_types(member)}
    found = closest_match(key, others, 0.75)
    return f"; did you mean '{found}'?" if found else ""
