"""Import and export of whole runs: a Hugging Face folder becomes a run like any other, and comes back the same."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_folders import BERT, DISTILBERT, PIECES, SIZES, assert_same_tensors
from hf_folders import bert_folder as folder
from safetensors.numpy import load_file, save_file

from bertjax.config.loading.load import build, load
from bertjax.data.tokenizers.load import Tokenizer, from_file
from bertjax.errors import StorageError, UserError
from bertjax.evaluation.predictors import answers, masks
from bertjax.evaluation.restore import restore
from bertjax.interop import hf_folder, safetensors_folder
from bertjax.tools import convert_hf
from bertjax.tools.evaluate import evaluate_command
from bertjax.training import run_context
from bertjax.training.checkpoint import warmstart
from bertjax.training.checkpoint.stage_files import StageFiles
from bertjax.training.program import stage_program


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("heads", "model", "objective"),
    [
        (("mlm", "nsp"), BERT, {"kind": "mlm_nsp", "mlm_weight": 1.0, "nsp_weight": 1.0}),
        (("mlm",), BERT, {"kind": "mlm_nsp", "mlm_weight": 1.0, "nsp_weight": 0.0}),
        (("mlm",), DISTILBERT, {"kind": "mlm_nsp", "mlm_weight": 1.0, "nsp_weight": 0.0}),
        (("qa",), BERT, {"kind": "span_qa"}),
        (("classifier",), DISTILBERT, {"kind": "classification", "num_labels": 3}),
        (("pooler",), BERT, {"kind": "mlm_nsp", "mlm_weight": 0.0, "nsp_weight": 0.0}),
        ((), DISTILBERT, {"kind": "mlm_nsp", "mlm_weight": 0.0, "nsp_weight": 0.0}),
    ],
)
def test_there_and_back(heads, model, objective):
    labels = ["no", "maybe", "yes"] if heads == ("classifier",) else None
    source = folder(Path("hf"), heads, model, labels)
    convert_hf.import_folder(source, Path("runs/imported"))
    assert sorted(p.name for p in Path("runs").iterdir()) == ["imported"]
    config = load("runs/imported/config.yaml")
    assert config.model == model and config.run_dir == Path("runs/imported")
    assert config.stages[0].name == "import" and config.stages[0].objective.model_dump() == objective
    assert run_context.load_tokenizer(config, Path()).pieces == PIECES
    restored = restore("runs/imported")
    assert restored.step == 0 and restored.program.heads == heads
    expected = hf_folder.load_params(source, model)
    assert restored.params.keys() == expected.keys()
    assert all((np.asarray(restored.params[path]) == x).all() for path, x in expected.items())
    for name in ("runs/imported", "runs/imported/checkpoints/00-import", "runs/imported/checkpoints/00-import/0"):
        convert_hf.export_checkpoint(Path(name), Path("back"))
        assert_same_tensors(source, Path("back"))
        for file in ("config.json", "tokenizer_config.json", "vocab.txt"):
            assert (source / file).read_text() == (Path("back") / file).read_text()
        assert from_file(Path("back")).sha256 == from_file(source).sha256
        shutil.rmtree("back")


@pytest.mark.slow
def test_an_imported_run_predicts_and_is_scored():
    convert_hf.import_folder(folder(Path("hf"), ("mlm", "nsp")), Path("runs/pairs"))
    (filled,) = masks.fill_mask("runs/pairs", ["word [MASK] !"], top_k=3)
    assert len(filled["masks"][0]) == 3
    scores = evaluate_command("runs/pairs", None, None, None, ["stages.import.evaluate.mlm.batches=1"])["scores"]["mlm"]
    assert 2 < scores["mlm_loss"] < 5  # near log(40), as random weights give
    convert_hf.import_folder(folder(Path("hf_qa"), ("qa",)), Path("runs/qa"))
    assert answers.answer("runs/qa", "a b?", "word abc def", n_best=1)["probability"] > 0
    paragraph = {
        "context": "word abc def",
        "qas": [{"id": "1", "question": "a?", "answers": [{"text": "abc", "answer_start": 5}]}],
    }
    Path("dev.json").write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}))
    override = "stages.import.evaluate.squad.data.source={kind: squad, files: [dev.json]}"
    assert 0 <= evaluate_command("runs/qa", None, None, None, [override])["scores"]["squad"]["f1"] <= 100


def fine_tuning(init_from: str, tokenizer: str = "hf", **model) -> run_context.RunContext:
    pairs = {"kind": "span_qa", "sequence_length": 32, "doc_stride": 8, "max_query_length": 8}
    stage = {"name": "qa", "steps": 1, "init_from": init_from, "objective": {"kind": "span_qa"}}
    stage["data"] = {"source": {"kind": "stdlib_qa"}, "preprocess": pairs}
    config = build({"model": SIZES | model, "tokenizer": {"path": tokenizer}, "stages": [stage]})
    return run_context.open_run_context(config, Path.cwd())


def start(ctx: run_context.RunContext) -> tuple[dict, list[str]]:
    return warmstart.init_params(
        ctx,
        StageFiles(ctx.config, 0, ctx.base),
        stage_program(ctx.config, ctx.config.stages[0], ctx.mesh, 1),
        jax.random.key(1),
    )[:2]


@pytest.mark.parametrize("heads", [("pooler",), ("mlm", "nsp"), ("qa",)])
def test_a_stage_starts_from_the_folder_and_from_its_import_alike(heads):
    """All but the heads that the source lacks come from it; heads that the stage has no use for are carried on."""
    source = folder(Path("hf"), heads)
    convert_hf.import_folder(source, Path("runs/imported"))
    expected = hf_folder.load_params(source, BERT)
    for name in ("hf", "runs/imported"):
        params, lines = start(fine_tuning(name))
        fresh = {path for path, x in params.items() if path not in expected}
        assert fresh == (set() if "qa" in heads else {"heads/qa/kernel", "heads/qa/bias"})
        carried = {("pooler",): "heads/pooler", ("mlm", "nsp"): "heads/mlm, heads/nsp, heads/pooler"}.get(heads)
        said = ["fresh: heads/qa", f"carried on, not trained here: {carried}"] if carried else []
        assert lines[1:] == said
        assert all((np.asarray(x) == expected[path]).all() for path, x in params.items() if path not in fresh)


@pytest.mark.parametrize("source", ["hf", "runs/imported"])
def test_a_stage_refuses_weights_learnt_with_another_tokenizer(source):
    convert_hf.import_folder(folder(Path("hf"), ("mlm",)), Path("runs/imported"))
    Path("other.txt").write_text("\n".join(PIECES[:5] + PIECES[5:][::-1]) + "\n")
    with pytest.raises(UserError, match="another tokenizer.*; set tokenizer.path to"):
        start(fine_tuning(source, "other.txt"))
    with pytest.raises(UserError, match="num_attention_heads"):
        start(fine_tuning("hf", num_attention_heads=4))


def test_folders_that_cannot_become_runs():
    source = folder(Path("hf"), ("mlm",))
    (source / "vocab.txt").write_text("\n".join(PIECES + [f"more{i}" for i in range(40)]) + "\n")
    (source / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="63 pieces, vocab_size is 40"):
        convert_hf.import_folder(source, Path("out"))
    (source / "vocab.txt").unlink()
    with pytest.raises(UserError, match="neither tokenizer.json nor vocab.txt"):
        convert_hf.import_folder(source, Path("out"))
    source = folder(Path("hf2"), ("mlm",))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"hidden_size": -4, "intermediate_size": 0}))
    with pytest.raises(UserError) as error:
        convert_hf.import_folder(source, Path("out"))
    assert "hidden_size" in str(error.value) and "intermediate_size" in str(error.value)
    source = folder(Path("hf3"), ("mlm",))
    weights = load_file(source / "model.safetensors")
    weights["cls.predictions.bias"] = weights["cls.predictions.bias"] + np.float32(np.nan)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UserError, match="cls.predictions.bias"):
        convert_hf.import_folder(source, Path("out"))
    with pytest.raises(UserError, match="run.name"):
        convert_hf.import_folder(folder(Path("hf4"), ("mlm",)), Path("a name"))
    assert not list(Path().glob("*out*")) and not list(Path().glob("*name*"))


def test_a_disk_that_is_full(monkeypatch):
    source = folder(Path("hf"), ("mlm",))
    convert_hf.import_folder(source, Path("runs/imported"))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_folder, "save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        convert_hf.export_checkpoint(Path("runs/imported"), Path("out"))
    monkeypatch.setattr(Tokenizer, "save", full)
    with pytest.raises(StorageError, match="No space left"):
        convert_hf.import_folder(source, Path("runs/again"))
    assert not Path("out").exists() and [p.name for p in Path("runs").iterdir()] == ["imported"]
