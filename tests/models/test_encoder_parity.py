"""Parity of RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA and ALBERT with transformers' torch models, in and out."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from model_sections import model_section  # noqa: E402

from bertjax.config.schema.model import FAMILIES  # noqa: E402
from bertjax.data.tokenizers import load  # noqa: E402
from bertjax.data.tokenizers.load import Tokenizer  # noqa: E402
from bertjax.interop import hf_folder  # noqa: E402
from bertjax.models import registry  # noqa: E402
from bertjax.models.bert.heads import find_heads  # noqa: E402
from bertjax.models.registry import build_model  # noqa: E402

V, TOLERANCE = 61, 1e-5
COMMON = {"vocab_size": V, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = COMMON | {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
                  "max_position_embeddings": 22}  # fmt: skip
WIDE = COMMON | {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 24,
                 "max_position_embeddings": 19, "layer_norm_eps": 1e-3, "hidden_act": "relu"}  # fmt: skip
# Families of transformers' classes, each with a usual configuration and one with odd settings.
SETTINGS = {
    "Roberta": [SMALL | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
                WIDE | {"type_vocab_size": 2, "pad_token_id": 4, "classifier_dropout": 0.3}],
    "XLMRoberta": [SMALL | {"type_vocab_size": 1}],
    "Camembert": [SMALL | {"type_vocab_size": 1, "hidden_act": "gelu_new"}],
    "Electra": [SMALL | {"embedding_size": 10}, SMALL | {"embedding_size": 24, "hidden_act": "silu"},
                WIDE | {"embedding_size": 56, "type_vocab_size": 3}],
    "Albert": [SMALL | {"embedding_size": 10}, SMALL | {"embedding_size": 24, "num_hidden_layers": 4},
               WIDE | {"embedding_size": 8, "num_hidden_layers": 5, "num_hidden_groups": 3},
               WIDE | {"embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 3,
                       "classifier_dropout_prob": 0.0, "type_vocab_size": 1}],
}  # fmt: skip
HEADS = ["Model", "ForMaskedLM", "ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification"]
MORE = {"Electra": ["ForPreTraining"], "Albert": ["ForPreTraining"]}
# Every head with the usual configuration; with the odd ones two, and the others in the slow tests.
FEW = ("ForMaskedLM", "ForSequenceClassification")
CASES = [
    pytest.param(f"{family}{head}", number, marks=() if number == 0 or head in FEW else pytest.mark.slow)
    for family, settings in SETTINGS.items()
    for number in range(len(settings))
    for head in HEADS + MORE.get(family, [])
]


def torch_model(name: str, number: int):
    """A transformers model whose every parameter is random, biases and norms too."""
    family = next(family for family in SETTINGS if name.startswith(family))
    more = {"num_labels": 3} if name.endswith(("SequenceClassification", "TokenClassification")) else {}
    config = getattr(transformers, f"{family}Config")(**SETTINGS[family][number], **more)
    torch.manual_seed(len(name) + number)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            norm = "norm" in path.lower() and path.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if norm else 0.0))
    return model


def rows(model, seed: int = 0) -> dict[str, np.ndarray]:
    """Three rows: full, half padding and a single token; two segments in each where the model has two."""
    config, rng = model.config, np.random.default_rng(seed)
    pad = config.pad_token_id
    length = config.max_position_embeddings - (pad + 1 if "roberta" in type(model).__module__
                                               or "camembert" in type(model).__module__ else 0)  # fmt: skip
    lengths = np.array([length, length // 2 + 1, 1])[:, None]
    place = np.arange(length)[None]
    real = place < lengths
    ids = np.where(real, rng.integers(pad + 1, V, (3, length)), pad)
    types = real & (place > lengths // 3) if config.type_vocab_size > 1 else np.zeros_like(real)
    return {"input_ids": ids, "token_type_ids": types.astype(np.int64), "attention_mask": real.astype(np.int64)}


def torch_outputs(model, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = model(**{k: torch.tensor(v) for k, v in batch.items()}, output_hidden_states=True)
    kind = type(model).__name__
    named = {"hidden": found.hidden_states[-1]}
    for ours, theirs in {"mlm": "prediction_logits", "sop": "sop_logits", "start": "start_logits",
                         "end": "end_logits", "pooled": "pooler_output"}.items():  # fmt: skip
        if theirs in found:
            named[ours] = found[theirs]
    if "logits" in found:
        heads = {"MaskedLM": "mlm", "PreTraining": "discriminator", "TokenClassification": "token_classifier",
                 "SequenceClassification": "classifier"}  # fmt: skip
        named[next(head for end, head in heads.items() if kind.endswith(end))] = found["logits"]
    return {name: x.numpy() for name, x in named.items()}


def our_model(params, config):
    return build_model(config, find_heads(params), params, num_labels=registry.num_labels(params))


def our_outputs(params, config, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = our_model(params, config)(
        *(jnp.asarray(batch[name], jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids"))
    )
    return {name: np.asarray(x) for name, x in found.items()}


def assert_close(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray], real: np.ndarray) -> None:
    """Within the tolerance, relative to the largest value, at real positions."""
    for name in theirs:
        pick = real > 0 if theirs[name].shape[:2] == real.shape else ...
        a, b = theirs[name][pick], ours[name][pick]
        assert np.abs(a - b).max() < TOLERANCE * max(1, np.abs(a).max()), (name, np.abs(a - b).max())


def export(out: Path, params, config) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    padding = getattr(config, "pad_token_id", 0)
    pieces = [*(f"x{i}" for i in range(padding)), *pieces]
    backend = load.build_wordpiece({piece: i for i, piece in enumerate(pieces)}, lowercase=True)
    hf_folder.save_folder(out, params, config, find_heads(params), tokenizer=Tokenizer(backend, "test"))


@pytest.mark.parametrize(("name", "number"), CASES)
def test_outputs_and_round_trip(name, number, tmp_path):
    theirs = torch_model(name, number)
    theirs.save_pretrained(tmp_path / "theirs")
    config = model_section(tmp_path / "theirs")
    params = hf_folder.load_params(tmp_path / "theirs", config)
    assert hf_folder.unused_tensors(tmp_path / "theirs", config) == []
    batch = rows(theirs)
    assert config.max_length == batch["input_ids"].shape[1]
    expected, found = torch_outputs(theirs, batch), our_outputs(params, config, batch)
    extra = {"pooled"} if name.endswith(("SequenceClassification", "AlbertForPreTraining")) else set()
    assert found.keys() - extra == expected.keys() - extra
    assert_close(expected, found, batch["attention_mask"])
    assert sum(x.size for x in params.values()) == sum(p.numel() for p in theirs.parameters())

    export(tmp_path / "ours", params, config)
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    for output, value in torch_outputs(again.eval(), batch).items():
        # the weights are the same bits (below); sums of PyTorch depend on where they are in memory
        np.testing.assert_allclose(value, expected[output], rtol=1e-6, atol=1e-6, err_msg=output)
    assert json.loads((tmp_path / "ours/config.json").read_text())["model_type"] == theirs.config.model_type
    assert model_section(tmp_path / "ours") == config
    back = hf_folder.load_params(tmp_path / "ours", config)
    assert back.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(back[path].view(np.uint32), array.view(np.uint32), err_msg=path)


@pytest.mark.parametrize(("name", "number"), [("RobertaForMaskedLM", 1), ("ElectraForMaskedLM", 0),
                                              ("AlbertForMaskedLM", 3)])  # fmt: skip
def test_gradients(name, number, tmp_path):
    """Of the masked-language-model loss over all real tokens; those of shared and tied weights are sums."""
    theirs = torch_model(name, number)
    theirs.save_pretrained(tmp_path / "weights")
    config = model_section(tmp_path / "weights")
    params = hf_folder.load_params(tmp_path / "weights", config)
    batch = rows(theirs)
    labels = np.where(batch["attention_mask"] > 0, batch["input_ids"], -100)
    theirs(**{k: torch.tensor(v) for k, v in batch.items()}, labels=torch.tensor(labels)).loss.backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    expected = hf_folder.load_params(tmp_path / "gradients", config)

    inputs = [jnp.asarray(batch[name], jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids")]

    @jax.jit
    @jax.grad
    def gradients(params):
        logits = jax.nn.log_softmax(our_model(params, config)(*inputs)["mlm"])
        each = jnp.take_along_axis(logits, inputs[0][..., None], axis=-1)[..., 0]
        return -(each * inputs[1]).sum() / inputs[1].sum()

    found = gradients({path: jnp.asarray(x) for path, x in params.items()})
    for path, x in expected.items():
        assert np.abs(found[path] - x).max() < 1e-5 * max(1, np.abs(x).max()), path


def test_padding_inside_a_text_counts_no_position(tmp_path):
    """As `create_position_ids_from_input_ids`; in packed rows too."""
    theirs = torch_model("RobertaModel", 0)
    theirs.save_pretrained(tmp_path)
    model = our_model(hf_folder.load_params(tmp_path, model_section(tmp_path)), model_section(tmp_path))
    texts = [[5, 1, 7, 8, 1, 1, 9, 6], [1, 1, 4], [3, 2, 9, 1]]
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.tensor([text])).last_hidden_state[0].numpy() for text in texts])
    apart = np.concatenate([np.asarray(model(jnp.asarray([text]))["hidden"][0]) for text in texts])
    np.testing.assert_allclose(apart, expected, atol=1e-5)
    row = lambda parts: jnp.asarray([[*np.concatenate(parts), 0]], jnp.int32)  # noqa: E731
    ids = row(texts).at[0, -1].set(1)
    segments, places = row([[i + 1] * len(x) for i, x in enumerate(texts)]), row([range(len(x)) for x in texts])
    packed = model.encode(ids, jnp.zeros_like(ids), segments, places, packed=True)
    np.testing.assert_allclose(packed[0, :-1], expected, atol=1e-5)


def test_parameter_counts_of_published_models():
    """Numbers of the bare models that transformers' `num_parameters` gives."""
    sizes = {
        "roberta": ({}, 124_645_632),
        "electra": ({}, 13_483_008),
        "albert": ({}, 11_683_584),
    }
    for family, (change, expected) in sizes.items():
        config = FAMILIES[family](**change)
        heads = ("pooler",) if "pooler" in config.heads else ()
        assert sum(np.prod(x.shape) for x in registry.abstract_params(config, heads).values()) == expected, family
        if family == "roberta":
            theirs = transformers.RobertaConfig(type_vocab_size=1, max_position_embeddings=514)
        elif family == "electra":
            theirs = transformers.ElectraConfig()
        else:
            theirs = transformers.AlbertConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        with torch.device("meta"):
            assert transformers.AutoModel.from_config(theirs).num_parameters() == expected
