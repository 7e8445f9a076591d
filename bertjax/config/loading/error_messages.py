"""Format pydantic errors as lines: `file:line: key.path: reason (got value); did you mean 'x'?`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from bertjax.config.loading import foreign_names, introspect
from bertjax.config.loading.earlier_versions import RENAMED
from bertjax.config.loading.list_elements import element_name
from bertjax.config.loading.yaml_reader import Node, shallow_plain, to_plain
from bertjax.config.schema.run import SECRET_KEY, Config
from bertjax.errors import UserError

MAX_LINES = 20
MAX_LINE_LENGTH = 300

_REASONS = {
    "missing": "required key is missing",
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a section (key: value)",
    "model_type": "must be a section (key: value)",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "must be letters, digits, '.', '_' or '-', at most 64, the first a letter or a digit",
}
_NO_SUGGESTIONS = (["hidden_act"], ["feed_forward_proj"])  # a similar name is another function
_WITHOUT_VALUE = ("missing", "value_error")


@dataclass
class ErrorLocation:
    """The place of an error: the path as the user writes it, the closest node, and the schema of the section."""

    node: Node
    path: list[str] = field(default_factory=list)
    raw: list[Any] = field(default_factory=list)  # keys and indexes into the plain data
    annotation: Any = Config  # of the section that contains the last key
    siblings: dict[str, Any] = field(default_factory=dict)  # members of that section's union
    union: int = -1  # depth of an untagged union in the path


def locate(tree: Node, loc: Sequence[str | int]) -> ErrorLocation:
    """Follow a pydantic location without the parts that users do not write: union tags, indexes of single sources."""
    place, siblings = ErrorLocation(tree), dict[str, Any]()
    node: Node | None = tree
    annotation: Any = Config
    for item in loc:
        core, which = introspect.unwrap(annotation)
        if which is not None and node is not None and item in introspect.union_members(core):
            siblings = introspect.union_members(core)
            annotation = siblings[item]
            continue
        if introspect.is_union(core) and which is None and place.union < 0:
            place.union, annotation = len(place.path), None
            continue
        value = node.value if node is not None else None
        if isinstance(value, dict) and isinstance(item, str):
            place.annotation, place.siblings = core, siblings
            place.path.append(item)
            node = value.get(item)
        elif isinstance(value, list) and isinstance(item, int) and item < len(value):
            name = element_name(value[item]) if place.path[-1:] in (["stages"], ["evaluate"]) else None
            place.path.append(name or str(item))
            node = value[item]
        elif value is None or not isinstance(value, dict | list):
            break
        else:  # a single source where the schema wraps it in a list
            annotation = introspect.item_annotation(annotation, item, [])
            continue
        place.raw.append(item)
        place.node = node or place.node
        annotation = introspect.item_annotation(
            annotation, item, value if isinstance(value, list) else shallow_plain(value)
        )
        siblings = {}
    return place


def format_errors(error: ValidationError, tree: Node) -> list[str]:
    """Return one line per problem, in the order of the schema; alternatives of a union share a line."""
    found = [(locate(tree, item["loc"]), item) for item in error.errors(include_url=False)]
    lines: dict[tuple[str, ...], tuple[str, list[str], str]] = {}
    for place, item in found:
        head, reason, tail = _error_parts(place, item)
        tail = _name_stage(tail, place.path, tree)
        deeper = any(
            other.union == place.union >= 0 and other.path[: place.union] == place.path[: place.union]
            and len(other.path) > len(place.path) for other, _ in found
        )  # fmt: skip
        if deeper and len(place.path) == place.union:
            continue  # the error of the other member of the union is more specific
        key = (head, *place.path) if place.union >= 0 else (head, *place.path, reason)
        lines.setdefault(key, (head, [], tail))[1].append(reason)
    return [f"{head}: {', or '.join(dict.fromkeys(reasons))}{tail}" for head, reasons, tail in lines.values()]


def _error_parts(place: ErrorLocation, item: Mapping[str, Any]) -> tuple[str, str, str]:
    kind, context = item["type"], item.get("ctx", {})
    reason = _REASONS.get(kind) or str(context.get("error", item["msg"]))
    reason = reason.replace("Input should be", "must be").removesuffix(" after validation, not 0")
    reason = re.sub(r"^(List|String|Dictionary|Value) ", lambda match: match[1].lower() + " ", reason)
    tail, path, node = "", place.path, place.node
    if kind == "value_error":
        path, node = _mentioned_key(place, reason)
    elif kind == "extra_forbidden":
        key = ".".join("*" if isinstance(part, int) else part for part in place.raw)
        reason = f"now called '{RENAMED[key]}'" if key in RENAMED else "unknown key"
        tail = "" if key in RENAMED else _suggest_key(place)
    elif kind == "literal_error" and path[-1:] not in _NO_SUGGESTIONS:
        tail = _suggestion(item["input"], re.findall(r"'([^']*)'", context["expected"]))
    elif kind == "unknown_kind":
        if isinstance(node.value, dict):
            tag = reason.split("'")[1]
            tail = _suggestion(item["input"].get(tag), re.findall(r"[\w-]+", reason.split(":")[-1]))
            if tag in node.value:
                path, node = [*path, tag], node.value[tag]
        else:
            reason = _REASONS["model_type"]
    got = "" if kind in _WITHOUT_VALUE else f" (got {format_value(node, path)})"
    written = ascii(".".join(path))[1:-1]
    return (f"{node.where}: {written[:120]}" if written else node.where), reason, got + tail


def _name_stage(text: str, path: Sequence[str], tree: Node) -> str:
    """Replace STAGE in a suggestion by the stage that the path names or the only one, or say which there are."""
    stages = tree.value.get("stages") if isinstance(tree.value, dict) else None
    elements = stages.value if stages is not None and isinstance(stages.value, list) else []
    names = [name for stage in elements if (name := element_name(stage))]
    if path[:1] == ["stages"] and len(path) > 1:
        names = [path[1]]
    if "stages.STAGE" not in text or not names:
        return text
    if len(names) == 1:
        return text.replace("stages.STAGE", f"stages.{names[0]}")
    return f"{text}; STAGE is {' or '.join(names[:4])}"


def _suggest_key(place: ErrorLocation) -> str:
    """Suggest an option for an unknown key, or for the names of another trainer in an unknown section."""
    if isinstance(place.node.value, dict):
        inner = [known for name in _leaves(place.node) if (known := foreign_names.explain(name))]
        if inner:
            return "; " + "; ".join(dict.fromkeys(inner))
    return introspect.suggest_key(place.path[-1], place.annotation, place.siblings)


def _leaves(node: Node) -> Iterator[str]:
    """The last keys of nested mappings."""
    for name, value in node.value.items():
        yield from _leaves(value) if isinstance(value.value, dict) and value.value else [name]


def _suggestion(given: Any, allowed: list[str]) -> str:
    found = introspect.closest_match(given, allowed) if isinstance(given, str) else None
    return f"; did you mean '{found}'?" if found else ""


def _mentioned_key(place: ErrorLocation, reason: str) -> tuple[list[str], Node]:
    """Find the first key (or the stage) that the message of a rule between keys names."""
    if isinstance(place.node.value, dict) and place.path:
        for word in re.findall(r"\w+", reason):
            if word in place.node.value:
                return [*place.path, word], place.node.value[word]
    stages = place.node.value.get("stages") if isinstance(place.node.value, dict) else None
    if stages is not None and isinstance(stages.value, list):
        for stage in stages.value:
            if f"stage '{element_name(stage)}'" in reason:
                return ["stages", str(element_name(stage))], stage
    return place.path, place.node


def format_value(node: Node, path: Sequence[str] = ()) -> str:
    """Format a value on one short line; values of keys named like secrets are hidden."""
    if path and SECRET_KEY.search(path[-1]) and isinstance(node.value, str):
        return "'***'"
    value = mask_secrets(to_plain(node))
    text = ascii(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def mask_secrets(data: Any) -> Any:
    """Hide the text under keys named like secrets in plain data."""
    if isinstance(data, list):
        return [mask_secrets(item) for item in data]
    if not isinstance(data, dict):
        return data
    secret = {key for key, value in data.items() if SECRET_KEY.search(key) and isinstance(value, str)}
    return {key: "***" if key in secret else mask_secrets(value) for key, value in data.items()}


def config_error(problems: Sequence[str]) -> UserError:
    """Return one error with a line per problem, at most MAX_LINES."""
    lines = [
        line if len(line) <= MAX_LINE_LENGTH else line[: MAX_LINE_LENGTH - 3] + "..."
        for line in dict.fromkeys(problems)
    ]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES:] = [f"... and {len(lines) - MAX_LINES} more problems"]
    return UserError("\n".join(lines))
