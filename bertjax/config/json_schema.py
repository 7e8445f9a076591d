"""The JSON schema of configuration files, with which editors complete and check YAML: `bertjax schema`.

It accepts all that the loader accepts: partial sections (a file may extend another), short forms and mappings over
lists. It refuses unknown keys and values of a wrong type. The loader also checks how options fit together.
"""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from bertjax.config.loading import list_elements
from bertjax.config.loading.introspect import field_types, unwrap
from bertjax.config.schema.base import Section
from bertjax.config.schema.data import Task
from bertjax.config.schema.run import Config
from bertjax.config.schema.training import Trainable

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_EXTENDS = (
    "File to start from: relative to this file, or the name of a shipped configuration, such as `finetune/squad_v1`."
)
_NAME = "Task or mixture of this file or of a registry that this section starts from."
_VALIDATION = "Options of the source for held-out data. Default: `split: validation` of TFDS and the Hub."
Schema = dict[str, Any]


def json_schema() -> Schema:
    """Return the schema of a configuration file, `extends` included."""
    root = Config.model_json_schema()
    models = {model.__name__: model for model in _subclasses(Section)}
    for name, section in (("Config", root), *root["$defs"].items()):
        annotations = field_types(models[name])
        section["properties"] = {key: _relax(option, annotations[key]) for key, option in section["properties"].items()}
        section.pop("required", None)
        section.pop("title", None)
    for name in ("Task", "Mixture"):
        root["$defs"][name]["properties"]["extends"] = {"type": "string", "description": _NAME}
    root["$defs"]["Task"]["properties"]["validation"] = {"type": "object", "description": _VALIDATION}
    names = {"type": "array", "items": {"type": "string"}}
    root["$defs"]["Mixture"]["properties"]["validation"] = names | {"description": "Tasks to evaluate. Default: all."}
    extends = {"extends": {"type": "string", "description": _EXTENDS}}
    head = {"$schema": DIALECT, "title": "bertjax configuration"}
    needed = {"anyOf": [{"required": ["stages"]}, {"required": ["extends"]}]}
    return head | root | {"properties": extends | root["properties"]} | needed


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in model.__subclasses__():
        yield below
        yield from _subclasses(below)


def _relax(option: Schema, annotation: Any) -> Schema:
    """The schema of an option, with the short forms and overrides that the loader accepts in its place."""
    found = {key: value for key, value in option.items() if key != "title"}
    if isinstance(found.get("default"), dict):
        del found["default"]  # long, and repeated in the sections
    if "oneOf" in found:  # sections differ by `kind`, which may be left out: several can fit
        found["anyOf"] = found.pop("oneOf")
    core = unwrap(annotation)[0]
    if core is Task or (get_origin(core) is dict and get_args(core)[1] is Task):  # or a name
        place = found if core is Task else found["additionalProperties"]
        place["anyOf"] = [{"type": "string"}, {"$ref": place.pop("$ref")}]
    if core is Trainable:
        kinds = {"type": "string", "enum": Trainable.model_json_schema()["properties"]["kind"]["enum"]}
        found["anyOf"] = [kinds, {"$ref": found.pop("$ref")}]
    if "anyOf" in found:
        found["anyOf"] = [form for choice in found["anyOf"] for form in _forms(choice, annotation)]
    elif found.get("type") == "array":
        about = {key: found[key] for key in ("description", "default") if key in found}
        return about | {"anyOf": list(_forms(found, annotation))}
    return found


def _forms(schema: Schema, annotation: Any) -> Iterator[Schema]:
    """A list may be overridden by a mapping of its elements' names or numbers; some lists may be their only element."""
    if "oneOf" in schema:
        yield from schema["oneOf"]
        return
    if schema.get("type") != "array":
        yield schema
        return
    items = {"anyOf" if key == "oneOf" else key: value for key, value in schema["items"].items()}
    yield {key: value for key, value in schema.items() if key in ("type", "minItems", "maxItems")} | {"items": items}
    if list_elements.has_named_elements(annotation):
        yield {"type": "object", "additionalProperties": items}
    else:
        yield {"type": "object", "patternProperties": {"^[0-9]+$": items}, "additionalProperties": False}
    if list_elements.accepts_single_element(annotation):
        yield items
