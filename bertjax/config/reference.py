"""Write docs/configuration_reference.md from the configuration sections: `python -m bertjax.config.reference`."""

import json
import re
from collections.abc import Iterator
from typing import Any

from bertjax.config.schema.run import Config

HEAD = """\
# Configuration reference

All options of a configuration with type, default and meaning. Headings are paths of sections; NAME is the name of a
task, mixture, stage, evaluation or variant. This page is generated: edit the descriptions in `bertjax/config/schema/`
and run

    python -m bertjax.config.reference > docs/configuration_reference.md
"""
Schema = dict[str, Any]
_BOUNDS = {
    "exclusiveMinimum": ">",
    "minimum": ">=",
    "exclusiveMaximum": "<",
    "maximum": "<=",
    "multipleOf": "multiple of",
}
_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`", "null": "null"}


def render() -> str:
    """Return the page as Markdown."""
    root = Config.model_json_schema()
    sections: dict[str, Schema] = root["$defs"]
    options = list(root["properties"])
    tasks_first = {"properties": {key: root["properties"][key] for key in sorted(options, key="tasks".__ne__)}}
    groups = _groups("", tasks_first, sections, {})  # sources are listed under tasks, not under tokenizer.train_on
    paths = {name: path for path, names in groups.items() for name in names}
    lines = [HEAD, *_table(root, paths)]
    for path, names in sorted(groups.items(), key=lambda group: options.index(group[0].split(".")[0])):
        lines += [f"\n## {path}"]
        for name in names:
            lines += [f"\n### {path}, {_kinds(sections[name])}"] if len(names) > 1 else []
            lines += [f"\n{' '.join(sections[name].get('description', '').split())}\n"]
            lines += _table(sections[name], paths)
    return "\n".join(lines) + "\n"


def undescribed() -> list[str]:
    """Return `Section` and `Section.option` for all that have no description; a key with one value needs none."""
    root = Config.model_json_schema()
    found = [name for name, section in root["$defs"].items() if not section.get("description")]
    for name, section in {"Config": root, **root["$defs"]}.items():
        options = section["properties"].items()
        found += [f"{name}.{key}" for key, option in options if not option.get("description") and "const" not in option]
    return found


def _groups(
    path: str, section: Schema, sections: dict[str, Schema], found: dict[str, list[str]]
) -> dict[str, list[str]]:
    """{path: names of the sections that are possible there}; a section is listed at the first path that has it."""
    for key, option in section["properties"].items():
        names = [
            name for name in dict.fromkeys(_references(option)) if not any(name in group for group in found.values())
        ]
        if names:
            named = "additionalProperties" in option or "name" in sections[names[0]]["properties"] and "items" in option
            place = f"{path}{key}{'.NAME' * named}"
            found[place] = names
            for name in names:
                _groups(f"{place}.", sections[name], sections, found)
    return found


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
        return f"mapping of names to {_type(schema['additionalProperties'], paths)}"
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in _BOUNDS.items() if bound in schema]
    return " ".join([_TYPES[schema["type"]], ", ".join(bounds)]).strip()


if __name__ == "__main__":
    print(render(), end="")
