"""Laying one configuration over another: files that extend files, and overrides from the command line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertjax.config import strict_yaml
from bertjax.config.locations import location_problem
from bertjax.config.places import bare, inside, members, nearest
from bertjax.config.schema import Config
from bertjax.config.strict_yaml import Node, plain
from bertjax.errors import UserError

COMMAND_LINE = "command line"
NAMED_LISTS = ("stages", "evaluate")  # lists whose elements can be patched by name
OVERRIDE = re.compile(r"(?:--)?([A-Za-z_][\w-]*(?:\.[\w-]+)*)(?:=(.*))?\Z", re.DOTALL)


def read_chain(path: Path, problems: list[str], seen: tuple[Path, ...] = ()) -> Node:
    """The file laid over the one it `extends`, and so on down. Raises UserError, for a cycle too."""
    node = strict_yaml.read(path, problems)
    extends = node.value.pop("extends", None)
    if extends is None:
        return node
    if not isinstance(extends.value, str) or not extends.value.isprintable():
        raise UserError(f"{extends.where}: extends: expected the path of a file")
    if problem := location_problem(extends.value, remote=False):
        raise UserError(f"{extends.where}: extends: {problem}")
    parent = path.parent / Path(extends.value).expanduser()
    seen = (*seen, path.resolve())
    if parent.resolve() in seen:
        raise UserError(f"{extends.where}: extends: '{extends.value}' leads back to itself")
    if not parent.is_file():
        hint = strict_yaml.nearest_file(parent)
        raise UserError(f"{extends.where}: extends: no such file (got {extends.value!r}){hint}")
    return merge(read_chain(parent, problems, seen), node, problems)


def merge(parent: Node, child: Node, problems: list[str], annotation: Any = Config, path: str = "") -> Node:
    """`child` over `parent`: sections merge key by key, everything else is replaced.

    A new `kind` in a tagged union drops the old kind's keys. Where the parent has a list, a mapping from stage names
    (or positions) patches single elements.
    """
    if path.endswith("trainable") and isinstance(parent.value, str) and isinstance(child.value, dict):
        parent = Node({"kind": parent}, parent.where)
    if not isinstance(child.value, dict):
        return child
    if isinstance(parent.value, list) and _patches(child, path):
        return _patch(parent, child, problems, annotation, path)
    if not isinstance(parent.value, dict):
        return child
    old, both = plain(parent), plain(parent) | plain(child)
    core, which = bare(_element(annotation) if isinstance(old, dict) else annotation)
    if which is not None:
        known = members(core)  # some tags share their keys: bert_adamw and adamw, bert and distilbert
        before, after = (known.get(which(keys) or "") for keys in (old, both))
        if before is not after or ("mixture" in old and "source" in child.value):
            return child
    merged = dict(parent.value)
    for key, value in child.value.items():
        below = f"{path}.{key}" if path else key
        if key in merged:
            value = merge(merged[key], value, problems, inside(annotation, key, both), below)
        merged[key] = value
    return Node(merged, child.where if annotation is Config else parent.where)


def _element(annotation: Any) -> Any:
    """One source may be written where a list of them is expected."""
    core, which = bare(annotation)
    return core.__args__[0] if which is None and getattr(core, "__origin__", None) is list else annotation


def _patches(child: Node, path: str) -> bool:
    return bool(child.value) and (path.split(".")[-1] in NAMED_LISTS or all(key.isdigit() for key in child.value))


def _patch(parent: Node, child: Node, problems: list[str], annotation: Any, path: str) -> Node:
    elements = list(parent.value)
    names = [element_name(item) for item in elements]
    for key, value in child.value.items():
        at = names.index(key) if key in names else int(key) if key.isdigit() else -1
        if 0 <= at < len(elements):
            elements[at] = merge(elements[at], value, problems, inside(annotation, at, elements), f"{path}.{key}")
            continue
        known = [name for name in names if name] or [str(i) for i in range(len(names))]
        hint = nearest(key, known)
        problems.append(
            f"{value.where}: {path}.{ascii(key)[1:-1]}: no such element; there are: {', '.join(known)[:80]}"
            + (f"; did you mean '{hint}'?" if hint else "")
        )
    return Node(elements, parent.where)


def element_name(item: Node) -> str | None:
    """The name an element of a list can be called by: its `name`, or for an evaluation without one its kind."""
    if not isinstance(item.value, dict):
        return None
    name = item.value.get("name") or item.value.get("kind")
    return name.value if name is not None and isinstance(name.value, str) else None


def overrides_tree(overrides: Sequence[str], problems: list[str]) -> Node:
    """`a.b=1`, `--a.b=1` and `--a.b 1` as one tree to lay over a configuration; a later one wins."""
    tree = Node({}, COMMAND_LINE)
    waiting = list(overrides)
    while waiting:
        word = waiting.pop(0)
        match = OVERRIDE.match(word)
        key, text = match.groups() if match else (None, None)
        if key and text is None and word.startswith("--") and waiting:
            text = waiting.pop(0)
        if key is None or text is None:
            problems.append(f"{COMMAND_LINE}: {ascii(word)[1:-1][:80]}: expected key.path=value")
            continue
        try:
            value = strict_yaml.parse(text, lambda line: COMMAND_LINE, problems)
        except UserError as error:
            problems.append(str(error).replace(COMMAND_LINE, f"{COMMAND_LINE}: {key}", 1))
            continue
        _insert(tree, key.split("."), value)
    return tree


def _insert(tree: Node, keys: list[str], value: Node) -> None:
    for key in keys[:-1]:
        if not isinstance(tree.value.get(key, Node(None, "")).value, dict):
            tree.value[key] = Node({}, COMMAND_LINE)
        tree = tree.value[key]
    old = tree.value.get(keys[-1])
    if old is not None and isinstance(old.value, dict) and isinstance(value.value, dict):
        for key, item in value.value.items():
            _insert(old, [key], item)
    else:
        tree.value[keys[-1]] = value
