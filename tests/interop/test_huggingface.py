"""Hugging Face folders read without torch: the tables, old names, and everything that is refused."""

import json
import re
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from model_sections import model_section
from safetensors.numpy import load_file, save_file

from bertjax.config.schema.model import FAMILIES, BertConfig
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.data.tokenizers.wordpiece import SPECIAL_TOKENS, build_wordpiece
from bertjax.errors import UserError
from bertjax.interop import bert_names, hf_folder
from bertjax.models import registry
from bertjax.models.bert.heads import find_heads

D, F, V, P = 8, 12, 11, 16
BERT = {
    "model_type": "bert", "vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": F, "max_position_embeddings": P, "type_vocab_size": 2,
}  # fmt: skip
DISTILBERT = {
    "model_type": "distilbert", "vocab_size": V, "dim": D, "n_layers": 2, "n_heads": 2, "hidden_dim": F,
    "max_position_embeddings": P,
}  # fmt: skip


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def bert_shapes() -> dict[str, tuple[int, ...]]:
    """BertForPreTraining as transformers writes it, spelled out by hand."""
    shapes = {
        "bert.embeddings.word_embeddings.weight": (V, D),
        "bert.embeddings.position_embeddings.weight": (P, D),
        "bert.embeddings.token_type_embeddings.weight": (2, D),
        **norm("bert.embeddings.LayerNorm"),
        **linear("bert.pooler.dense", D, D),
        "cls.predictions.bias": (V,),
        **linear("cls.predictions.transform.dense", D, D),
        **norm("cls.predictions.transform.LayerNorm"),
        **linear("cls.seq_relationship", 2, D),
    }
    for i in range(2):
        layer = f"bert.encoder.layer.{i}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= linear(f"{layer}.{name}", D, D)
        shapes |= linear(f"{layer}.intermediate.dense", F, D) | linear(f"{layer}.output.dense", D, F)
        shapes |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
    return shapes


def distilbert_shapes() -> dict[str, tuple[int, ...]]:
    """DistilBertForMaskedLM, and the heads of the other two classes beside it."""
    shapes = {
        "distilbert.embeddings.word_embeddings.weight": (V, D),
        "distilbert.embeddings.position_embeddings.weight": (P, D),
        **norm("distilbert.embeddings.LayerNorm"),
        **linear("vocab_transform", D, D),
        **norm("vocab_layer_norm"),
        "vocab_projector.bias": (V,),
    }
    for i in range(2):
        layer = f"distilbert.transformer.layer.{i}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= linear(f"{layer}.attention.{name}", D, D)
        shapes |= linear(f"{layer}.ffn.lin1", F, D) | linear(f"{layer}.ffn.lin2", D, F)
        shapes |= norm(f"{layer}.sa_layer_norm") | norm(f"{layer}.output_layer_norm")
    return shapes


def random(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def put(folder: Path, config: dict, weights: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def load(folder: Path) -> dict[str, np.ndarray]:
    return hf_folder.load_params(folder, model_section(folder))


def refused(folder: Path, *mentions: str, model: BertConfig | None = None) -> None:
    with pytest.raises(UserError) as error:
        hf_folder.load_params(folder, model or model_section(folder))
    message = str(error.value)
    assert "\n" not in message and len(message) <= 300 + len(str(folder)), message
    for text in (str(folder), *mentions):
        assert text in message


# ---- reading --------------------------------------------------------------------------------------------------------


def test_bert_tensors_land_where_they_belong(tmp_path):
    weights = random(bert_shapes())
    params = load(put(tmp_path, BERT, weights))
    assert find_heads(params) == ("mlm", "nsp") and registry.num_labels(params) == 2
    assert params.keys() == registry.init_params(model_section(tmp_path), ("mlm", "nsp"), 2, jax.random.key(0)).keys()
    layer = "bert.encoder.layer.1."
    qkv = params["layers/1/attention/qkv/kernel"]
    assert qkv.shape == (D, 3, D)
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(qkv[:, i], weights[f"{layer}attention.self.{name}.weight"].T)
        np.testing.assert_array_equal(
            params["layers/1/attention/qkv/bias"][i], weights[f"{layer}attention.self.{name}.bias"]
        )
    np.testing.assert_array_equal(
        params["layers/1/mlp/intermediate/kernel"], weights[f"{layer}intermediate.dense.weight"].T
    )
    np.testing.assert_array_equal(params["layers/1/mlp/norm/scale"], weights[f"{layer}output.LayerNorm.weight"])
    np.testing.assert_array_equal(params["heads/mlm/bias"], weights["cls.predictions.bias"])
    np.testing.assert_array_equal(params["heads/nsp/kernel"], weights["cls.seq_relationship.weight"].T)
    np.testing.assert_array_equal(
        params["embeddings/token_type/embedding"], weights["bert.embeddings.token_type_embeddings.weight"]
    )
    assert sum(x.size for x in params.values()) == sum(x.size for x in weights.values())


def test_distilbert_tensors_land_where_they_belong(tmp_path):
    weights = random(distilbert_shapes() | linear("qa_outputs", 2, D))
    params = load(put(tmp_path, DISTILBERT, weights))
    assert find_heads(params) == ("mlm", "qa")
    np.testing.assert_array_equal(
        params["layers/0/attention/qkv/kernel"][:, 1],
        weights["distilbert.transformer.layer.0.attention.k_lin.weight"].T,
    )
    np.testing.assert_array_equal(params["heads/mlm/norm/bias"], weights["vocab_layer_norm.bias"])
    np.testing.assert_array_equal(params["heads/qa/kernel"], weights["qa_outputs.weight"].T)
    assert sum(x.size for x in params.values()) == sum(x.size for x in weights.values())


def test_a_classifier_brings_its_own_width(tmp_path):
    weights = random(distilbert_shapes() | linear("pre_classifier", D, D) | linear("classifier", 5, D))
    params = load(put(tmp_path, DISTILBERT, weights))
    assert "classifier" in find_heads(params) and registry.num_labels(params) == 5
    np.testing.assert_array_equal(params["heads/pre_classifier/kernel"], weights["pre_classifier.weight"].T)


def test_a_bare_encoder_keeps_its_pooler(tmp_path):
    """sentence-transformers' files: BertModel, whose tensors have no prefix."""
    whole = random(bert_shapes())
    bare = {name.removeprefix("bert."): x for name, x in whole.items() if name.startswith("bert.")}
    bare["embeddings.position_ids"] = np.arange(P)[None]
    params = load(put(tmp_path, BERT | {"architectures": ["BertModel"]}, bare))
    assert find_heads(params) == ("pooler",)
    np.testing.assert_array_equal(params["heads/pooler/kernel"], whole["bert.pooler.dense.weight"].T)
    without = {name: x for name, x in bare.items() if "pooler" not in name}
    assert find_heads(load(put(tmp_path / "b", BERT, without))) == ()


def test_old_names_buffers_and_tied_copies(tmp_path):
    weights = random(bert_shapes())
    expected = load(put(tmp_path / "new", BERT, weights))
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in weights.items()
    }
    old["bert.embeddings.position_ids"] = np.arange(P)[None]
    old["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].copy()
    old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"].copy()
    for number, drop in enumerate(((), ("cls.predictions.bias",))):  # some versions name the bias in one place only
        found = load(put(tmp_path / f"old{number}", BERT, {n: x for n, x in old.items() if n not in drop}))
        assert found.keys() == expected.keys()
        assert all((found[path] == x).all() for path, x in expected.items())


def test_word_embeddings_under_the_name_of_the_output_matrix(tmp_path):
    """safetensors has a tied matrix once, and a converter may have kept either name."""
    weights = random(bert_shapes())
    expected = load(put(tmp_path / "usual", BERT, weights))
    weights["cls.predictions.decoder.weight"] = weights.pop("bert.embeddings.word_embeddings.weight")
    folder = put(tmp_path / "other", BERT, weights)
    found = load(folder)
    assert found.keys() == expected.keys() and all((found[path] == x).all() for path, x in expected.items())
    assert hf_folder.unused_tensors(folder, model_section(folder)) == []
    refused(put(tmp_path / "untied", BERT | {"tie_word_embeddings": False}, weights), "word_embeddings.weight")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_are_read_as_float32(dtype, tmp_path):
    weights = {name: x.astype(dtype) for name, x in random(bert_shapes()).items()}
    params = load(put(tmp_path, BERT, weights))
    assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["heads/pooler/bias"], weights["bert.pooler.dense.bias"].astype(np.float32))


def test_weights_in_several_files(tmp_path):
    weights = random(bert_shapes())
    expected = load(put(tmp_path / "one", BERT, weights))
    folder = put(tmp_path / "many", BERT, {})
    (folder / "model.safetensors").unlink()
    index = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(index.values()):
        save_file({name: x for name, x in weights.items() if index[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = load(folder)
    assert found.keys() == expected.keys() and all((found[p] == x).all() for p, x in expected.items())


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_writing_is_the_inverse_of_reading(kind, tmp_path):
    """The very tensors, by name and bit."""
    config, shapes = (BERT, bert_shapes()) if kind == "bert" else (DISTILBERT, distilbert_shapes())
    params = load(put(tmp_path / "in", config, random(shapes)))
    model, heads = model_section(tmp_path / "in"), find_heads(params)
    backend = build_wordpiece({piece: i for i, piece in enumerate(SPECIAL_TOKENS)}, lowercase=True)
    hf_folder.save_folder(tmp_path / "out", params, model, heads, tokenizer=Tokenizer(backend, "test"))
    expected, found = (load_file(tmp_path / side / "model.safetensors") for side in ("in", "out"))
    assert found.keys() == expected.keys()
    assert all((found[name].view(np.uint32) == x.view(np.uint32)).all() for name, x in expected.items())
    assert config.items() <= json.loads((tmp_path / "out/config.json").read_text()).items()


def test_the_tables_are_one_to_one():
    for kind, table in {"bert": bert_names.BERT, "distilbert": bert_names.DISTILBERT}.items():
        model = FAMILIES[kind](type_vocab_size=2 if kind == "bert" else 0)
        heads = tuple(head for head in table.heads if head != "token_classifier")  # its tensors are those of classifier
        names = [n for theirs in table.tensors(model, heads).values() for n in theirs]
        assert len(names) == len(set(names))
        assert all(table.normalize(re.sub(r"^(distil)?bert\.", "", name)) == name for name in names)


# ---- refusing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "mentions"),
    [
        (BERT | {"auto_map": {"AutoModel": "modeling.My"}}, ("auto_map", "code")),
        (BERT | {"architectures": ["BertForMultipleChoice"]}, ("BertForMultipleChoice", "known")),
        (BERT | {"architectures": 3}, ("architectures",)),
        (BERT | {"is_decoder": True}, ("is_decoder",)),
    ],
)
def test_other_models(config, mentions, tmp_path):
    refused(put(tmp_path, config, random(bert_shapes())), "config.json", *mentions)


@pytest.mark.parametrize(
    ("content", "mention"),
    [(None, "no config.json"), ("{", "JSON"), ('{"model_type": "gpt2"}', "gpt2"), ("[1]", "model_type")],
)
def test_configs_that_cannot_be_read(content, mention, tmp_path):
    put(tmp_path, BERT, random(bert_shapes()))
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    refused(tmp_path, mention, model=BertConfig())


def test_weights_that_are_not_safetensors(tmp_path):
    folder = put(tmp_path, BERT, {})
    weights = folder / "model.safetensors"
    for content, mention in {
        b"": "not a sound safetensors file",
        b"\xff" * 7 + b"\x7f{}": "not a sound safetensors file",
        struct.pack("<Q", 10**12) + b"{}": "not a sound safetensors file",
        struct.pack("<Q", 4) + b"{\xff\xff}": "not a sound safetensors file",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git lfs pull",
    }.items():
        weights.write_bytes(content)
        refused(folder, mention)
    weights.unlink()
    refused(folder, "no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(folder, "holds pytorch_model.bin and no model.safetensors", "`bertjax import`")
    (folder / "pytorch_model.bin").rename(folder / "flax_model.msgpack")
    refused(folder, "holds flax_model.msgpack and no model.safetensors", "`bertjax import`")
    (folder / "flax_model.msgpack").rename(folder / "tf_model.h5")
    # transformers 5 has no TensorFlow classes and no from_tf
    refused(folder, "in transformers 4 with torch and tf (5 reads no such file)", "(folder, from_tf=True)")


def test_files_cut_short_and_headers_overwritten(tmp_path):
    """Whatever byte is lost or changed in the header: a line about the file, or the same parameters."""
    folder = put(tmp_path, BERT, random(bert_shapes()))
    weights = folder / "model.safetensors"
    whole, good = weights.read_bytes(), load(folder)
    for size in (0, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:size])
        refused(folder, "model.safetensors")
    rng = np.random.default_rng(0)
    (header,) = struct.unpack("<Q", whole[:8])
    for place in rng.integers(0, 8 + header, 60).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        weights.write_bytes(bytes(changed))
        try:
            found = load(folder)
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
        else:
            assert found.keys() >= {p for p in good if not p.startswith("heads/")}


def test_tensors_that_are_missing_misshapen_or_strange(tmp_path):
    weights = random(bert_shapes())
    name = "bert.encoder.layer.1.attention.self.key.weight"
    less = {n: x for n, x in weights.items() if n != name}
    refused(put(tmp_path, BERT, less), f"'{name}'")
    refused(put(tmp_path, BERT, {n: x for n, x in less.items() if "key" not in n}), "'bert.encoder.layer.0", "3 more")
    refused(
        put(tmp_path, BERT, weights | {name: np.zeros((D, 4), np.float32)}), f"'{name}'", f"[{D}, 4]", f"[{D}, {D}]"
    )
    for bad in (np.nan, np.inf):
        broken = weights[name].copy()
        broken[2, 3] = bad
        refused(put(tmp_path, BERT, weights | {name: broken}), f"'{name}'", "NaN or infinite")
    refused(put(tmp_path, BERT, weights | {name: np.zeros((D, D), np.int8)}), f"'{name}'", "I8")
    more = weights | {"bert.encoder.layer.2.output.dense.bias": np.zeros(D, np.float32)}
    refused(put(tmp_path, BERT, more), "'bert.encoder.layer.2.output.dense.bias'", "no place")
    adapted = weights | {"bert.encoder.layer.1.attention.self.key.lora_A.weight": np.zeros((2, D), np.float32)}
    refused(put(tmp_path, BERT, adapted), "lora_A", "no place")
    twice = weights | {name.removeprefix("bert."): weights[name].copy()}
    refused(put(tmp_path, BERT, twice), "are the same")


def test_untied_outputs_are_refused(tmp_path):
    weights = random(bert_shapes())
    decoder = {"cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"] + 1}
    refused(put(tmp_path, BERT, weights | decoder), "cls.predictions.decoder.weight", "tied")
    bias = {"cls.predictions.decoder.bias": weights["cls.predictions.bias"] + 1}
    refused(put(tmp_path, BERT, weights | bias), "cls.predictions.decoder.bias", "tied")
    distilbert = random(distilbert_shapes())
    projector = {"vocab_projector.weight": distilbert["distilbert.embeddings.word_embeddings.weight"] * 2}
    refused(put(tmp_path, DISTILBERT, distilbert | projector), "vocab_projector.weight", "tied")


@pytest.mark.parametrize(
    ("change", "mention"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads is 2, the model here has 4"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_hidden_layers": 1}, "num_hidden_layers"),
        ({"vocab_size": 12}, f"[{V}, {D}], the model needs [12, {D}]"),
        ({"family": "distilbert", "type_vocab_size": 0}, "family is 'bert'"),
    ],
)
def test_a_model_that_only_looks_alike(change, mention, tmp_path):
    """Equal shapes with another number of heads would load and be another function."""
    folder = put(tmp_path, BERT | {"hidden_act": "gelu"}, random(bert_shapes()))
    model = model_section(folder, **change)
    refused(folder, mention, "config_from", model=model)


def test_indexes_of_several_files(tmp_path):
    folder = put(tmp_path, BERT, {})
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    for content, mention in {
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}): "not there",
        json.dumps({"weight_map": {"a": "../one/model.safetensors"}}): "not the name",
        json.dumps({"weight_map": {"a": 3}}): "not the name",
        json.dumps({"weight_map": {"a": ["b"]}}): "weight_map",
        "[]": "weight_map",
        "{": "weight_map",
    }.items():
        index.write_text(content)
        refused(folder, "index.json", mention)


def test_tensors_without_a_place_are_named(tmp_path):
    """Copies of tied tensors and old buffers carry nothing; anything else is left out and said."""
    weights = random(bert_shapes())
    model = model_section(put(tmp_path, BERT, weights))
    assert hf_folder.unused_tensors(tmp_path, model) == []
    copies = {"cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"].copy(),
              "bert.embeddings.position_ids": np.arange(4, dtype=np.float32)}  # fmt: skip
    put(tmp_path, BERT, weights | copies | {"sentiment.weight": np.zeros((2, D), np.float32)})
    assert hf_folder.unused_tensors(tmp_path, model) == ["sentiment.weight"]
