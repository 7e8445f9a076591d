"""Lists in a configuration: find the element that an override names, and detect unintended changes of `kind`."""

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BeforeValidator

from bertjax.config.loading.introspect import closest_match, field_types, is_section, is_union, union_members, unwrap
from bertjax.config.loading.yaml_reader import Node, shallow_plain, to_plain
from bertjax.config.schema.base import Name


def element_type(annotation: Any) -> Any:
    """Return the annotation of the elements of a list; None if the type is not only a list."""
    core, which = unwrap(annotation)
    return get_args(core)[0] if which is None and get_origin(core) is list else None


def accepts_single_element(annotation: Any) -> bool:
    """Whether a list of one element may be written as that element, such as `source`."""
    if element_type(annotation) is None:
        return False
    while get_origin(annotation) is not list:
        if any(isinstance(item, BeforeValidator) for item in getattr(annotation, "__metadata__", ())):
            return True
        real = [arg for arg in get_args(annotation) if arg is not type(None)]
        annotation = annotation.__origin__ if hasattr(annotation, "__metadata__") else real[0]
    return False


def accepts_mapping(annotation: Any) -> bool:
    """Whether a mapping may replace the list, such as the rates of a mixture."""
    core, which = unwrap(annotation)
    return which is None and is_union(core) and any(get_origin(arg) is dict for arg in get_args(core))


def has_named_elements(annotation: Any) -> bool:
    """Whether the elements of the list have names."""
    core, which = unwrap(element_type(annotation))
    sections = [s for s in ([core] if which is None else union_members(core).values()) if is_section(s)]
    return bool(sections) and all(field_types(section).get("name") == Name for section in sections)


def element_names(elements: Sequence[Node], annotation: Any) -> list[str | None]:
    """Return the name of each element, given or by default; None if its section has no name."""
    if not has_named_elements(annotation):
        return [None] * len(elements)
    return [element_name(item) or _default_name(item, element_type(annotation)) for item in elements]


def element_name(item: Node) -> str | None:
    """Return the name given in an element, or the kind of an evaluation without a name."""
    if not isinstance(item.value, dict):
        return None
    name = item.value.get("name") or item.value.get("kind")
    return name.value if name is not None and isinstance(name.value, str) else None


def find_element(key: str, names: Sequence[str | None]) -> int | str:
    """Return the index of the element that `key` (a name or an index) selects, or an error message."""
    if names.count(key) > 1:
        places = ", ".join(str(at) for at, name in enumerate(names) if name == key)
        return f"several elements have this name; use an index: {places}"
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(names):
        return int(key)
    known = [name or str(at) for at, name in enumerate(names)]
    allowed = f"must be one of {', '.join(known)[:80]}{' or its index' * any(names)}" if known else "the list is empty"
    hint = closest_match(key, known)
    return f"no such element; {allowed}" + (f"; did you mean '{hint}'?" if hint else "")


def implicit_kind_changes(old: Node, new: Node, annotation: Any, path: str) -> list[str]:
    """Return a line per element of the list `new` without a kind, if `old` has elements of other kinds than default."""
    core, which = unwrap(element_type(annotation))
    if which is None:
        return []
    before = old.value if isinstance(old.value, list) else [old]
    kinds = {which(shallow_plain(item.value)) for item in before if isinstance(item.value, dict)}
    default = which({})
    others = sorted(kind for kind in kinds - {default} if kind)
    if not others:
        return []
    return [
        f"{item.where}: {path}.{at}: give it a kind: without one it is '{default}', and the list it replaces has "
        f"{', '.join(others)}"
        for at, item in enumerate(new.value)
        if isinstance(item.value, dict) and "kind" not in item.value
    ]  # fmt: skip


def _default_name(item: Node, element: Any) -> str | None:
    core, which = unwrap(element)
    section = core if which is None else union_members(core).get(which(to_plain(item)) or "")
    if section is None:
        return None
    default = section.model_fields["name"].default
    return default if isinstance(default, str) else None
