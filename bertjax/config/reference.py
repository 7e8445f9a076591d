"""Write docs/configuration_reference.md from the configuration sections: `python -m bertjax.config.reference`."""

import json
import re
from collections.abc import Iterator
from typing import Any

from bertjax.config.limits import MAX_COUNT, MAX_LAYERS, MAX_RECORDS, MAX_SEED, MAX_SIZE, MAX_VOCABULARY
from bertjax.config.schema.run import Config

HEAD = """\
# Configuration reference

All options of a configuration with type, default and meaning. Headings are paths of sections; NAME is the name of a
task, mixture, stage, evaluation or variant. This page is generated: edit the descriptions in `bertjax/config/schema/`
and run

    python -m bertjax.config.reference > docs/configuration_reference.md

Integers have upper limits, which are not repeated below: 1,000 for layers, 2^20 for other sizes, such as widths,
lengths and rows of a batch, 2^24 for vocabularies, 2^53 for numbers of records, 2^63 - 1 for seeds, else 2^31 - 1.
"""
_LIMITS = (MAX_COUNT, MAX_SIZE, MAX_VOCABULARY, MAX_LAYERS, MAX_RECORDS, MAX_SEED)
Schema = dict[str, Any]
_BOUNDS = {
    "exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<=", "multipleOf": "multiple of",
}  # fmt: skip
_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`", "null": "null"}


def render() -> str:
    """Return the page as Markdown."""
    root = Config.model_json_schema()
    sections: dict[str, Schema] = root["$defs"]
    order = list(root["properties"])
    tasks_first = {"properties": {key: root["properties"][key] for key in sorted(order, key="tasks".__ne__)}}
    paths: dict[str, str] = {}
    _add_paths("", tasks_first, sections, paths)  # sources are listed under tasks, not under tokenizer.train_on
    lines = [HEAD, *_table(root, paths)]
    for path in sorted(dict.fromkeys(paths.values()), key=lambda path: order.index(path.split(".")[0])):
        names = [name for name in paths if paths[name] == path]
        lines += [f"\n## {path}"]
        for name in names:
            lines += [f"\n### {path}, {_kinds(sections[name])}"] if len(names) > 1 else []
            lines += [f"\n{' '.join(sections[name].get('description', '').split())}\n"]
            lines += _table(sections[name], paths)
    return "\n".join(lines) + "\n"


def _add_paths(path: str, section: Schema, sections: dict[str, Schema], paths: dict[str, str]) -> None:
    """Add the first path of every section below `section` to `paths`."""
    for key, option in section["properties"].items():
        names = [name for name in dict.fromkeys(_references(option)) if name not in paths]
        if names:
            named = "additionalProperties" in option or (
                "items" in option and "name" in sections[names[0]]["properties"]
            )
            place = f"{path}{key}{'.NAME' * named}"
            paths |= dict.fromkeys(names, place)
            for name in names:
                _add_paths(f"{place}.", sections[name], sections, paths)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rsplit("/", 1)[-1]
        for key in ("anyOf", "oneOf", "items", "additionalProperties"):
            yield from _references(schema.get(key))
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


def _kinds(section: Schema) -> str:
    """The key that selects a section, with its values."""
    key = "family" if "family" in section["properties"] else "kind"
    option = section["properties"][key]
    return f"{key}: {' or '.join(option.get('enum') or [option['const']])}"


def _table(section: Schema, paths: dict[str, str]) -> Iterator[str]:
    options = {key: option for key, option in section["properties"].items() if "const" not in option}
    if options:
        yield "| Option | Type | Default | Meaning |"
        yield "|---|---|---|---|"
    for key, option in options.items():
        default = "required" if key in section.get("required", ()) else _default(option.get("default"))
        yield f"| `{key}` | {_type(option, paths)} | {default} | {option.get('description', '')} |"


def _default(value: Any) -> str:
    if isinstance(value, dict) and value:
        tags = [f"{tag}: {value[tag]}" for tag in ("family", "kind") if tag in value]
        return f"`{tags[0]}`" if tags else ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _type(schema: Schema, paths: dict[str, str]) -> str:
    """The type in words, with links to sections."""
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(choice, paths) for choice in choices))
    if "$ref" in schema:
        path = paths[schema["$ref"].rsplit("/", 1)[-1]]
        return f"[{path}](#{re.sub(r'[^a-z_-]', '', path.lower())})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {_type(schema['items'], paths)}"
    if schema["type"] == "object":
        values = schema["additionalProperties"]
        keys = f"names to {_type(values, paths)}" if isinstance(values, dict) else "keys to values"
        return f"mapping of {keys}"
    found = {bound: schema[bound] for bound in _BOUNDS if bound in schema}
    if schema["type"] == "integer" and found.get("maximum") in _LIMITS:
        del found["maximum"]
    bounds = [f"{_BOUNDS[bound]} {limit:g}" for bound, limit in found.items()]
    return " ".join([_TYPES[schema["type"]], ", ".join(bounds)]).strip()


if __name__ == "__main__":
    print(render(), end="")
