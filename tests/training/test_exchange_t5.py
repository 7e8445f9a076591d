"""Import and export of a T5: a Hugging Face folder becomes a run like any other, and comes back the same."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_folders import T5_MODELS as MODELS
from hf_folders import t5_folder as folder
from safetensors.numpy import load_file

from bertjax.config.loading.load import build, load
from bertjax.data.tokenizers import sentencepiece
from bertjax.data.tokenizers.wordpiece import SPECIAL_TOKENS
from bertjax.errors import UserError
from bertjax.evaluation.restore import restore
from bertjax.interop import hf_folder
from bertjax.models.peft_options import PeftOptions
from bertjax.tools import convert_hf
from bertjax.tools.evaluate import evaluate_command
from bertjax.training import run_context
from bertjax.training.checkpoint import warmstart
from bertjax.training.checkpoint.stage_files import StageFiles
from bertjax.training.program import stage_program

TEXT = [["The cat sat on the mat and the dog sat beside the cat.", "Zebras jump over 13 lazy dogs, why?"]] * 5


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceTokenizer:
    return sentencepiece.train(lambda: iter(TEXT), vocab_size=170, extra_ids=100, character_coverage=1.0)


@pytest.mark.parametrize("version", MODELS)
def test_there_and_back(version, tokenizer):
    model = MODELS[version]
    source = folder(Path("hf"), model, tokenizer)
    convert_hf.import_folder(source, Path("runs/imported"))
    config = load("runs/imported/config.yaml")
    assert config.model == model and config.run_dir == Path("runs/imported")
    (stage,) = config.stages
    assert (stage.name, stage.objective.kind, stage.data.preprocess.kind) == (
        "import",
        "text_to_text",
        "span_corruption",
    )
    assert run_context.load_tokenizer(config, Path()).sha256 == tokenizer.sha256
    restored = restore("runs/imported")
    assert restored.step == 0 and restored.program.heads == ("lm",)
    expected = hf_folder.load_params(source, model)
    assert restored.params.keys() == expected.keys()
    assert all((np.asarray(restored.params[path]) == x).all() for path, x in expected.items())
    convert_hf.export_checkpoint(Path("runs/imported"), Path("back"))
    ours, theirs = load_file("back/model.safetensors"), load_file("hf/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all((x.view(np.uint32) == theirs[name].view(np.uint32)).all() for name, x in ours.items())
    for file in source.iterdir():
        assert file.read_bytes() == (Path("back") / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_an_imported_t5_is_scored(tokenizer):
    convert_hf.import_folder(folder(Path("hf"), MODELS["1.0"], tokenizer), Path("runs/imported"))
    few = ["stages.import.evaluate.loss.batches=1", "stages.import.evaluate.loss.batch_size=4"]
    scores = evaluate_command("runs/imported", None, None, None, few)["scores"]["loss"]
    assert 4 < scores["target_loss"] < 9  # near log(320), as random weights give


def fine_tuning(init_from: str, tokenizer: str = "hf", **model) -> run_context.RunContext:
    stage = {"name": "spans", "steps": 1, "init_from": init_from, "objective": {"kind": "text_to_text"}}
    preprocess = {"kind": "span_corruption", "sequence_length": 32}
    stage["data"] = {"source": {"kind": "stdlib_docs"}, "preprocess": preprocess}
    about = {"kind": "sentencepiece", "path": tokenizer, "extra_ids": 100}
    sizes = MODELS["1.0"].model_dump() | model
    return run_context.open_run_context(build({"model": sizes, "tokenizer": about, "stages": [stage]}), Path.cwd())


def start(ctx: run_context.RunContext) -> dict:
    return warmstart.init_params(
        ctx,
        StageFiles(ctx.config, 0, ctx.base),
        stage_program(ctx.config, ctx.config.stages[0], ctx.mesh, 1),
        jax.random.key(1),
    ).params


def test_a_stage_starts_from_the_folder_and_from_its_import_alike(tokenizer):
    source = folder(Path("hf"), MODELS["1.0"], tokenizer)
    convert_hf.import_folder(source, Path("runs/imported"))
    expected = hf_folder.load_params(source, MODELS["1.0"])
    (source / "tokenizer_config.json").unlink()  # nothing tells the number of sentinels: the run's is taken
    (source / "tokenizer.json").unlink()
    for name in ("hf", "runs/imported"):
        params = start(fine_tuning(name))
        assert params.keys() == expected.keys()
        assert all((np.asarray(x) == expected[path]).all() for path, x in params.items())
    other = sentencepiece.train(lambda: iter(TEXT), vocab_size=135, extra_ids=100, character_coverage=1.0)
    other.save(Path("other"))
    for name in ("hf", "runs/imported"):
        with pytest.raises(UserError, match="another tokenizer.*; set tokenizer.path to"):
            start(fine_tuning(name, "other"))
    with pytest.raises(UserError, match="num_heads"):
        start(fine_tuning("hf", num_heads=4, d_kv=3))


def test_folders_that_cannot_become_runs(tokenizer):
    source = folder(Path("hf"), MODELS["1.0"], tokenizer)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"feed_forward_proj": "gated-mish"}))
    with pytest.raises(UserError, match="feed_forward_proj: 'mish' is not supported; use one of") as error:
        convert_hf.import_folder(source, Path("out"))
    assert "did you mean" not in str(error.value)
    for name, value in {"eos_token_id": 5, "decoder_start_token_id": 7}.items():
        (source / "config.json").write_text(json.dumps(config))
        (source / "generation_config.json").write_text(json.dumps({name: value}))
        with pytest.raises(UserError, match=rf"generation_config.json: {name} is {value}, .* make them agree"):
            convert_hf.import_folder(source, Path("out"))
    (source / "generation_config.json").unlink()
    (source / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(UserError, match="pieces, vocab_size is 100"):
        convert_hf.import_folder(source, Path("out"))
    (source / "config.json").write_text(json.dumps(config))
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    (source / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS) + "\n")
    with pytest.raises(UserError, match="none of the files that a T5Tokenizer reads"):
        convert_hf.import_folder(source, Path("out"))
    assert not list(Path().glob("*out*"))


def test_adapters_have_no_place_there(tokenizer, monkeypatch):
    convert_hf.import_folder(folder(Path("hf"), MODELS["1.0"], tokenizer), Path("runs/imported"))
    monkeypatch.setattr(convert_hf.adapters, "checkpoint_peft", lambda checkpoints: PeftOptions(adapter_size=8))
    with pytest.raises(UserError, match="has adapters, for which transformers has no place"):
        convert_hf.export_checkpoint(Path("runs/imported"), Path("back"))
    assert not Path("back").exists()
