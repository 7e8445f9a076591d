"""Parity with transformers' torch models: same files, same numbers, both ways."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from model_sections import model_section  # noqa: E402

from bertjax.config.schema.model import FAMILIES, BertConfig  # noqa: E402
from bertjax.data.tokenizers import load  # noqa: E402
from bertjax.data.tokenizers.load import Tokenizer  # noqa: E402
from bertjax.interop import hf_folder  # noqa: E402
from bertjax.models import registry  # noqa: E402
from bertjax.models.bert.heads import find_heads  # noqa: E402
from bertjax.models.registry import build_model, init_params  # noqa: E402

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{x}" for x in "abcdefgh"), "word", "!"]
V = 61  # more rows than pieces, as padded vocabularies have
# hidden size, layers, heads, feed-forward size, activation, positions
SIZES = {
    "three heads, erf gelu": (24, 2, 3, 40, "gelu", 32),
    "five heads, tanh gelu": (40, 3, 5, 64, "gelu_new", 20),
    "one head, relu": (16, 1, 1, 24, "relu", 16),
    "seven heads of one": (7, 4, 7, 9, "gelu", 13),
}
BERT = ["BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction",
        "BertForQuestionAnswering", "BertForSequenceClassification", "BertForTokenClassification"]  # fmt: skip
DISTILBERT = ["DistilBertModel", "DistilBertForMaskedLM", "DistilBertForQuestionAnswering",
              "DistilBertForSequenceClassification", "DistilBertForTokenClassification"]  # fmt: skip
# Every class at one size, and the classes that hold all kinds of heads at every size.
FIRST, *OTHERS = SIZES
WIDE = ["BertForPreTraining", "BertForSequenceClassification", "DistilBertForQuestionAnswering"]
CASES = [(name, FIRST) for name in BERT + DISTILBERT] + [(name, size) for size in OTHERS for name in WIDE]
TOLERANCE = 1e-4


def torch_model(name: str, size: str):
    """A transformers model whose every parameter is random, biases and norms too."""
    hidden, layers, heads, feed_forward, act, positions = SIZES[size]
    labels = 3 if name.endswith(("SequenceClassification", "TokenClassification")) else 2
    if name.startswith("Distil"):
        config = transformers.DistilBertConfig(
            vocab_size=V, dim=hidden, n_layers=layers, n_heads=heads, hidden_dim=feed_forward, activation=act,
            max_position_embeddings=positions, num_labels=labels,
        )  # fmt: skip
    else:
        config = transformers.BertConfig(
            vocab_size=V, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, hidden_act=act,
            intermediate_size=feed_forward, max_position_embeddings=positions, num_labels=labels,
        )  # fmt: skip
    torch.manual_seed(hidden + len(name))
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            norm = "norm" in path.lower() and path.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if norm else 0.0))
    return model


def rows(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Three rows: full, half padding and a single token; two segments in each."""
    rng = np.random.default_rng(seed)
    lengths = np.array([length, length // 2 + 1, 1])[:, None]
    place = np.arange(length)[None]
    real = place < lengths
    return {
        "input_ids": np.where(real, rng.integers(1, V, (3, length)), 0).astype(np.int32),
        "token_type_ids": (real & (place > lengths // 3)).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "positions": (place * real).astype(np.int32),
    }


def torch_outputs(model, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["segment_ids"]}
    if model.config.model_type == "bert":
        inputs["token_type_ids"] = batch["token_type_ids"]
    with torch.no_grad():
        found = model(**{k: torch.tensor(v, dtype=torch.long) for k, v in inputs.items()}, output_hidden_states=True)
    named = {"hidden": found.hidden_states[-1]}
    for ours, theirs in {"mlm": "prediction_logits", "nsp": "seq_relationship_logits", "start": "start_logits",
                         "end": "end_logits", "pooled": "pooler_output"}.items():  # fmt: skip
        if theirs in found:
            named[ours] = found[theirs]
    if "logits" in found:
        kind = type(model).__name__
        heads = {"MaskedLM": "mlm", "NextSentence": "nsp", "Token": "token_classifier", "Sequence": "classifier"}
        named[next(head for part, head in heads.items() if part in kind)] = found["logits"]
    return {name: x.numpy() for name, x in named.items()}


def our_outputs(params, config: BertConfig, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    heads = find_heads(params)
    model = build_model(config, heads, params, num_labels=registry.num_labels(params))
    b = {name: jnp.asarray(x) for name, x in batch.items()}
    hidden = model.encode(b["input_ids"], b["token_type_ids"], b["segment_ids"], b["positions"])
    every, first = jnp.broadcast_to(jnp.arange(hidden.shape[1]), hidden.shape[:2]), jnp.zeros((3, 1), jnp.int32)
    out = {"hidden": hidden}
    if "mlm" in heads:
        out["mlm"] = model.mlm_logits(hidden, every)
    if "nsp" in heads:
        out["nsp"] = model.nsp_logits(hidden, first)[:, 0]
    if "qa" in heads:
        out["start"], out["end"] = model.qa_logits(hidden)
    if "classifier" in heads:
        out["classifier"] = model.class_logits(hidden, first)[:, 0]
    if "token_classifier" in heads:
        out["token_classifier"] = model.token_logits(hidden)
    if "pooler" in heads:
        out["pooled"] = model.heads.pooler(hidden[:, :1])[:, 0]
    return {name: np.asarray(x) for name, x in out.items()}


def differences(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray], real: np.ndarray) -> dict[str, float]:
    """The largest difference of each output, at real positions."""
    assert theirs.keys() == ours.keys()
    pick = lambda x: x[real] if x.shape[:2] == real.shape else x  # noqa: E731
    return {name: float(np.abs(pick(theirs[name]) - pick(ours[name])).max()) for name in theirs}


def export(out: Path, params, config: BertConfig, labels=None) -> None:
    backend = load.build_wordpiece({piece: i for i, piece in enumerate(VOCABULARY)}, lowercase=True)
    tokenizer = Tokenizer(backend, "test")
    hf_folder.save_folder(
        out, params, config, find_heads(params),
        tokenizer=tokenizer, labels=labels,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "size"), CASES)
def test_outputs_and_round_trip(name, size, tmp_path):
    theirs = torch_model(name, size)
    theirs.save_pretrained(tmp_path / "theirs")
    config = model_section(tmp_path / "theirs")
    params = hf_folder.load_params(tmp_path / "theirs", config)
    batch = rows(SIZES[size][-1])
    expected = torch_outputs(theirs, batch)
    found = differences(expected, our_outputs(params, config, batch), batch["segment_ids"] > 0)
    assert max(found.values()) < TOLERANCE, found

    export(tmp_path / "ours", params, config)
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    for output, value in torch_outputs(again.eval(), batch).items():
        np.testing.assert_array_equal(value, expected[output], err_msg=output)
    back = hf_folder.load_params(tmp_path / "ours", model_section(tmp_path / "ours"))
    assert model_section(tmp_path / "ours") == config
    assert back.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(back[path].view(np.uint32), array.view(np.uint32), err_msg=path)


@pytest.mark.parametrize(
    "heads", [("mlm", "nsp"), ("mlm",), ("nsp",), ("qa",), ("classifier",), ("token_classifier",), ("pooler",)]
)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_our_own_models_load_in_the_auto_classes(family, heads, tmp_path):
    """Fresh parameters of ours, with the names and sizes only our configuration says."""
    if family == "distilbert" and set(heads) & {"nsp", "pooler"}:
        heads = ()
    config = FAMILIES[family](
        vocab_size=V, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, type_vocab_size=0 if family == "distilbert" else 2, hidden_act="gelu_new",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = init_params(config, heads, 3 if "token_classifier" in heads else 1, jax.random.key(0))
    params = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in shapes.items()}
    export(tmp_path / "ours", params, config, labels=["score"] if "classifier" in heads else None)
    auto = {("mlm", "nsp"): "AutoModelForPreTraining", ("mlm",): "AutoModelForMaskedLM",
            ("nsp",): "AutoModelForNextSentencePrediction", ("qa",): "AutoModelForQuestionAnswering",
            ("classifier",): "AutoModelForSequenceClassification",
            ("token_classifier",): "AutoModelForTokenClassification"}.get(heads, "AutoModel")  # fmt: skip
    loaded, info = getattr(transformers, auto).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert type(loaded).__name__ == json.loads((tmp_path / "ours/config.json").read_text())["architectures"][0]
    batch = rows(16)
    ours, theirs = our_outputs(params, config, batch), torch_outputs(loaded.eval(), batch)
    for name, value in ours.items():  # these weights are wild: relative to the size of the numbers
        real = batch["segment_ids"] > 0 if value.shape[:2] == (3, 16) else ...
        scale = np.abs(theirs[name][real]).max()
        assert np.abs(value[real] - theirs[name][real]).max() < TOLERANCE * max(scale, 1), name


def test_models_without_segments_are_exported_with_zero_ones(tmp_path):
    config = BertConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, type_vocab_size=0,
    )  # fmt: skip
    params = {p: np.asarray(x) for p, x in init_params(config, ("mlm",), 2, jax.random.key(1)).items()}
    export(tmp_path / "ours", params, config)
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    batch = rows(16)
    found = differences(torch_outputs(loaded, batch), our_outputs(params, config, batch), batch["segment_ids"] > 0)
    assert max(found.values()) < TOLERANCE


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_exported_tokenizers_give_the_same_ids(family, tmp_path):
    config = FAMILIES[family](
        vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, type_vocab_size=0 if family == "distilbert" else 2,
    )  # fmt: skip
    params = init_params(config, ("mlm",), 2, jax.random.key(1))
    export(tmp_path / "ours", {p: np.asarray(x) for p, x in params.items()}, config)
    ours = load.from_file(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    texts = ["Word ABC, déf!", "x", "", "a" * 150, "badge  fade\tface 中文"]  # 150 letters are one word
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ours.encode_batch(texts)
    pair = theirs("word abc", "def")
    expected = ours.backend.encode("word abc", "def")
    assert pair["input_ids"] == expected.ids
    assert pair.get("token_type_ids", expected.type_ids) == expected.type_ids
    assert ("token_type_ids" in pair) == (family == "bert")  # DistilBertModel takes none
    assert (theirs.pad_token_id, theirs.mask_token_id) == (ours.pad_id, ours.mask_id)
    assert theirs.model_max_length == 16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_widened_exactly(dtype, tmp_path):
    theirs = torch_model("BertForQuestionAnswering", "three heads, erf gelu").to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file(), "several files"
    params = hf_folder.load_params(tmp_path, model_section(tmp_path))
    weights = theirs.state_dict()
    np.testing.assert_array_equal(
        params["layers/1/attention/qkv/kernel"][:, 2],
        weights["bert.encoder.layer.1.attention.self.value.weight"].float().numpy().T,
    )
    assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
