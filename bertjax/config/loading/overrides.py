"""Merge configurations: files that extend others, and overrides from the command line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.config.loading import list_elements, yaml_reader
from bertjax.config.loading.introspect import item_annotation, union_members, unwrap
from bertjax.config.loading.shipped import find_shipped
from bertjax.config.loading.yaml_reader import MAX_DEPTH, Node, shallow_plain
from bertjax.config.schema.data import Task
from bertjax.config.schema.run import Config
from bertjax.config.schema.training import Trainable
from bertjax.errors import UserError
from bertjax.storage.locations import path_problem
from bertjax.storage.text import suggest_file

COMMAND_LINE = "command line"
ARGUMENTS = "keyword argument"
OVERRIDE_PATTERN = re.compile(r"(?:--)?([A-Za-z_][\w-]*(?:\.[\w-]+)*)(?:=(.*))?\Z", re.DOTALL)


class DottedOverride(Node):
    """A mapping made by the dots of an override, which selects a key; it is not a value."""

    __slots__ = ()


def read_with_extends(path: Path, problems: list[str], seen: tuple[Path, ...] = ()) -> Node:
    """Read a file and merge it over the files that it `extends`. Raises UserError, also for a cycle."""
    node = yaml_reader.read(path, problems)
    _anchor_registries(node, path.parent)
    extends = node.value.pop("extends", None)
    if extends is None:
        return node
    if not isinstance(extends.value, str) or not extends.value.isprintable():
        raise UserError(f"{extends.where}: extends: expected the path of a file")
    if problem := path_problem(extends.value, remote=False):
        raise UserError(f"{extends.where}: extends: {problem}")
    local = path.parent / Path(extends.value).expanduser()
    parent = local if local.is_file() else find_shipped(extends.value)
    seen = (*seen, path.resolve())
    if parent is None:
        raise UserError(f"{extends.where}: extends: no such file (got {extends.value!r}){suggest_file(local)}")
    if parent.resolve() in seen:
        raise UserError(f"{extends.where}: extends: '{extends.value}' leads back to itself")
    return merge(read_with_extends(parent, problems, seen), node, problems)


def _anchor_registries(node: Node, folder: Path) -> None:
    """Make the paths of registries absolute; names of shipped registries stay."""
    given = node.value.get("registries")
    for item in given.value if given is not None and isinstance(given.value, list) else filter(None, [given]):
        if isinstance(item.value, str) and not path_problem(item.value, remote=False):
            path = folder / Path(item.value).expanduser()
            if path.is_file():
                item.value = str(path.resolve())


def expand_name(task: Node) -> Node:
    """`cola: glue_cola_v002` as `cola: {extends: glue_cola_v002}`."""
    return Node({"extends": task}, task.where) if isinstance(task.value, str) else task


def merge(parent: Node, child: Node, problems: list[str], annotation: Any = Config, path: str = "") -> Node:
    """Merge `child` over `parent`: sections by key, mappings over lists by element (`_merge_into_list`); else replace.

    A `kind` changes only if the child names another one, which drops the keys of the old kind.
    """
    if unwrap(annotation)[0] is Trainable:
        parent, child = _expand_shorthand(parent), _expand_shorthand(child)
    if unwrap(annotation)[0] is Task and isinstance(child.value, dict):
        parent = expand_name(parent)
    if isinstance(child.value, list):
        problems += list_elements.implicit_kind_changes(parent, child, annotation, path)
        return child
    if not isinstance(child.value, dict):
        return child
    single = list_elements.accepts_single_element(annotation)
    if single and isinstance(parent.value, dict) and child.value and all(key.isdecimal() for key in child.value):
        parent = Node([parent], parent.where)
    if isinstance(parent.value, list):
        return _merge_into_list(parent, child, problems, annotation, path)
    if not isinstance(parent.value, dict):
        if isinstance(child, DottedOverride) and parent.value is not None:
            problems.append(_no_keys_message(parent, child, path))
            return parent
        return child
    section = list_elements.element_type(annotation) if single else annotation
    old, both = shallow_plain(parent.value), shallow_plain(parent.value | child.value)
    core, which = unwrap(section)
    if which is not None:
        known = union_members(core)
        before, after = (known.get(which(keys) or "") for keys in (old, both))
        related = before and after and (issubclass(after, before) or issubclass(before, after))  # bert, distilbert
        if (before is not after and not related) or ("mixture" in old and "source" in child.value):
            return child
    merged = dict(parent.value)
    for key, value in child.value.items():
        below = f"{path}.{key}" if path else key
        if key in merged:
            value = merge(merged[key], value, problems, item_annotation(section, key, both), below)
        merged[key] = value
    return Node(merged, child.where if annotation is Config else parent.where)


def _expand_shorthand(node: Node) -> Node:
    return Node({"kind": node}, node.where) if isinstance(node.value, str) else node


def _no_keys_message(parent: Node, child: Node, path: str) -> str:
    key, value = next(iter(child.value.items()))
    hint = "override it where it is defined, or " if path.endswith(".data") else ""
    head = f"{value.where}: {path}.{ascii(key)[1:-1]}"
    return f"{head}: {path} is {parent.value!a:.60} here, which has no keys; {hint}give all of {path} as one value"


def _merge_into_list(parent: Node, child: Node, problems: list[str], annotation: Any, path: str) -> Node:
    """Merge a mapping over a list. Keys that are names or indices of elements patch those elements.

    Other keys patch the only element of a list that may be written as that element; with several elements they are
    refused. If the type may also be a mapping, a mapping given as a value replaces the list.
    """
    keys, count = list(child.value), len(parent.value)
    first = next(iter(child.value.values()), child)
    if not keys or (list_elements.accepts_mapping(annotation) and not isinstance(child, DottedOverride)):
        return child
    if list_elements.has_named_elements(annotation) or all(key.isdecimal() for key in keys):
        return _patch_elements(parent, child, problems, annotation, path)
    if list_elements.accepts_single_element(annotation) and count == 1:
        only = merge(parent.value[0], child, problems, list_elements.element_type(annotation), path)
        return Node([only], parent.where)
    if list_elements.accepts_single_element(annotation):
        which = " or ".join(f"{path.rsplit('.', 1)[-1]}.{at}.{keys[0]}" for at in range(min(count, 3)))
        reason = f"there are {count} elements; say which one: {which}{', ...' * (count > 3)}"
    elif isinstance(child, DottedOverride):
        last = path.rsplit(".", 1)[-1]
        remedy = f"use an index (0 to {count - 1}), or give all of {last} as one value"
        reason = f"{last} is a list of {count} here; {remedy}"
    else:
        return child  # validation reports the error
    problems.append(f"{first.where}: {path}.{ascii(keys[0])[1:-1]}: {reason}")
    return parent


def _patch_elements(parent: Node, child: Node, problems: list[str], annotation: Any, path: str) -> Node:
    elements = list(parent.value)
    names = list_elements.element_names(elements, annotation)
    patches: dict[int, Node] = {}
    for key, value in child.value.items():
        at = list_elements.find_element(key, names)
        if isinstance(at, str):
            problems.append(f"{value.where}: {path}.{ascii(key)[1:-1]}: {at}")
        elif at in patches:  # selected by name and by index
            patches[at] = _merge_mappings(patches[at], value)
        else:
            patches[at] = value
    for at, value in patches.items():
        element = item_annotation(annotation, at, elements)
        elements[at] = merge(elements[at], value, problems, element, f"{path}.{names[at] or at}")
    return Node(elements, parent.where)


def _merge_mappings(first: Node, second: Node) -> Node:
    """Merge two mappings; the second has precedence and replaces anything that is not a mapping."""
    if not isinstance(first.value, dict) or not isinstance(second.value, dict):
        return second
    merged = dict(first.value)
    for key, value in second.value.items():
        merged[key] = _merge_mappings(merged[key], value) if key in merged else value
    return DottedOverride(merged, first.where) if isinstance(first, DottedOverride) else Node(merged, first.where)


def parse_overrides(overrides: Sequence[str], problems: list[str]) -> Node:
    """Parse `a.b=1`, `--a.b=1` and `--a.b 1` into one tree of overrides; the last one of a key wins."""
    tree: Node = DottedOverride({}, COMMAND_LINE)
    waiting = list(overrides)
    while waiting:
        word = waiting.pop(0)
        match = OVERRIDE_PATTERN.match(word)
        key, text = match.groups() if match else (None, None)
        if key and text is None and word.startswith("--") and waiting:
            text = waiting.pop(0)
        if key is None or text is None:
            problems.append(f"{COMMAND_LINE}: {ascii(word)[1:-1][:80]}: expected key.path=value")
            continue
        if key.count(".") >= MAX_DEPTH:
            problems.append(f"{COMMAND_LINE}: {key[:60]}...: more than {MAX_DEPTH} levels deep")
            continue
        try:
            value = yaml_reader.parse(text, lambda line: COMMAND_LINE, problems)
        except UserError as error:
            problems.append(str(error).replace(COMMAND_LINE, f"{COMMAND_LINE}: {key}", 1))
            continue
        _set_dotted(tree, key.split("."), value, problems)
    return tree


def parse_sections(sections: Mapping[str, Any], problems: list[str]) -> Node:
    """Turn keyword arguments (`run={"name": "x"}`, `**{"run.seed": 1}`) into one tree of overrides."""
    tree: Node = DottedOverride({}, ARGUMENTS)
    for key, value in sections.items():
        if OVERRIDE_PATTERN.fullmatch(key) is None or "=" in key or key.count(".") >= MAX_DEPTH:
            problems.append(f"{ARGUMENTS}: {ascii(key)[1:-1][:80]}: expected a key or a dotted key")
        else:
            _set_dotted(tree, key.split("."), yaml_reader.to_nodes(value, ARGUMENTS), problems)
    return tree


def _set_dotted(tree: Node, keys: list[str], value: Node, problems: list[str]) -> None:
    for depth, key in enumerate(keys[:-1]):
        below = tree.value.setdefault(key, DottedOverride({}, tree.where))
        if key == "trainable":
            below = tree.value[key] = _expand_shorthand(below)
        if not isinstance(below.value, dict):
            given = ".".join(keys[: depth + 1])
            problems.append(f"{tree.where}: {'.'.join(keys)}: {given} is also given as one value; put it there")
            return
        tree = below
    key = keys[-1]
    if key == "trainable":
        value = _expand_shorthand(value)
    tree.value[key] = _merge_mappings(tree.value[key], value) if key in tree.value else value
