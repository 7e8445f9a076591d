"""Runs that start from models on the Hub, and Hugging Face models that are restored by name."""

import json
from pathlib import Path

import fakehub
import numpy as np
import pytest
from generated_texts import generated
from hf_folders import BERT, PIECES, T5_MODELS, assert_same_tensors, t5_folder
from hf_folders import bert_folder as folder

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.data.tokenizers import sentencepiece
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.interop import hf_folder
from bertjax.storage import model_hub
from bertjax.tools import convert_hf
from bertjax.training import loop
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.run_context import load_tokenizer

TEXT = [["The cat sat on the mat and the dog sat beside the cat.", "Zebras jump over 13 lazy dogs, why?"]] * 5
CONFIG = """\
pretrained: org/bert
run: {name: one, tensorboard: false, compilation_cache_dir: null, prepare_workers: 1}
stages:
  - name: mlm
    data: {source: {kind: text, files: [a.txt], layout: sentences}, preprocess: {kind: bert_pairs, sequence_length: 16}}
    steps: 1
    batch_size: 8
    optimizer: {warmup_steps: 0}
"""


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = fakehub.Hub(tmp_path / "cache")
    server = fakehub.install(found, monkeypatch)
    yield found
    server.shutdown()
    server.server_close()
    model_hub.forget()


@pytest.mark.slow
def test_a_run_starts_from_the_hub_and_says_which_commit(hub, monkeypatch, capsys):
    source = folder(Path("hf"), ("mlm", "nsp"))
    commit = hub.add("org/bert", source)
    Path("c.yaml").write_text(CONFIG)
    Path("a.txt").write_text("word a b c\nd e f g h !\n\n" * 40)
    config = load("c.yaml")
    assert "model.safetensors" not in hub.fetched()
    loop.train(config, Path(), build_evaluators)
    assert hub.fetched() == ["model.safetensors"]
    saved = load("runs/one/config.yaml")
    assert saved.tokenizer.path == saved.stages[0].init_from == "org/bert" and saved.model == BERT
    used = {key: f"org/bert@{commit}" for key in ("stages.mlm.init_from", "tokenizer.path")}
    assert json.loads(Path("runs/one/environment.json").read_text())["pretrained"] == used
    meta = CheckpointReader(Path("runs/one/checkpoints/00-mlm")).meta()
    assert meta["pretrained"] == {"name": "org/bert", "commit": commit}
    assert f"arrays from org/bert@{commit}" in Path("runs/one/metrics.jsonl").read_text()
    assert main(["inspect", "runs/one"]) == 0
    assert f"started from: org/bert, commit {commit}" in capsys.readouterr().out
    # the run goes on although the Hub now has another commit, and others start from it
    newer = hub.add("org/bert", folder(Path("newer"), ("mlm",)))
    model_hub.forget()
    loop.train(load("c.yaml", []), Path(), build_evaluators)
    assert json.loads(Path("runs/one/environment.json").read_text())["pretrained"] == used and newer != commit
    again = load("c.yaml", ["pretrained=runs/one", "run.name=two"])
    assert again.model == saved.model and again.tokenizer.path == again.stages[0].init_from == "runs/one"
    assert load_tokenizer(again, Path()).sha256 == meta["tokenizer_sha256"]


def test_weights_of_the_hub_are_those_of_the_folder_and_of_an_imported_run(hub):
    source = folder(Path("hf"), ("mlm", "nsp"))
    commit = hub.add("org/bert", source)
    convert_hf.import_folder("org/bert", Path("runs/imported"))
    expected = hf_folder.load_params(source, BERT)
    for name in ("org/bert", f"org/bert@{commit}", source, "hf", "runs/imported"):
        restored = restore(name, overrides=["run.compute_dtype=float32"])
        assert restored.params.keys() == expected.keys()
        assert all((np.asarray(restored.params[path]) == x).all() for path, x in expected.items())
        assert restored.ctx.tokenizer.pieces == PIECES and restored.program.heads == ("mlm", "nsp")
    assert CheckpointReader(Path("runs/imported/checkpoints/00-import")).meta()["pretrained"]["commit"] == commit
    assert convert_hf.export_checkpoint("org/bert", Path("back")) == []
    assert_same_tensors(source, Path("back"))
    assert {p.name for p in Path().iterdir()} == {"hf", "runs", "back", "cache"}


def test_commands_take_names(hub, capsys):
    hub.add("org/bert", folder(Path("hf"), ("mlm", "nsp")))
    assert main(["predict", "fill-mask", "org/bert", "word [MASK]", "--top-k", "2"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert len(found["masks"][0]) == 2
    assert main(["inspect", "org/bert"]) == 0
    assert "heads: ['mlm', 'nsp']" in capsys.readouterr().out
    for argv, said in {
        "evaluate org/bert --step 3": "is a Hugging Face model, without steps and stages; leave out --step 3",
        "predict answer org/bert --question q --context c": "has no 'qa' head",
        "predict fill-mask org/none x": "org/none: no such folder, and there is no such model on the Hub",
        "evaluate hf --stage qa": "hf: is a Hugging Face model, without steps and stages; leave out --stage qa",
    }.items():
        assert main(argv.split()) == 2
        err = capsys.readouterr().err.splitlines()
        assert said in err[-1] and not [line for line in err[:-1] if not line.startswith("note: ")]


@pytest.mark.slow
def test_a_t5_generates_as_it_does_when_imported(hub):
    tokenizer = sentencepiece.train(lambda: iter(TEXT), vocab_size=170, extra_ids=100, character_coverage=1.0)
    hub.add("org/t5", t5_folder(Path("t5"), T5_MODELS["1.1"], tokenizer))
    convert_hf.import_folder(Path("t5"), Path("runs/t5"))
    found = [generated(name, ["The cat"], max_new_tokens=4) for name in ("org/t5", "runs/t5")]
    assert found[0] == found[1]


def test_a_tokenizer_of_the_other_kind_is_one_line(hub, capsys):
    tokenizer = sentencepiece.train(lambda: iter(TEXT), vocab_size=170, extra_ids=100, character_coverage=1.0)
    hub.add("org/t5", t5_folder(Path("t5"), T5_MODELS["1.0"], tokenizer))
    hub.add("org/bert", folder(Path("hf"), ("mlm", "nsp")))
    Path("c.yaml").write_text(CONFIG)
    Path("a.txt").write_text("word a b c\nd e f g h !\n\n" * 40)
    with pytest.raises(
        UserError, match=r"^tokenizer.path: org/t5@\w{40}: is a SentencePiece tokenizer; tokenizer.kind is wordpiece"
    ):
        loop.train(load("c.yaml", ["tokenizer.path=org/t5"]), Path(), build_evaluators)
    assert not Path("runs").exists()
