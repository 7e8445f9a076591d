"""Hugging Face folders as we write them; that transformers loads them is in tests/models/test_bert_parity.py."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from model_sections import model_section
from safetensors import safe_open

from bertjax.config.schema.model import BertConfig, DistilBertConfig
from bertjax.data.tokenizers import load
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError
from bertjax.interop import hf_folder, safetensors_folder
from bertjax.models import registry
from bertjax.models.bert.heads import find_heads

MODEL = BertConfig(
    vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=16,
)  # fmt: skip
DISTILBERT = DistilBertConfig(**MODEL.model_dump(exclude={"family"}) | {"type_vocab_size": 0})
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]


def save(out: Path, model: BertConfig, heads: tuple[str, ...], labels: int = 2) -> dict[str, np.ndarray]:
    fresh = registry.init_params(model, heads, labels, jax.random.key(0))
    params = {path: np.asarray(x) for path, x in fresh.items()}
    backend = load.build_wordpiece({piece: i for i, piece in enumerate(PIECES)}, lowercase=False)
    hf_folder.save_folder(
        out, params, model, heads,
        tokenizer=Tokenizer(backend, "test"),
    )  # fmt: skip
    return params


@pytest.mark.parametrize(
    ("heads", "labels", "expected"),
    [
        (("mlm", "nsp"), 2, "BertForPreTraining"),
        (("mlm",), 2, "BertForMaskedLM"),
        (("nsp",), 2, "BertForNextSentencePrediction"),
        (("qa",), 2, "BertForQuestionAnswering"),
        (("classifier",), 1, "BertForSequenceClassification"),
        (("pooler",), 2, "BertModel"),
    ],
)
def test_what_is_written_reads_back(heads, labels, expected, tmp_path):
    model = MODEL.model_copy(update={"hidden_act": "gelu_new", "layer_norm_eps": 1e-6})
    params = save(tmp_path / "out", model, heads, labels)
    names = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    names |= {"tokenizer_config.json", "special_tokens_map.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names and len(list(tmp_path.iterdir())) == 1
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == [expected] and model_section(tmp_path / "out") == model
    assert config.get("problem_type") == ("regression" if labels == 1 else None)
    found = hf_folder.load_params(tmp_path / "out", model)
    assert found.keys() == params.keys() and all((found[p] == x).all() for p, x in params.items())
    assert find_heads(found) == heads and registry.num_labels(found) == labels
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert ("embeddings.LayerNorm.weight" in file.keys()) == (heads == ("pooler",))  # noqa: SIM118
    again = load.from_file(tmp_path / "out")
    assert again.pieces == PIECES and not again.lowercase
    assert (tmp_path / "out/vocab.txt").read_text().split() == PIECES


def test_distilbert_is_written_under_its_names(tmp_path):
    save(tmp_path / "out", DISTILBERT, ("mlm",))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["DistilBertForMaskedLM"] and (config["dim"], config["hidden_dim"]) == (8, 12)
    with pytest.raises(UserError, match="layer_norm_eps"):
        save(tmp_path / "other", DISTILBERT.model_copy(update={"layer_norm_eps": 1e-5}), ("mlm",))
    with pytest.raises(UserError, match="no distilbert class with the heads mlm, qa"):
        save(tmp_path / "other", DISTILBERT, ("mlm", "qa"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_folder, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "out", MODEL, ("mlm",))
    assert not list(tmp_path.iterdir())
