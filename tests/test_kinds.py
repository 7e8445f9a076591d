"""Every kind of the schema has its case wherever kinds are told apart, and an unknown one is never another kind."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bertjax
from bertjax.config.loading.introspect import union_members, unwrap
from bertjax.config.loading.load import build
from bertjax.config.schema import data, evaluation, sources, training
from bertjax.data.preprocess.denoising import chunks
from bertjax.data.sources import hub, records, text
from bertjax.errors import UserError
from bertjax.objectives import registry
from bertjax.training import validate

SOURCES = union_members(unwrap(sources.Source)[0])
OBJECTIVES = union_members(unwrap(training.Objective)[0])
PREPROCESS = union_members(unwrap(data.Preprocess)[0])
EVALUATIONS = union_members(unwrap(evaluation.Evaluation)[0])
STAGE = {"stages": [{"name": "s", "data": {"source": {"files": ["a.txt"]}}, "steps": 1}]}


def source(kind: str, **options: Any) -> Any:
    """A source of a kind over one and the same file."""
    fields = SOURCES[kind].model_fields
    need = {"files": ["same.json"], "name": "same.json"}
    return SOURCES[kind](**{name: need[name] for name in fields if name in need} | options)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "same.json").write_text("{}")
    monkeypatch.setattr(hub, "tfds_fingerprint", lambda source, base: "content")
    return tmp_path


def test_two_kinds_never_share_prepared_data(here):
    found = {kind: text.fingerprint(source(kind), here) for kind in SOURCES}
    assert len(SOURCES) >= 10 and len(set(found.values())) == len(SOURCES)


OTHER = {
    "layout": "sentences",
    "text_field": "body",
    "fields": ["a"],
    "skip_lines": 1,
    "config": "c",
    "split": "heldout",
    "data_dir": "d",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_option_of_a_source_is_in_its_fingerprint(here, kind):
    options = SOURCES[kind].model_fields.keys() - {"kind", "files", "name"}
    plain = text.fingerprint(source(kind), here)
    for option in options:
        assert text.fingerprint(source(kind, **{option: OTHER[option]}), here) != plain, option


def test_a_source_of_an_unknown_kind_is_refused_everywhere(here):
    new = SimpleNamespace(kind="new", text_field="text", files=["same.json"], model_dump=lambda **_: {"kind": "new"})
    for use in (
        lambda: text.fingerprint(new, here),
        lambda: list(text.stream_texts(new, here)),
        lambda: list(text.stream_documents(new, here)),
        lambda: records.stream_records(new, here, None),
    ):
        with pytest.raises(TypeError, match="source kind 'new' has no case in data/(sources|records).py"):
            use()


def test_an_objective_without_an_entry_is_one_clear_error(monkeypatch):
    config = build(STAGE)
    monkeypatch.delitem(validate._FITTING, "mlm_nsp")
    with pytest.raises(UserError, match="stage 's': objective mlm_nsp has no entry in training/validate.py"):
        validate.check_kinds(config, config.stages[0])


def test_the_tables_cover_the_schema():
    assert validate._FITTING.keys() == OBJECTIVES.keys()
    rows, scores = ({kind for fit in validate._FITTING.values() for kind in fit[at]} for at in (0, 1))
    assert rows == PREPROCESS.keys() and scores == EVALUATIONS.keys()
    for kind, section in OBJECTIVES.items():
        assert registry.build(section()).heads, kind
    assert set(chunks.DENOISING_KINDS) < PREPROCESS.keys()


def test_every_public_name_can_be_imported():
    code = "from bertjax import *; import bertjax; print(len([globals()[name] for name in bertjax.__all__]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(bertjax.__all__) == len(set(bertjax.__all__))
