"""`pretrained` in a configuration: what it fills, what takes precedence, and the errors."""

import json
from pathlib import Path

import fakehub
import pytest

from bertjax.config.loading.load import build, dump, fingerprint, load
from bertjax.errors import UserError
from bertjax.storage import model_hub

BERT = {"model_type": "bert", "vocab_size": 99, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}
T5 = {"model_type": "t5", "vocab_size": 320, "d_model": 16, "num_layers": 2, "tie_word_embeddings": False}
STAGE = {"steps": 1, "data": {"source": {"kind": "text", "files": ["a.txt"]}, "preprocess": {"kind": "bert_pairs"}}}
STAGES = [{"name": "one", **STAGE}, {"name": "two", **STAGE}]
T5_STAGES = [STAGE | {"name": "t", "objective": {"kind": "text_to_text"}, "data": {
    "source": {"kind": "text", "files": ["a.txt"]}, "preprocess": {"kind": "span_corruption"}}}]  # fmt: skip


def put(folder: str, content: dict) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "config.json").write_text(json.dumps(content))
    return Path(folder)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    found = fakehub.Hub(tmp_path / "cache")
    server = fakehub.install(found, monkeypatch)
    yield found
    server.shutdown()
    server.server_close()
    model_hub.forget()


def test_one_key_fills_model_tokenizer_and_first_stage():
    put("hf", BERT)
    config = build({"pretrained": "hf", "stages": STAGES})
    assert (config.model.family, config.model.hidden_size, config.model.vocab_size) == ("bert", 24, 99)
    assert (config.tokenizer.kind, config.tokenizer.path) == ("wordpiece", "hf")
    assert [stage.init_from for stage in config.stages] == ["hf", None]
    longhand = {"model": {"config_from": "hf"}, "tokenizer": {"path": "hf"}}
    same = build(longhand | {"stages": [STAGES[0] | {"init_from": "hf"}, STAGES[1]]})
    assert config == same and fingerprint(config) == fingerprint(same) and "pretrained" not in dump(config)


def test_the_family_chooses_the_kind_of_tokenizer():
    put("hf", T5)
    config = build({"pretrained": "hf", "stages": T5_STAGES})
    assert (config.model.family, config.tokenizer.kind) == ("t5", "sentencepiece")


def test_explicit_keys_take_precedence():
    put("hf", BERT)
    put("wide", BERT | {"hidden_size": 48})
    data = {"pretrained": "hf", "stages": [STAGES[0] | {"init_from": "scratch"}]}
    data |= {"model": {"hidden_dropout_prob": 0.3}, "tokenizer": {"path": "vocab.txt", "lowercase": False}}
    config = build(data)
    assert (config.model.hidden_dropout_prob, config.model.hidden_size) == (0.3, 24)
    assert (config.tokenizer.path, config.tokenizer.lowercase) == ("vocab.txt", False)
    assert config.stages[0].init_from == "scratch"
    assert build(data, ["model.config_from=wide"]).model.hidden_size == 48
    trained = build(data | {"tokenizer": {"train_on": {"files": ["b.txt"]}}}).tokenizer
    assert trained.path is None and trained.train_on
    Path("c.yaml").write_text(json.dumps({"pretrained": "hf", "stages": STAGES}))
    assert load("c.yaml", ["pretrained=wide"]).model.hidden_size == 48
    assert load("c.yaml", ["pretrained=null"]).stages[0].init_from is None


def test_a_model_on_the_hub_stays_a_name_and_only_small_files_are_fetched(hub):
    hub.add("org/bert", put("files", BERT))
    Path("files/vocab.txt").write_text("[PAD]\n")
    Path("files/model.safetensors").write_text("weights")
    config = build({"pretrained": "org/bert", "stages": STAGES})
    assert config.model.hidden_size == 24 and sorted(hub.fetched()) == ["config.json", "vocab.txt"]
    assert config.tokenizer.path == config.stages[0].init_from == "org/bert"
    assert build({"pretrained": "org/bert@main", "stages": STAGES}).stages[0].init_from == "org/bert@main"
    assert build(config.model_dump(mode="json")) == config and hub.fetched() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pretrained": "hf", "model": {"family": "t5"}}, "model.family: hf holds a bert (got 't5')"),
        ({"pretrained": "hf", "tokenizer": {"kind": "sentencepiece"}}, "needs tokenizer.kind: wordpiece"),
        ({"pretrained": "gone/sub/folder"}, "pretrained: gone/sub/folder: no such folder"),
        ({"pretrained": "./gone"}, "pretrained: gone: no such folder"),
        ({"pretrained": "org/gone"}, "pretrained: org/gone: no such folder, and there is no such model on the Hub"),
        ({"pretrained": ["hf"]}, 'pretrained: must be a folder or a model on the Hugging Face Hub (got ["hf"])'),
        ({"pretrained": 3}, "pretrained: must be a folder or a model on the Hugging Face Hub (got 3)"),
        ({"pretrained": "hdfs://x/y"}, "pretrained: 'hdfs://x/y': 'hdfs://' is not known"),
        (
            {"pretrained": "other"},
            "electra, albert, t5, mt5 or umt5 (got 'gpt2')",
        ),
        ({"pretrained": "empty"}, "has no config.json (Hugging Face) or config.yaml (a bertjax run)"),
        ({"pretrain": "hf"}, "did you mean 'pretrained'?"),
    ],
)
def test_problems_are_one_line_that_names_the_key(hub, change, reason):
    put("hf", BERT)
    put("other", {"model_type": "gpt2"})
    Path("empty").mkdir()
    with pytest.raises(UserError) as caught:
        build(change | {"stages": STAGES})
    assert reason in str(caught.value) and "\n" not in str(caught.value)
