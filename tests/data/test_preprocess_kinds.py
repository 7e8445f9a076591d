"""A new preprocess kind is a section and a record; nothing else knows of it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import toy_preprocess
from preparing import bert

from bertjax.config.loading.load import build
from bertjax.config.schema.base import rebuild, register
from bertjax.config.schema.data import PREPROCESS
from bertjax.data.pipeline.loader import open_task
from bertjax.data.pipeline.row_fields import task_fields
from bertjax.data.preprocess.registry import record_of
from bertjax.errors import UserError


@pytest.fixture
def toy(tmp_path):
    register(PREPROCESS, "toy", toy_preprocess.SECTION)
    (tmp_path / "a.txt").write_text("ban kolo midi.\ntupe.\n\nkon bagu ban ban ban ban ban ban ban ban.\n\nmix.\n")
    yield tmp_path
    del PREPROCESS["toy"]
    rebuild()


def config_of(**preprocess):
    task = {"source": {"files": ["a.txt"], "layout": "paragraphs"}, "preprocess": {"kind": "toy"} | preprocess}
    return build({"stages": [{"name": "s", "data": task, "steps": 1}]})


@pytest.mark.parametrize("pack", [False, True])
def test_a_new_kind_is_prepared_loaded_and_planned(toy, pack):
    config = config_of(pack=pack, sequence_length=24)
    task = config.stages[0].data
    lines: list[str] = []
    options = {"batch_size": 3, "seed": 0, "base": toy, "cache": toy / "cache", "report": lines.append}
    batches = open_task(task, "t", bert(), **options)
    (store,) = batches.stores.values()
    assert store.versions == {"toy": 1} | ({"packing": 1} if pack else {})
    assert store.meta["examples"] == 3 and store.meta["rows"] == len(store) == (1 if pack else 3)
    assert "t: 3 toy texts" in lines and task_fields(config, task) == batches.fields
    first, second = (batches._tasks[0].rows([epoch], [0]) for epoch in (0, 1))
    assert (first["input_ids"] == second["input_ids"][:, ::-1]).all() and np.count_nonzero(first["segment_ids"])
    lines.clear()
    open_task(task, "t", bert(), **options)
    assert not any("rows/s" in line for line in lines), "it was prepared twice"


def test_another_version_is_prepared_again(toy, monkeypatch):
    task = config_of().stages[0].data
    options = {"batch_size": 3, "seed": 0, "base": toy, "cache": toy / "cache"}
    open_task(task, "t", bert(), **options)
    monkeypatch.setattr(toy_preprocess, "RECORD", dataclasses.replace(toy_preprocess.RECORD, version=2))
    (store,) = open_task(task, "t", bert(), **options).stores.values()
    assert store.versions == {"toy": 2} and len(list((toy / "cache").iterdir())) == 2


def test_every_kind_has_its_own_record():
    records = {kind: record_of(section) for kind, section in PREPROCESS.items()}
    assert len({id(record) for record in records.values()}) == len(PREPROCESS) >= 9
    assert [kind for kind, record in records.items() if record.layout == "decoder"] == ["causal_lm"]


def test_an_unregistered_kind_is_refused():
    with pytest.raises(UserError, match="'kind' must be one of: bert_pairs, span_qa"):
        config_of()
    with pytest.raises(TypeError, match="kind 'new' has no PreprocessKind record"):
        record_of(SimpleNamespace(kind="new"))
