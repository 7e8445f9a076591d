"""The JSON schema accepts what the loader accepts and refuses unknown keys and values of other types."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertjax.config.json_schema import json_schema
from bertjax.config.loading import yaml_reader
from bertjax.config.loading.load import build, dump, load

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json_schema()
TYPES: dict[str, Any] = {
    "string": str, "object": dict, "array": list, "boolean": bool, "null": type(None), "number": int | float,
    "integer": int | float,
}  # fmt: skip


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON Schema that is used here; an unknown keyword is an error."""
    known = {
        "$schema", "$defs", "title", "description", "default", "type", "properties", "additionalProperties", "items",
        "anyOf", "$ref", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems",
        "maxItems", "pattern", "patternProperties", "required", "multipleOf", "minLength",
    }  # fmt: skip
    assert schema.keys() <= known, schema.keys() - known
    if "$ref" in schema and not fits(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[-1]]):
        return False
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if (kind == "integer" and value != int(value)) or ("const" in schema and value != schema["const"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(fits(value, choice) for choice in schema["anyOf"]):
        return False
    if isinstance(value, dict):
        if not set(schema.get("required", ())) <= value.keys():
            return False
        others = schema.get("additionalProperties", True)
        for key, item in value.items():
            ways = [schema["properties"][key]] if key in schema.get("properties", ()) else []
            ways += [way for pattern, way in schema.get("patternProperties", {}).items() if re.search(pattern, key)]
            if not ways and others is False:
                return False
            ways = ways or ([others] if isinstance(others, dict) else [])
            if not all(fits(item, way) for way in ways):
                return False
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(fits(item, schema.get("items", {})) for item in value)
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, above = schema.get("minimum", value), schema.get("exclusiveMinimum", value - 1)
        high, below = schema.get("maximum", value), schema.get("exclusiveMaximum", value + 1)
        return low <= value <= high and above < value < below
    return True


def content(text: str) -> Any:
    problems: list[str] = []
    found = yaml_reader.to_plain(yaml_reader.parse(text, lambda line: str(line), problems))
    assert not problems
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_fit(path):
    assert fits(content(path.read_text()), SCHEMA)


def test_resolved_configurations_fit():
    for name in ("demo", "debug/t5_cpu", "bert/distilbert_base", "debug/compare"):
        assert fits(yaml.safe_load(dump(load(name))), SCHEMA)


STAGE = "name: s, steps: 1, data: {source: {files: [a.txt]}}"


@pytest.mark.parametrize(
    "text",
    [
        f"stages: [{{{STAGE}}}]",
        f"stages: [{{{STAGE}, trainable: gradual}}]",
        f"stages: [{{{STAGE}, trainable: {{kind: gradual, episodes: 2}}}}]",
        "stages: [{name: s, steps: 1e3, data: {source: [{kind: jsonl, files: [a.jsonl]}, {kind: stdlib_docs}]}}]",
        "stages: [{name: s, steps: 1, data: {mixture: {a: 1, b: 2.5}, rate: explicit}}]",
    ],
)
def test_short_forms_fit(text):
    assert fits(content(text), SCHEMA)
    if "mixture" not in text:
        build(content(text))


@pytest.mark.parametrize(
    "text",
    [
        "extends: finetune/squad_v2",
        "extends: demo\nstages: {qa: {trainable: head, evaluate: {unseen_modules: {n_best: 5}}}}",
        "extends: demo\nstages: {0: {steps: 5, data: questions}}",
        "extends: demo\ntasks: {docs: {source: {split: all}, preprocess: {dupe_factor: 1}}}",
        "extends: demo\ntasks: {docs: {source: {'0': {split: all}}}}",
        "extends: demo\nregistries: mine.yaml\ntasks: {cola: glue_cola_v002, rte: {extends: glue_rte_v002, limit: 3}}",
        "extends: demo\nstages: {qa: {data: glue_cola_v002, evaluate: [{kind: loss, data: glue_cola_v002}]}}",
    ],
)
def test_overrides_of_another_file_fit(text, tmp_path):
    assert fits(content(text), SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "run: {name: x}",
        "extends: demo\nrun: {sed: 1}",
        "extends: demo\nrun: {seed: one}",
        "extends: demo\nrun: {seed: -1}",
        "extends: demo\nrun: {seed: true}",
        "extends: demo\nstages: {qa: {trainable: most}}",
        "extends: demo\nstages: {qa: {objective: {kind: span_qaa}}}",
        "extends: demo\ntasks: {docs: {source: {kind: jsonl, splt: all}}}",
        "extends: demo\ntasks: {docs: {source: {first: {split: all}}}}",
        "extends: demo\ntasks: {cola: {extends: 3}}",
        "extends: demo\ntasks: {cola: [glue_cola_v002]}",
        "extends: demo\ntask_feature_lengths: {input: 3}",
        "extends: [demo]",
    ],
)
def test_mistakes_do_not_fit(text):
    assert not fits(content(text), SCHEMA)


def test_every_option_is_described_and_nothing_points_nowhere():
    text = json.dumps(SCHEMA)
    assert set(re.findall(r'"#/\$defs/(\w+)"', text)) <= SCHEMA["$defs"].keys()
    assert "oneOf" not in text and '"discriminator":' not in text
