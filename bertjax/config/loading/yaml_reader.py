"""Read a safe subset of YAML, with the file and line of every value.

Intended differences from PyYAML's SafeLoader: `1e-4` is a number; only `true` and `false` are booleans; `010`, `0x10`,
`12:30` and dates are text; tags, merge keys and duplicate keys are refused; depth, size and the number of values (after
expanding aliases) are limited.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from bertjax.errors import UserError
from bertjax.storage.text import MAX_BYTES, read_text

MAX_VALUES = 20_000
MAX_DEPTH = 40

_INT = r"[-+]?(?:0|[1-9][0-9]{0,17}|[1-9][0-9]{0,2}(?:_[0-9]{3}){1,5})"
_FLOAT = r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)"
_SCALARS: list[tuple[str, str, list[str], Callable[[str], Any]]] = [
    ("null", r"~|null|", ["~", "n", ""], lambda text: None),
    ("bool", r"true|false", ["t", "f"], lambda text: text == "true"),
    ("int", _INT, list("-+0123456789"), lambda text: int(text.replace("_", ""))),
    ("float", _FLOAT, list("-+.0123456789"), lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan"))),
]
_PREFIX = "tag:yaml.org,2002:"
_CONSTRUCT = {_PREFIX + tag: make for tag, _, _, make in _SCALARS} | {_PREFIX + "str": lambda text: text}


@dataclass(slots=True)
class Node:
    """A value and its origin: `file.yaml:12` or `command line`."""

    value: Any  # dict[str, Node], list[Node] or a scalar
    where: str


def to_plain(node: Node) -> Any:
    """Return the value without origins."""
    if isinstance(node.value, dict):
        return {key: to_plain(item) for key, item in node.value.items()}
    return [to_plain(item) for item in node.value] if isinstance(node.value, list) else node.value


def shallow_plain(value: dict[str, Node]) -> dict[str, Any]:
    """Return the scalars and keys of a section, enough to determine its kind."""
    return {key: item.value for key, item in value.items()}


def to_nodes(value: Any, where: str, key: str = "") -> Node:
    """Give every part of `value` the origin `where`. Paths become text, sections mappings, NumPy's arrays numbers.

    Raises UserError for a value that no YAML file can hold; `key` names it.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif isinstance(value, PathLike):
        value = fspath(value)
    elif hasattr(value, "tolist"):  # of NumPy or jax
        value = value.tolist()
    if isinstance(value, dict):
        return Node({str(k): to_nodes(item, where, f"{key}.{k}".lstrip(".")) for k, item in value.items()}, where)
    if isinstance(value, list | tuple):
        return Node([to_nodes(item, where, f"{key}.{n}".lstrip(".")) for n, item in enumerate(value)], where)
    if not isinstance(value, str | int | float | None):
        kind = type(value).__name__
        raise UserError(f"{where}: {key}: a value of type {kind}; give a number, a text, a list or a dictionary")
    return Node(value, where)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem=f"the tag '{event.tag}' is refused", problem_mark=event.start_mark)
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels deep", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that this reader or a common YAML 1.1 reader would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, value: str) -> yaml.Node:
    """Escape line separators and control characters, which would be read as line ends."""
    return dumper.represent_scalar(_PREFIX + "str", value, style=None if value.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
for _tag, _pattern, _first, _ in _SCALARS:
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(_PREFIX + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def dump(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def dump_flow(value: Any) -> str:
    """Write a value in one line: `{kind: csv, files: [a.csv]}`."""
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 1 << 30, "default_flow_style": True}
    return yaml.dump(value, Dumper=_Dumper, **options).removesuffix("\n").removesuffix("\n...")


def read(path: Path, problems: list[str]) -> Node:
    """Read the mapping in a file. Errors that leave the rest readable go to `problems`; others raise UserError."""
    text = read_text(path, MAX_BYTES)
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    node = parse(text, lambda line: f"{path}:{line}", problems)
    if not isinstance(node.value, dict):
        raise UserError(f"{node.where}: expected sections written as 'key: value' (got {type(node.value).__name__})")
    return node


def parse(text: str, where: Callable[[int], str], problems: list[str]) -> Node:
    """Parse `text`; `where(line)` is the origin of a line. Raises UserError if it is outside the subset."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{where(line)}: the character {error.character:#x} is not allowed in YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{where(mark.line + 1 if mark else 1)}: not valid YAML: {ascii(reason)[1:-1][:150]}") from None
    if root is None:
        return Node(None, where(1))
    return _Builder(where, problems).build(root, root.start_mark.line, 0)


class _Builder:
    def __init__(self, where: Callable[[int], str], problems: list[str]):
        self.where, self.problems, self.count = where, problems, 0

    def build(self, node: yaml.Node, line: int, depth: int) -> Node:
        place = self.where(line + 1)
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(f"{place}: aliases expand to more than {MAX_VALUES:,} values or {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            return Node(_CONSTRUCT[node.tag](node.value), place)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.build(item, item.start_mark.line, depth + 1) for item in node.value], place)
        return Node(self._mapping(node, depth), place)

    def _mapping(self, node: yaml.Node, depth: int) -> dict[str, Node]:
        items: dict[str, Node] = {}
        for key, value in node.value:
            line = key.start_mark.line
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{self.where(line + 1)}: a key must be a plain word")
            if key.value in items:
                written = ascii(key.value)[1:-1]
                first = items[key.value].where
                self.problems.append(f"{self.where(line + 1)}: {written}: duplicate key (first at {first})")
            else:
                items[key.value] = self.build(value, line, depth + 1)
        return items
