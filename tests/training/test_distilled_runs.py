"""Runs with a teacher: resuming, teachers that do not fit, plans, and models that start from selected layers."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hf_folders import BERT, SIZES, bert_folder

from bertjax.config.loading.load import build, load
from bertjax.config.schema.model import DistilBertConfig
from bertjax.errors import StoppedSafely, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.interop import hf_folder
from bertjax.parallel import mesh
from bertjax.plan import memory
from bertjax.plan.compile import build_stage_program
from bertjax.training import loop
from bertjax.training.checkpoint.init_layers import select_layers
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.checkpoint.teacher import TeacherFiles

TEXT = {"source": {"kind": "text", "files": ["x"]}, "preprocess": {"sequence_length": 32}}


@pytest.fixture(autouse=True)
def one_cpu(monkeypatch):
    monkeypatch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])


@pytest.fixture(scope="module")
def teacher(train) -> Path:
    """A run of the tiny project whose first stage has MLM and its last a span head."""
    return train("teacher")


@pytest.fixture
def student(tiny_project, tmp_path, teacher):
    """student(name, overrides) -> a configuration of one layer, taught by the MLM stage of `teacher`."""

    def make(name: str = "student", *overrides: str) -> Any:
        (stage,) = [{**stage} for stage in load(tiny_project / "tiny.yaml").model_dump(mode="json")["stages"][:1]]
        config = load(tiny_project / "tiny.yaml").model_dump(mode="json")
        stage |= {"objective": {"kind": "mlm_nsp", "nsp_weight": 0}, "init_layers": [1]}
        stage |= {"init_from": str(teacher / "checkpoints" / "00-pretrain"), "steps": 4}
        stage |= {"distillation": {"teacher": str(teacher / "checkpoints" / "00-pretrain")}}
        config["stages"], config["model"]["num_hidden_layers"] = [stage], 1
        config["run"] |= {"root": str(tmp_path / "runs"), "name": name}
        config["tokenizer"]["path"] = str(teacher / "tokenizer")
        return build(config, overrides)

    return make


def train_losses(run: Path) -> list[tuple]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    keys = ("step", "loss", "kd_loss", "cosine_loss", "mlm_loss")
    return [tuple(line[key] for key in keys) for line in lines if "kd_loss" in line]


def test_a_distilled_run_resumes_with_the_same_losses(student, tiny_project, stop_at):
    loop.train(student("whole"), tiny_project, build_evaluators)
    whole = student("whole").run_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StageRunner, "should_stop", lambda self, now: now == 2)
        with pytest.raises(StoppedSafely):
            loop.train(student("cut"), tiny_project, build_evaluators)
    loop.train(student("cut"), tiny_project, build_evaluators)
    assert len(train_losses(whole)) == 4 and train_losses(student("cut").run_dir) == train_losses(whole)
    reader = CheckpointReader(whole / "checkpoints" / "00-pretrain")
    saved = {path.split("/")[0] for path in reader.items(4)[0]["leaves"]}
    assert saved == {"params", "opt", "step", "key", "bad_steps"}  # and no teacher
    assert reader.meta()["teacher"]["name"].endswith("00-pretrain")
    event = next(json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines() if '"init"' in line)
    assert "layers 1 of 2 start layers 0 to 0" in event["init"] and "left out: layers (" in event["init"]
    assert "teacher: " in event["init"]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("stages.pretrain.distillation.teacher=nowhere/at/all", "distillation.teacher: .*no such folder"),
        ("model.hidden_size=32", "set distillation.cosine_weight=0|has shape"),
        ("stages.pretrain.distillation.teacher={other}", "was trained with another tokenizer"),
        ("stages.pretrain.objective.mlm_weight=0", "set objective.mlm_weight above 0"),
        ("stages.pretrain.init_layers=[0, 1]", "names 2 layers and the model has 1"),
        ("stages.pretrain.init_layers=[2]", "layer 2 is not one of its layers 0 to 1"),
        ("stages.pretrain.init_from=scratch", "init_layers: needs init_from"),
        ("model.num_attention_heads=4", "set model.num_attention_heads=2"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(student, tiny_project, tmp_path, override, reason):
    other = bert_folder(tmp_path / "other", ("mlm",), BERT.model_copy(update={"vocab_size": 128}))
    with pytest.raises(UserError, match=reason) as error:
        config = student("wrong", override.format(other=other))
        loop.train(config, tiny_project, build_evaluators)
    assert len(str(error.value).strip().splitlines()) == 1
    assert not (tmp_path / "runs" / "wrong").exists()


def test_a_teacher_without_the_head_is_refused(student, tiny_project, monkeypatch):
    monkeypatch.setattr(TeacherFiles, "heads", ("qa",))
    with pytest.raises(UserError, match="has the heads qa; objective mlm_nsp needs a teacher with the head 'mlm'"):
        loop.train(student("headless"), tiny_project, build_evaluators)


@pytest.mark.slow
def test_another_teacher_cannot_take_over(student, tiny_project, teacher):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StageRunner, "should_stop", lambda self, now: now == 2)
        with pytest.raises(StoppedSafely):
            loop.train(student("moved"), tiny_project, build_evaluators)
    step = CheckpointReader(teacher / "checkpoints" / "00-pretrain").committed_steps()[0]
    changed = student("moved", f"stages.pretrain.distillation.teacher={teacher}/checkpoints/00-pretrain/{step}")
    with pytest.raises(UserError, match="other settings|other weights"):
        loop.train(changed, tiny_project, build_evaluators)


def test_a_plan_counts_the_memory_of_the_teacher(student):
    config = student()
    plain = config.model_copy(update={"stages": [config.stages[0].model_copy(update={"distillation": None})]})
    taught, alone = (build_stage_program(one, one.stages[0], jax.devices()[:1]) for one in (config, plain))
    extra = sum(x.size for x in taught.program.teacher.abstract_params().values()) * 4
    assert memory.parameter_bytes(taught) - memory.parameter_bytes(alone) == extra > 0
    assert taught.lower().compile().memory_analysis().argument_size_in_bytes > extra


def test_distilbert_starts_from_layers_of_bert_as_extract_distilbert_does(tmp_path):
    """Every array against that of transformers' tensors under the names of the script."""
    source = BERT.model_copy(update={"num_hidden_layers": 4})
    folder = bert_folder(tmp_path / "bert", ("mlm", "nsp"), source)
    model = DistilBertConfig(type_vocab_size=0, **(SIZES | {"num_hidden_layers": 2}))
    loaded = hf_folder.load_params(folder, source)
    stage = build({"stages": [{"name": "s", "data": TEXT, "steps": 1,
                               "init_from": str(folder), "init_layers": [0, 3], "objective": {"nsp_weight": 0}}],
                   "model": model.model_dump(), "tokenizer": {"path": str(folder)}}).stages[0]  # fmt: skip
    found = select_layers(loaded, stage, source, model, "bert")
    for number, layer in enumerate([0, 3]):
        for part in ("attention/qkv/kernel", "attention/norm/scale", "mlp/output/kernel", "mlp/norm/bias"):
            np.testing.assert_array_equal(found.params[f"layers/{number}/{part}"], loaded[f"layers/{layer}/{part}"])
    assert not {path for path in found.params if "token_type" in path or "pooler" in path or "nsp" in path}
    assert {path for path in found.params if path.startswith("heads/")} == {p for p in loaded if "/mlm/" in p}
    assert found.lines == (
        "bert: layers 0, 3 of 4 start layers 0 to 1",
        "left out: embeddings/token_type (1 arrays), heads/nsp (2 arrays), heads/pooler (2 arrays), layers (24 arrays)",
    )
