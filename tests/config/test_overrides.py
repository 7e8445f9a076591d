"""Overrides and `extends` over lists and tagged unions: what was not named stays as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertjax.config.loading import yaml_reader
from bertjax.config.loading.load import build, dump, load
from bertjax.config.loading.overrides import merge, parse_overrides
from bertjax.config.loading.yaml_reader import to_nodes, to_plain
from bertjax.errors import UserError

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "configs").glob("*.yaml"))
TEXT = "{source: {files: [a.txt]}}"
HELD = "{source: {kind: jsonl, files: [held.jsonl], text_field: body}, preprocess: {sequence_length: 64}}"
CONFIG = f"""\
tasks:
  two: {{source: [{{kind: jsonl, files: [a.jsonl]}}, {{kind: squad, files: [b.json]}}]}}
  one: {{source: {{kind: tsv, files: [a.tsv], text_field: sentence}}}}
mixtures: {{both: {{mixture: [one, two]}}}}
stages:
  - {{name: first, data: {TEXT}, steps: 10, evaluate: [{{kind: mlm, data: {HELD}}}]}}
  - {{name: second, data: one, steps: 10, evaluate: [{{kind: mlm, name: a, data: {HELD}}}, {{name: b, data: {HELD}}}]}}
compare: [{{name: full, trainable: all}}, {{name: small, trainable: {{kind: adapters, adapter_size: 8}}}}]
"""


@pytest.fixture(params=["written", "resolved"])
def config(request, tmp_path, monkeypatch) -> str:
    """The configuration as a person writes it, and as a run keeps it: there every source is a list."""
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG, encoding="utf-8")
    if request.param == "resolved":
        Path("c.yaml").write_text(dump(load("c.yaml")), encoding="utf-8")
    return "c.yaml"


def changed(path: str, *overrides: str) -> dict[str, Any]:
    """Leaves of the configuration that overrides changed, by dotted path."""
    before, after = (leaves(load(path, given).model_dump(mode="json")) for given in ((), overrides))
    return {key: after.get(key) for key in before | after if before.get(key) != after.get(key)}


def leaves(data: Any, prefix: str = "") -> dict[str, Any]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    if not data or not isinstance(data, dict | list):
        return {prefix[:-1]: data}
    return {key: leaf for name, item in items for key, leaf in leaves(item, f"{prefix}{name}.").items()}


def refused(path: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    (line,) = str(caught.value).splitlines()
    return line


# ---- one leaf -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.first.evaluate.mlm.data.source.files=[x]", {"stages.0.evaluate.0.data.source.0.files.0": "x"}),
        ("stages.0.evaluate.0.data.source.0.files=[x]", {"stages.0.evaluate.0.data.source.0.files.0": "x"}),
        ("stages.0.evaluate.0.data.source.files.0=x", {"stages.0.evaluate.0.data.source.0.files.0": "x"}),
        ("stages.0.evaluate.mlm.data.source={files: [x]}", {"stages.0.evaluate.0.data.source.0.files.0": "x"}),
        ("stages.second.evaluate.b.batch_size=7", {"stages.1.evaluate.1.batch_size": 7}),
        ("tasks.two.source.1.files=[x]", {"tasks.two.source.1.files.0": "x"}),
        ("tasks.one.source.text_field=x", {"tasks.one.source.0.text_field": "x"}),
        ("tasks.one.source.0.text_field=x", {"tasks.one.source.0.text_field": "x"}),
        ("mixtures.both.mixture.1=three", {"mixtures.both.mixture.1": "three"}),
        ("compare.small.trainable.adapter_size=4", {"compare.1.trainable.adapter_size": 4}),
        ("compare.1.trainable.kind=gradual", {"compare.1.trainable.kind": "gradual"}),
        ("compare.small.trainable=gradual", {"compare.1.trainable.kind": "gradual"}),
    ],
)
def test_an_override_changes_what_it_names(config, override, expected):
    assert changed(config, override) == expected


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_overriding_any_leaf_of_a_resolved_configuration_changes_that_leaf(data):
    """Every shipped configuration as a run keeps it; a leaf is set by indices, and by names where elements have one."""
    path = data.draw(st.sampled_from(GOLDEN))
    tree = to_plain(yaml_reader.read(path, []))
    flat = {key: leaf for key, leaf in leaves(tree).items() if not isinstance(leaf, dict | list)}
    tags = ("kind", "family")  # naming another kind means another section
    named = [key for key in flat if key.split(".")[-1] not in tags and "rules" not in key and is_path(key, tree)]
    key = data.draw(st.sampled_from(named))
    for spelled in {key, by_name(key, tree)}:
        problems: list[str] = []
        override = parse_overrides([f"{spelled}={json.dumps('other')}"], problems)
        after = to_plain(merge(to_nodes(tree, "f"), override, problems))
        assert problems == [] and leaves(after) == leaves(tree) | {key: "other"}, spelled


def is_path(key: str, tree: Any) -> bool:
    """Whether the dots of a key separate its parts: a key of `overrides` has dots of its own."""
    node = tree
    for part in key.split("."):
        if isinstance(node, dict) and part not in node:
            return False
        node = node[int(part)] if isinstance(node, list) else node[part]
    return True


def by_name(key: str, tree: Any) -> str:
    spelled, node = [], tree
    for part in key.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
        named = spelled and spelled[-1] in ("stages", "evaluate", "compare")
        spelled.append(node["name"] if named else part)
    return ".".join(spelled)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tasks.two.source.files=[x]", "tasks.two.source.files: there are 2 elements; say which one: source.0.files"),
        ("tasks.two.source={kind: text, files: [x]}", "tasks.two.source.kind: there are 2 elements; say which one"),
        ("tasks.two.source.2.files=[x]", "tasks.two.source.2: no such element; must be one of 0, 1"),
        ("tasks.two.source=[{kind: squad, files: [x]}, {files: [y]}]", "tasks.two.source.1: give it a kind: without"),
        ("tasks.one.source=[{files: [x]}]", "tasks.one.source.0: give it a kind: without one it is 'text', and the "),
        ("tasks.one.source.1.files=[x]", "tasks.one.source.1: no such element; must be one of 0"),
        ("mixtures.both.mixture.one=2.0", "mixtures.both.mixture.one: mixture is a list of 2 here; use an index (0 to"),
        ("stages.second.data.limit=5", "stages.second.data.limit: stages.second.data is 'one' here, which has no keys"),
        ("stages.second.evaluate.c.batch_size=5", "stages.second.evaluate.c: no such element; must be one of a, b or"),
        ("compare.ful.trainable=all", "compare.ful: no such element; must be one of full, small or its index; did you"),
        ("stages.0.objective.kind=[1]", "stages.first.objective.kind: 'kind' must be one of"),
    ],
)  # fmt: skip
def test_what_could_replace_a_list_or_a_value_silently_is_refused(config, override, expected):
    assert refused(config, override).startswith(f"command line: {expected}")


def test_a_path_through_a_written_value_is_refused(config):
    Path("set.yaml").write_text(CONFIG + "run: {segments: auto}\n", encoding="utf-8")
    expected = "command line: run.segments.0: run.segments is 'auto' here, which has no keys; give all of run.segments"
    assert refused("set.yaml", "run.segments.0=1").startswith(expected)


def test_two_elements_of_one_name_need_an_index(config):
    same = f"stages.first.evaluate=[{{kind: mlm, data: {HELD}}}, {{kind: mlm, data: {HELD}}}]"
    Path("same.yaml").write_text(dump(load(config, [same])), encoding="utf-8")
    line = refused("same.yaml", "stages.first.evaluate.mlm.batch_size=4")
    assert line.endswith("stages.first.evaluate.mlm: several elements have this name; use an index: 0, 1")
    override = "stages.first.evaluate.1.batch_size=4"
    assert changed("same.yaml", override) == {"stages.0.evaluate.1.batch_size": 4}


# ---- kinds ----------------------------------------------------------------------------------------------------------


def test_a_kind_changes_where_it_is_named(config):
    source = load(config, ["tasks.one.source.kind=jsonl", "tasks.one.source.files=[x]"]).tasks["one"].source
    assert [s.model_dump() for s in source] == [{"kind": "jsonl", "files": ["x"], "text_field": "text"}]
    source = load(config, ["tasks.two.source.1={kind: jsonl, files: [x]}"]).tasks["two"].source
    assert [s.kind for s in source] == ["jsonl", "jsonl"]
    source = load(config, ["tasks.two.source=[{kind: text, files: [x]}]"]).tasks["two"].source
    assert [s.kind for s in source] == ["text"]


@pytest.mark.parametrize(
    ("section", "leaf", "kind"),
    [
        ("stages.0.optimizer", "weight_decay=0.5", "adafactor"),
        ("stages.0.optimizer", "eps=1e-3", "adamw"),
        ("stages.0.objective", "num_labels=3", "classification"),
        ("stages.0.objective", "label_smoothing=0.1", "text_to_text"),
        ("stages.0.data.preprocess", "sequence_length=32", "span_qa"),
        ("stages.0.trainable", "episodes=2", "gradual"),
        ("model", "num_hidden_layers=2", "distilbert"),
        ("model", "dropout_rate=0.2", "t5"),
        ("tokenizer", "vocab_size=900", "sentencepiece"),
        ("stages.0.evaluate.0", "batch_size=4", "loss"),
        ("stages.0.evaluate.0", "data.preprocess.sequence_length=32", "squad"),
    ],
)
@pytest.mark.parametrize("form", ["override", "extends"])
def test_a_section_keeps_its_kind_under_another_key(section, leaf, kind, form):
    """Every tagged union of the schema, each with a kind that is not the default."""
    tag = "family" if section == "model" else "kind"
    base = to_nodes(
        {"stages": [{"name": "s", "data": {"source": [{"kind": "squad"}]}, "evaluate": [{"kind": kind}]}]}, "b"
    )
    base = merge(base, parse_overrides([f"{section}={{{tag}: {kind}}}"], []), [])
    key, value = leaf.split("=")
    if form == "override":
        child = parse_overrides([f"{section}.{leaf}"], [])
    else:
        nested: Any = json.loads(value)
        for part in reversed([*section.split("."), *key.split(".")]):
            nested = {part: nested}
        child = to_nodes(nested, "child.yaml:1")
    problems: list[str] = []
    after = leaves(to_plain(merge(base, child, problems)))
    assert problems == [] and after == leaves(to_plain(base)) | {f"{section}.{key}": json.loads(value)}


def test_extends_merges_a_mapping_over_the_only_source_and_refuses_it_over_two(config):
    child = Path("child.yaml")
    child.write_text("extends: c.yaml\ntasks: {one: {source: {files: [x]}}}\n", encoding="utf-8")
    (source,) = load(child).tasks["one"].source
    assert (source.kind, source.files, source.text_field) == ("tsv", ["x"], "sentence")
    child.write_text("extends: c.yaml\ntasks:\n  two:\n    source: {files: [x]}\n", encoding="utf-8")
    assert refused(str(child)).startswith("child.yaml:4: tasks.two.source.files: there are 2 elements; say which one")
    child.write_text("extends: c.yaml\ntasks:\n  two:\n    source: {1: {files: [x]}}\n", encoding="utf-8")
    assert [s.files for s in load(child).tasks["two"].source] == [["a.jsonl"], ["x"]]
    child.write_text("extends: c.yaml\ntasks:\n  two:\n    source: [{files: [x]}]\n", encoding="utf-8")
    assert refused(str(child)).startswith("child.yaml:4: tasks.two.source.0: give it a kind")
    rates = "extends: c.yaml\nmixtures: {both: {mixture: {one: 2, two: 1}, rate: explicit}}\n"
    child.write_text(rates, encoding="utf-8")
    assert load(child).mixtures["both"].mixture == {"one": 2.0, "two": 1.0}


# ---- several overrides of one place ---------------------------------------------------------------------------------


def test_overrides_of_one_place_add_up(config):
    words = ["stages.first.trainable=gradual", "stages.first.trainable.episodes=2"]
    for given_ in (words, words[::-1], ["stages.0.trainable=gradual", "stages.first.trainable.episodes=2"]):
        trainable = load(config, given_).stages[0].trainable
        assert (trainable.kind, trainable.episodes) == ("gradual", 2)
    by_both = ["stages.0.optimizer.learning_rate=0.5", "stages.first.optimizer.kind=adafactor"]
    optimizer = load(config, by_both).stages[0].optimizer
    assert (optimizer.kind, optimizer.learning_rate) == ("adafactor", 0.5)


def test_an_override_inside_a_value_of_the_same_command_line_is_refused(config):
    words = ["tasks.one.source=[{kind: text, files: [x]}]", "tasks.one.source.0.files=[y]"]
    expected = "command line: tasks.one.source.0.files: tasks.one.source is also given as one value; put it there"
    assert refused(config, *words) == expected


def test_a_stored_configuration_takes_overrides_as_a_file_does(config):
    stored = load(config).model_dump(mode="json")
    after = build(stored, ["stages.first.evaluate.mlm.data.source.files=[x]"])
    (source,) = after.stages[0].evaluate[0].data.source
    assert (source.kind, source.files, source.text_field) == ("jsonl", ["x"], "body")
