"""T5 folders read and written without torch; with torch, parity with transformers both ways."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_sections import model_section
from safetensors.numpy import load_file, save_file

from bertjax.config.loading.load import build
from bertjax.config.loading.pretrained import read_model_fields
from bertjax.config.schema.model import BertConfig, T5Config
from bertjax.data.tokenizers import sentencepiece
from bertjax.data.tokenizers.load import from_file
from bertjax.errors import UserError
from bertjax.interop import hf_folder, safetensors_folder
from bertjax.models import families, registry
from bertjax.models.peft_options import PeftOptions

V, D, K, H, F, BUCKETS = 40, 16, 4, 3, 24, 8
SIZES = dict(vocab_size=V, d_model=D, d_kv=K, d_ff=F, num_layers=2, num_heads=H, num_decoder_layers=1,
             relative_attention_num_buckets=BUCKETS, relative_attention_max_distance=20)  # fmt: skip
V10 = {"feed_forward_proj": "relu"}
V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CONFIG = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], **SIZES}


def shapes(version: dict) -> dict[str, tuple[int, ...]]:
    """T5ForConditionalGeneration as transformers writes it, spelled out by hand."""
    gated = version["feed_forward_proj"] == "gated-gelu"
    found = {"shared.weight": (V, D)} | ({"lm_head.weight": (V, D)} if gated else {})
    for stack, layers in (("encoder", 2), ("decoder", 1)):
        found[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (BUCKETS, H)
        found[f"{stack}.final_layer_norm.weight"] = (D,)
        for i in range(layers):
            parts = ["SelfAttention", "DenseReluDense"]
            if stack == "decoder":
                parts.insert(1, "EncDecAttention")
            for number, part in enumerate(parts):
                at = f"{stack}.block.{i}.layer.{number}"
                found[f"{at}.layer_norm.weight"] = (D,)
                if part == "DenseReluDense":
                    found |= {f"{at}.{part}.{name}.weight": (F, D) for name in (["wi_0", "wi_1"] if gated else ["wi"])}
                    found[f"{at}.{part}.wo.weight"] = (D, F)
                else:
                    found |= {f"{at}.{part}.{name}.weight": (H * K, D) for name in "qkv"}
                    found[f"{at}.{part}.o.weight"] = (D, H * K)
    return found


def random(version: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes(version).items()}


def put(folder: Path, weights: dict[str, np.ndarray], **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(weights, folder / "model.safetensors")
    return folder


def load(folder: Path) -> dict[str, np.ndarray]:
    return hf_folder.load_params(folder, model_section(folder))


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceTokenizer:
    text = ["the cat and the dog sat on the mat with a hat"] * 4
    return sentencepiece.train(lambda: iter([text]), vocab_size=36, extra_ids=6, character_coverage=1.0)


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V10, V11])
def test_tensors_land_where_they_belong(tmp_path, version):
    weights = random(version)
    params = load(put(tmp_path, weights, **version))
    model = model_section(tmp_path)
    fresh = registry.init_params(model, ("lm",), 2, jax.random.key(0))
    assert {path: x.shape for path, x in params.items()} == {path: x.shape for path, x in fresh.items()}
    assert families.record_of(model).find_heads(params) == ("lm",)
    same = np.testing.assert_array_equal
    same(params["embeddings/word/embedding"], weights["shared.weight"])
    name = "decoder.block.0.layer.{}.weight".format
    same(params["decoder/layers/0/cross_attention/key/kernel"], weights[name("1.EncDecAttention.k")].T)
    same(params["decoder/layers/0/cross_attention/norm/scale"], weights[name("1.layer_norm")])
    same(params["decoder/layers/0/mlp/output/kernel"], weights[name("2.DenseReluDense.wo")].T)
    same(params["decoder/layers/0/mlp/norm/scale"], weights[name("2.layer_norm")])
    same(
        params["encoder/layers/1/attention/output/kernel"], weights["encoder.block.1.layer.0.SelfAttention.o.weight"].T
    )
    same(params["encoder/position/embedding"], weights[BIAS])
    same(params["decoder/norm/scale"], weights["decoder.final_layer_norm.weight"])
    if version is V11:
        same(
            params["encoder/layers/0/mlp/gate/kernel"], weights["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].T
        )
        same(
            params["encoder/layers/0/mlp/intermediate/kernel"],
            weights["encoder.block.0.layer.1.DenseReluDense.wi_1.weight"].T,
        )
        same(params["heads/lm/kernel"], weights["lm_head.weight"].T)


BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


@pytest.mark.parametrize(
    ("config", "output", "tied", "scale"),
    [
        ({}, None, True, True),  # v1.0 of every version
        ({"tie_word_embeddings": False}, "own", False, False),  # v1.1 written by transformers up to 4
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, "own", False, False),  # and by 5
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, None, True, False),  # built in 5 as "v1.1"
        ({"tie_word_embeddings": False}, None, True, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, None, True, True),
        ({}, "copy", True, True),  # v1.0 files that hold the one table twice
        ({"tie_word_embeddings": True}, "own", False, True),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_versions_hide_in_two_places(tmp_path, config, output, tied, scale, sharded):
    weights = random(V10)
    if output:
        weights["lm_head.weight"] = weights["shared.weight"] + (output == "own")
    put(tmp_path, weights, **config)
    if sharded:
        (tmp_path / "model.safetensors").unlink()
        index = {name: f"part-{name == 'lm_head.weight'}.safetensors" for name in weights}
        for file in set(index.values()):
            save_file({name: x for name, x in weights.items() if index[name] == file}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sizes = read_model_fields(tmp_path)
    assert (sizes["tie_word_embeddings"], sizes["scale_decoder_outputs"]) == (tied, scale)
    assert ("heads/lm/kernel" in load(tmp_path)) == (not tied)


def test_without_weights_the_config_decides(tmp_path):
    for said in (True, False):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": said}))
        assert read_model_fields(tmp_path)["tie_word_embeddings"] is said


def test_config_from_takes_the_sizes(tmp_path):
    put(tmp_path, random(V11), **V11)
    stage = {"name": "a", "steps": 1, "objective": {"kind": "text_to_text"}}
    stage["data"] = {"source": {"kind": "stdlib_docs"}, "preprocess": {"kind": "span_corruption"}}
    data = {"model": {"config_from": str(tmp_path)}, "tokenizer": {"kind": "sentencepiece"}, "stages": [stage]}
    model = build(data).model
    assert model == T5Config(**SIZES, **V11, scale_decoder_outputs=False)


def test_old_files_and_copies(tmp_path):
    weights = random(V10)
    expected = load(put(tmp_path / "plain", weights))
    ignored = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((BUCKETS, H), "f")}
    copies = {f"{stack}.embed_tokens.weight": weights["shared.weight"] for stack in ("encoder", "decoder")}
    alone = {name: x for name, x in weights.items() if name != "shared.weight"}
    alone |= {"encoder.embed_tokens.weight": weights["shared.weight"]}
    for number, changed in enumerate((weights | copies | ignored, alone)):
        found = load(put(tmp_path / str(number), changed, architectures=["T5WithLMHeadModel"]))
        assert found.keys() == expected.keys() and all((found[p] == x).all() for p, x in expected.items())


def refused(folder: Path, *mentions: str, model=None) -> None:
    with pytest.raises(UserError) as error:
        hf_folder.load_params(folder, model or model_section(folder))
    message = str(error.value)
    assert "\n" not in message and str(folder) in message and len(message) < 300 + len(str(folder)), message
    for text in mentions:
        assert text in message


def test_what_is_refused(tmp_path):
    weights = random(V10)
    missing = {name: x for name, x in weights.items() if "decoder" not in name}
    refused(put(tmp_path / "a", missing), "no tensor 'decoder.", "more", "complete T5")
    refused(put(tmp_path / "b", weights | {"classification_head.dense.weight": weights["shared.weight"]}), "no place")
    refused(put(tmp_path / "c", weights | {"shared.weight": weights["shared.weight"][:-1]}), "[39, 16]", "[40, 16]")
    wrong = weights | {"decoder.embed_tokens.weight": weights["shared.weight"] + 1}
    refused(put(tmp_path / "d", wrong), "decoder.embed_tokens.weight", "tied")
    refused(put(tmp_path / "e", weights | {BIAS: weights[BIAS] * np.nan}), BIAS, "NaN")
    refused(put(tmp_path / "f", random(V11), **V10), "no tensor", "wi.weight")
    refused(put(tmp_path / "g", weights, architectures=["T5EncoderModel"]), "T5EncoderModel", "not known")
    refused(put(tmp_path / "h", weights, is_decoder=True), "is_decoder")
    (tmp_path / "a/model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path / "a", "Git LFS")
    with pytest.raises(UserError, match="model_type must be bert, .* or umt5"):
        read_model_fields(put(tmp_path / "i", weights, model_type="longt5"))


def test_a_model_that_differs(tmp_path):
    folder = put(tmp_path, random(V10))
    model = model_section(folder)
    for name, value in {
        "num_heads": 6, "tie_word_embeddings": False, "scale_decoder_outputs": False, "feed_forward_proj": "gated-gelu",
        "num_decoder_layers": 2, "architecture": "decoder_only", "layer_norm_epsilon": 1e-5,
        "relative_attention_max_distance": 64,
    }.items():  # fmt: skip
        refused(folder, f"config.json: {name} is", model=model.model_copy(update={name: value}))
    refused(folder, "family is 't5'", model=BertConfig())
    load(folder)
    assert hf_folder.load_params(folder, model.model_copy(update={"scale_decoder_outputs": None}))


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V10, V11, {"scale_decoder_outputs": False}, {"num_decoder_layers": None}])
def test_what_is_written_reads_back_to_the_bit(tmp_path, tokenizer, version):
    model = T5Config(**SIZES | version)
    fresh = registry.init_params(model, ("lm",), 2, jax.random.key(1))
    params = {path: np.asarray(x) for path, x in fresh.items()}
    hf_folder.save_folder(tmp_path / "out", params, model, ("lm",), tokenizer=tokenizer)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    names = {"config.json", "model.safetensors", "spiece.model", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    resolved = model_section(tmp_path / "out")
    scale = {"scale_decoder_outputs": model.tie_word_embeddings} if model.scale_decoder_outputs is None else {}
    assert resolved == model.model_copy(update={"num_decoder_layers": model.decoder_layers} | scale)
    found = hf_folder.load_params(tmp_path / "out", model)
    assert found.keys() == params.keys()
    assert all((found[p].view(np.uint32) == x.view(np.uint32)).all() for p, x in params.items())
    assert from_file(tmp_path / "out").sha256 == tokenizer.sha256
    names = set(load_file(tmp_path / "out/model.safetensors"))
    assert ("lm_head.weight" in names) == (not model.tie_word_embeddings)


def test_what_transformers_has_no_class_for(tmp_path, tokenizer):
    alone = T5Config(**SIZES, architecture="decoder_only")
    params = {path: np.asarray(x) for path, x in registry.init_params(alone, ("lm",), 2, jax.random.key(1)).items()}
    with pytest.raises(UserError, match="no class for a decoder-only T5"):
        hf_folder.save_folder(tmp_path / "out", params, alone, ("lm",), tokenizer=tokenizer)
    whole = T5Config(**SIZES)
    with_adapters = registry.init_params(whole, ("lm",), 2, jax.random.key(1), PeftOptions(adapter_size=4))
    with pytest.raises(UserError, match="no place for adapters"):
        arrays = {p: np.asarray(x) for p, x in with_adapters.items()}
        hf_folder.save_folder(tmp_path / "out", arrays, whole, ("lm",), tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    model = T5Config(**SIZES)
    params = {path: np.asarray(x) for path, x in registry.init_params(model, ("lm",), 2, jax.random.key(1)).items()}
    monkeypatch.setattr(safetensors_folder, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        hf_folder.save_folder(tmp_path / "out", params, model, ("lm",), tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


# ---- transformers ---------------------------------------------------------------------------------------------------

IDS, TARGETS = np.array([[5, 9, 12, 1], [7, 3, 1, 0]], np.int32), np.array([[8, 30, 1], [4, 1, 0]], np.int32)


def our_logits(model: T5Config, params: dict[str, np.ndarray]) -> np.ndarray:
    module = registry.build_model(model, ("lm",), params)
    segments, targets = jnp.asarray(IDS > 0, jnp.int32), jnp.asarray(TARGETS > 0, jnp.int32)
    hidden = module.encode(jnp.asarray(IDS), segments)
    shifted = np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1]
    return np.asarray(module.logits(module.decode(jnp.asarray(shifted), targets, hidden, segments)))


def their_logits(model) -> np.ndarray:
    torch = pytest.importorskip("torch")
    shifted = torch.tensor(np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1]).long()
    with torch.no_grad():
        mask = torch.tensor(IDS > 0).long()
        found = model(input_ids=torch.tensor(IDS).long(), attention_mask=mask, decoder_input_ids=shifted)
    return found.logits.numpy()


def real(logits: np.ndarray) -> np.ndarray:
    return logits[TARGETS > 0]


@pytest.mark.parametrize(
    "version",
    [V10, V11, {"scale_decoder_outputs": False}, {"tie_word_embeddings": False, "scale_decoder_outputs": True}],
)
def test_transformers_loads_what_is_written(tmp_path, tokenizer, version):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = T5Config(**SIZES | version)
    rng = np.random.default_rng(0)
    fresh = registry.init_params(model, ("lm",), 2, jax.random.key(1))
    params = {p: np.asarray(x) + rng.normal(size=x.shape).astype("f") * np.float32(0.3) for p, x in fresh.items()}
    hf_folder.save_folder(tmp_path / "out", params, model, ("lm",), tokenizer=tokenizer)
    theirs, about = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(about[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    found = their_logits(theirs.eval())
    np.testing.assert_allclose(real(our_logits(model, params)), real(found), atol=2e-4, rtol=1e-4)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        read("the cat").input_ids == [*tokenizer.encode_batch(["the cat"])[0], 1] and len(read) == tokenizer.vocab_size
    )
    theirs.save_pretrained(tmp_path / "again")  # and what transformers makes of it comes back to the bit
    assert model_section(tmp_path / "again") == model_section(tmp_path / "out")
    back = load(tmp_path / "again")
    assert back.keys() == params.keys() and all((back[p] == x).all() for p, x in params.items())


@pytest.mark.parametrize("version", [V10, V11])
def test_a_folder_saved_by_transformers(tmp_path, version):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch_t5 import flat_parameters

    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES, **version)).eval()
    if version is V11:  # transformers 5 ties whatever it is told
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(V, D))
    theirs.save_pretrained(tmp_path)
    model = model_section(tmp_path)
    assert model == T5Config(**SIZES, **version, scale_decoder_outputs=version is V10)
    params, expected = load(tmp_path), flat_parameters(theirs, model)
    assert params.keys() == expected.keys() and all((params[p] == x).all() for p, x in expected.items())
    np.testing.assert_allclose(real(our_logits(model, params)), real(their_logits(theirs)), atol=2e-4, rtol=1e-4)
