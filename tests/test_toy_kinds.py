"""A source, preprocessing, objective and family of the tests' own train end to end without a change of bertjax/.

Each is one file in tests/kit/ with its configuration section and its record, as docs/architecture.md describes.
"""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import pytest

from bertjax.config.loading.load import build, load
from bertjax.config.schema import base
from bertjax.config.schema.data import PREPROCESS, BertPairs
from bertjax.config.schema.evaluation import EVALUATIONS, LossEvaluation
from bertjax.config.schema.model import FAMILIES
from bertjax.config.schema.sources import SOURCES
from bertjax.config.schema.training import OBJECTIVES
from bertjax.data.preprocess import registry as preprocess_kinds
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.parallel import mesh
from bertjax.tools.inspect import inspect_config
from bertjax.training import loop
from bertjax.training.checkpoint.layout import committed_steps

TABLES = {"toy_source": SOURCES, "toy_preprocess": PREPROCESS, "toy_objective": OBJECTIVES, "toy_family": FAMILIES}
PRESENT = {name: table for name, table in TABLES.items() if importlib.util.find_spec(name)}
SOURCE = "{kind: toy, path: text.txt}" if "toy_source" in PRESENT else "{kind: text, files: [text.txt]}"
KIND = "toy" if "toy_preprocess" in PRESENT else "bert_pairs"
CONFIG = f"""\
model: {{family: toy, vocab_size: 128}}
run: {{name: toy, log_every: 1, compute_dtype: float32, tensorboard: false, compilation_cache_dir: null,
  prepare_workers: 1, checkpoint: {{save_every: 2}}}}
tasks:
  text: &text {{source: {SOURCE}, preprocess: {{kind: {KIND}, sequence_length: 32}}}}
stages:
  - {{name: parity, data: text, objective: {{kind: toy}}, steps: 4, batch_size: 4, optimizer: {{learning_rate: 0.05}},
     evaluate: [{{kind: loss, data: *text}}]}}
"""


@pytest.fixture
def toys(monkeypatch) -> Iterator[None]:
    """All toy kinds in their tables, on one device."""
    monkeypatch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
    for name, table in PRESENT.items():
        base.register(table, "toy", importlib.import_module(name).SECTION)
    yield
    for table in PRESENT.values():
        del table["toy"]
    base.rebuild()


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    sentences = "The dog sleeps in the barn. The cat runs near the river. An owl waits in a tall tree.\n"
    (tmp_path / "text.txt").write_text("\n".join([sentences] * 20), encoding="utf-8")
    (tmp_path / "toy.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def losses(run: Path) -> list[float]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["parity_loss"] for line in found if line["kind"] == "train"]


def test_toys_train_save_and_resume(toys, project):
    config = load(project / "toy.yaml")
    loop.train(config, project, build_evaluators)
    run, folder = project / "runs/toy", project / "runs/toy/checkpoints/00-parity"
    first = losses(run)
    (described,) = inspect_config(config, None)["stages"]
    assert described["objective"] == "toy" and described["episodes"][0]["groups"][0] == "embeddings"
    assert len(first) == 4 and first[-1] < first[0]
    assert committed_steps(folder)[-1] == 4 and list((run / "evaluations").rglob("loss.json"))
    shutil.rmtree(folder / "4")  # as if the process had ended after step 2
    loop.train(config, project, build_evaluators)
    assert committed_steps(folder)[-1] == 4
    assert losses(run) == first


def test_an_unregistered_kind_is_one_clear_error(project):
    with pytest.raises(UserError, match="'family' must be one of: bert, distilbert, roberta, electra, albert, t5"):
        load(project / "toy.yaml")


def test_a_kind_without_a_record_is_refused(toys, monkeypatch):
    for name, table in PRESENT.items():
        section = table["toy"]
        registry = importlib.import_module(type(importlib.import_module(name).RECORD).__module__)
        monkeypatch.setattr(section, "implementation", f"{name}:MISSING")
        with pytest.raises(TypeError, match=f"kind 'toy' has no .* record: .*'{name}:MISSING'"):
            registry.record_of(section.model_construct())


def test_an_objective_trains_only_families_with_its_head(toys):
    text = {"source": {"files": ["a.txt"]}}
    with pytest.raises(UserError, match="objective 'mlm_nsp' is not for a toy model"):
        build({"model": {"family": "toy"}, "stages": [{"name": "s", "data": text, "steps": 1}]})


def test_a_kind_never_takes_the_record_of_the_kind_it_extends():
    class Extended(BertPairs):
        kind: Literal["extended"] = "extended"

    with pytest.raises(TypeError, match="kind 'extended' has no PreprocessKind record"):
        preprocess_kinds.record_of(Extended())


def test_kinds_may_be_registered_in_any_order(monkeypatch):
    """A section registered first contains sources; a source registered after it is valid there too."""

    class Scored(LossEvaluation):
        kind: Literal["scored"] = "scored"

    toy = importlib.import_module("toy_source").SECTION
    stage = {"name": "s", "steps": 1, "data": {"source": {"files": ["a.txt"]}}}
    evaluation = {"kind": "scored", "data": {"source": {"kind": "toy", "path": "a.txt"}}}
    try:
        base.register(EVALUATIONS, "scored", Scored)
        base.register(SOURCES, "toy", toy)
        config = build({"stages": [stage | {"evaluate": [evaluation]}]})
        assert isinstance(config.stages[0].evaluate[0].data.source[0], toy)
        with pytest.raises(ValueError, match="ToySource is not of kind 'other'"):
            base.register(SOURCES, "other", toy)
        assert "other" not in SOURCES
    finally:
        for table, kind in ((EVALUATIONS, "scored"), (SOURCES, "toy")):
            table.pop(kind, None)
        base.rebuild()
