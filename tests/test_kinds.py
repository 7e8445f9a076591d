"""Every kind of the schema has its case wherever kinds are told apart, and an unknown one is never another kind."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toy_source

import bertjax
from bertjax.config.loading.introspect import union_members, unwrap
from bertjax.config.loading.load import build
from bertjax.config.schema import data, evaluation, sources, training
from bertjax.config.schema.base import rebuild, register
from bertjax.config.schema.data import TOKENIZERS
from bertjax.config.schema.model import FAMILIES
from bertjax.data.sources import class_names, hub, records, sentences, squad, text
from bertjax.data.sources import registry as source_kinds
from bertjax.errors import UserError
from bertjax.interop import hf_folder
from bertjax.models import families
from bertjax.objectives import registry
from bertjax.training import inputs

SOURCES = union_members(unwrap(sources.Source)[0])
OBJECTIVES = union_members(unwrap(training.Objective)[0])
PREPROCESS = union_members(unwrap(data.Preprocess)[0])
EVALUATIONS = union_members(unwrap(evaluation.Evaluation)[0])


def source(kind: str, **options: Any) -> Any:
    """A source of a kind over one and the same file."""
    fields = SOURCES[kind].model_fields
    need = {"files": ["same.json"], "name": "same.json"}
    return SOURCES[kind](**{name: need[name] for name in fields if name in need} | options)


@pytest.fixture
def toy():
    """The toy kind, registered for one test."""
    register(sources.SOURCES, "toy", toy_source.SECTION)
    yield
    del sources.SOURCES["toy"]
    rebuild()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "same.json").write_text("{}")
    tfds = dataclasses.replace(hub.TFDS, content=lambda source, base: "content")
    monkeypatch.setattr(hub, "TFDS", tfds)
    return tmp_path


def test_two_kinds_never_share_prepared_data(here):
    found = {kind: source_kinds.fingerprint(source(kind), here) for kind in SOURCES}
    assert len(SOURCES) >= 10 and len(set(found.values())) == len(SOURCES)


OTHER = {
    "layout": "sentences",
    "text_field": "body",
    "fields": ["a"],
    "skip_lines": 1,
    "config": "c",
    "split": "[:1]",
    "delimiter": ";",
    "data_dir": "d",
    "comment": "#",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_option_of_a_source_is_in_its_fingerprint(here, kind):
    options = SOURCES[kind].model_fields.keys() - {"kind", "files", "name"}
    plain = source_kinds.fingerprint(source(kind), here)
    for option in options:
        other = "heldout" if option == "split" and kind.startswith("stdlib") else OTHER[option]
        assert source_kinds.fingerprint(source(kind, **{option: other}), here) != plain, option


def test_a_source_of_an_unknown_kind_is_refused_everywhere(here):
    new = SimpleNamespace(kind="new", text_field="text", files=["same.json"], model_dump=lambda **_: {"kind": "new"})
    for use in (
        lambda: source_kinds.fingerprint(new, here),
        lambda: list(text.stream_texts(new, here)),
        lambda: list(text.stream_documents(new, here)),
        lambda: records.stream_records(new, here, None),
        lambda: records.read_located(new, here),
        lambda: squad.read_squad(new, here),
        lambda: list(squad.read_records_or_questions(new, here)),
        lambda: class_names.names_from_source(new, here, "label"),
        lambda: source_kinds.record_of(new),
    ):
        with pytest.raises(TypeError, match="kind 'new' has no SourceKind record"):
            use()


def test_a_new_source_kind_is_a_section_and_a_record(toy, tmp_path):
    (tmp_path / "a.txt").write_text("One line. And more.\n\nTwo lines.\n")
    data = {"source": {"kind": "toy", "path": "a.txt"}}
    source = build({"stages": [{"name": "s", "steps": 1, "data": data}]})
    (source,) = source.stages[0].data.source
    assert list(text.read_texts(source, tmp_path)) == ["One line. And more.", "Two lines."]
    assert list(text.read_documents(source, tmp_path)) == [["One line.", "And more."], ["Two lines."]]
    with pytest.raises(UserError, match="source of kind 'toy': has no fields; use jsonl, json, tsv, csv, parquet"):
        records.read_located(source, tmp_path)
    with pytest.raises(UserError, match="kind 'toy' holds no questions; use jsonl.* or stdlib_qa for span_qa"):
        squad.read_squad(source, tmp_path)
    first = source_kinds.fingerprint(source, tmp_path)
    assert first != source_kinds.fingerprint(source.model_copy(update={"prefix": "> "}), tmp_path)
    (tmp_path / "a.txt").write_text("Other lines.\n")
    assert first != source_kinds.fingerprint(source, tmp_path)
    (tmp_path / "a.txt").unlink()
    assert list(inputs._source("tasks.a.source.0", source, tmp_path)) == [
        f"tasks.a.source.0.path: {tmp_path}/a.txt: no such file"
    ]


def test_versions_of_the_rules_in_a_fingerprint(here, monkeypatch):
    """Sentence rules count where text is split and sentences are wanted; each version changes the fingerprint."""
    kinds = {kind: source(kind) for kind in SOURCES} | {"lines": source("text", layout="sentences")}
    as_sentences = {kind: source_kinds.fingerprint(one, here) for kind, one in kinds.items()}
    as_texts = {kind: source_kinds.fingerprint(one, here, sentences=False) for kind, one in kinds.items()}
    monkeypatch.setattr(sentences, "VERSION", sentences.VERSION + 1)
    changed = {kind for kind, one in kinds.items() if source_kinds.fingerprint(one, here) != as_sentences[kind]}
    assert changed == kinds.keys() - {"lines"}
    changed = {k for k, one in kinds.items() if source_kinds.fingerprint(one, here, sentences=False) != as_texts[k]}
    assert changed == {"stdlib_docs", "stdlib_qa"}
    for kind, one in kinds.items():
        assert source_kinds.match_earlier_version([one], here, [as_sentences[kind]]), kind
        assert not source_kinds.match_earlier_version([one], here, ["0" * 64]), kind
    later = dataclasses.replace(text.TEXT, version=text.TEXT.version + 1)
    monkeypatch.setattr(text, "TEXT", later)
    assert source_kinds.fingerprint(kinds["lines"], here) != as_sentences["lines"]


def test_fingerprints_are_those_of_earlier_versions(here):
    """sha256 over a version number that all kinds shared, options and content: checkpoints and records keep them."""
    for kind in SOURCES:
        one = source(kind)
        options = json.dumps(one.model_dump(mode="json", exclude={"files"}), sort_keys=True)
        content = source_kinds.record_of(one).content(one, here)
        for version in (1, 2):
            old = hashlib.sha256(f"{version}\n{options}\n{content}".encode()).hexdigest()
            assert source_kinds.match_earlier_version([one], here, [old])
        assert old == source_kinds.fingerprint(one, here)


def test_every_kind_has_its_facts_and_its_record():
    for kind, section in OBJECTIVES.items():
        assert {*section.preprocess} <= PREPROCESS.keys() and {*section.evaluations} <= EVALUATIONS.keys(), kind
        assert {*registry.build(section()).heads} <= {*section.heads}, kind
        fits = {*getattr(section, "families", ())} & FAMILIES.keys()  # of an objective without heads
        assert fits or any({*section.heads} & {*family.heads} for family in FAMILIES.values()), kind
    for kind, section in FAMILIES.items():
        assert section.tokenizer in TOKENIZERS, kind
        if families.record_of(section).interop is None:
            assert not getattr(section, "config_json", None), kind
            with pytest.raises(UserError, match="neither read from Hugging Face folders nor written"):
                hf_folder.format_of(section)
        else:
            assert hf_folder.format_of(section).classes, kind
    assert {kind for kind in FAMILIES if families.record_of(FAMILIES[kind]).interop is None} == {
        "word2vec", "elmo", "gpt",
    }  # fmt: skip
    for kind, section in EVALUATIONS.items():
        assert {*(section.preprocess or ())} <= PREPROCESS.keys(), kind
    trained_on = {kind for section in OBJECTIVES.values() for kind in section.preprocess}
    scored_by = {kind for section in OBJECTIVES.values() for kind in section.evaluations}
    assert trained_on == PREPROCESS.keys() and scored_by == EVALUATIONS.keys()


def test_every_public_name_can_be_imported():
    code = "from bertjax import *; import bertjax; print(len([globals()[name] for name in bertjax.__all__]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(bertjax.__all__) == len(set(bertjax.__all__))
