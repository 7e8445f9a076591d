"""Adapters and LoRA against plain torch layers put into transformers' models: same logits, same gradients."""

import math

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from model_sections import model_section  # noqa: E402
from torch_t5 import flat_parameters  # noqa: E402

from bertjax.config.schema.model import T5Config  # noqa: E402
from bertjax.interop import hf_folder  # noqa: E402
from bertjax.models import registry  # noqa: E402
from bertjax.models.layers import lora  # noqa: E402
from bertjax.models.peft_options import PeftOptions  # noqa: E402

V, D, F, LAYERS, ROWS, S = 41, 24, 40, 2, 3, 10
BERT_TARGETS = ("query", "key", "value", "attention_output", "mlp_intermediate", "mlp_output")
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, V, (ROWS, S))
MASK = (np.arange(S)[None] < np.array([[S], [6], [1]])).astype(np.int64)
WEIGHTS = RNG.normal(size=(2, ROWS, S)).astype(np.float32) * MASK  # of the logits in the loss


class TorchLora(torch.nn.Module):
    """Section 4.1 of arXiv 2106.09685: h = W x + (alpha / r) B A x."""

    def __init__(self, linear, a, b, scale):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.a, self.b = (torch.nn.Parameter(torch.tensor(np.asarray(x).T.copy())) for x in (a, b))

    @property
    def weight(self):
        """transformers' T5 looks at its type."""
        return self.linear.weight

    def forward(self, x):
        return self.linear(x) + self.scale * torch.nn.functional.linear(torch.nn.functional.linear(x, self.a), self.b)


class TorchAdapter(torch.nn.Module):
    """feedforward_adapter of google-research/adapter-bert modeling.py, behind the dropout that it follows."""

    def __init__(self, dropout, w1, b1, w2, b2):
        super().__init__()
        self.dropout = dropout
        self.w1, self.b1, self.w2, self.b2 = (
            torch.nn.Parameter(torch.tensor(np.array(x))) for x in (w1, b1, w2, b2)
        )  # fmt: skip

    def forward(self, x):
        x = self.dropout(x)
        net = x @ self.w1 + self.b1
        cdf = 0.5 * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (net + 0.044715 * net**3)))
        return net * cdf @ self.w2 + self.b2 + x


def torch_qa(family: str):
    sizes = {"vocab_size": V, "max_position_embeddings": S}
    if family == "bert":
        config = transformers.BertConfig(
            **sizes, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=3, intermediate_size=F
        )
        model = transformers.BertForQuestionAnswering(config)
    else:
        config = transformers.DistilBertConfig(**sizes, dim=D, n_layers=LAYERS, n_heads=3, hidden_dim=F)
        model = transformers.DistilBertForQuestionAnswering(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def sublayers(model, family: str) -> list[dict]:
    """For each layer: {target or name: (the module that has it, the attribute)}."""
    if family == "bert":
        return [
            {
                "query": (x.attention.self, "query"), "key": (x.attention.self, "key"),
                "value": (x.attention.self, "value"), "attention_output": (x.attention.output, "dense"),
                "mlp_intermediate": (x.intermediate, "dense"), "mlp_output": (x.output, "dense"),
            }
            for x in model.bert.encoder.layer
        ]  # fmt: skip
    return [
        {
            "query": (x.attention, "q_lin"), "key": (x.attention, "k_lin"), "value": (x.attention, "v_lin"),
            "attention_output": (x.attention, "out_lin"), "mlp_intermediate": (x.ffn, "lin1"),
            "mlp_output": (x.ffn, "lin2"),
        }
        for x in model.distilbert.transformer.layer
    ]  # fmt: skip


PATHS = {
    "query": "attention/qkv/lora/query", "key": "attention/qkv/lora/key", "value": "attention/qkv/lora/value",
    "attention_output": "attention/output/lora", "mlp_intermediate": "mlp/intermediate/lora",
    "mlp_output": "mlp/output/lora",
}  # fmt: skip


def our_params(folder, peft: PeftOptions, std: float) -> tuple:
    """-> (section, parameters with random added ones)."""
    config = model_section(folder)
    rng = np.random.default_rng(3)
    shapes = registry.abstract_params(config, ("qa",), 2, peft)
    loaded = hf_folder.load_params(folder, config)
    added = {p: rng.normal(size=x.shape).astype(np.float32) * std for p, x in shapes.items() if p not in loaded}
    return config, {path: x for path, x in loaded.items() if path in shapes} | added


def our_gradients(config, params, peft: PeftOptions) -> tuple:
    """-> (start and end logits, gradients of the loss)."""

    def loss(params):
        model = registry.build_model(config, ("qa",), params, peft=peft)
        out = model(IDS.astype(np.int32), MASK.astype(np.int32))
        logits = jax.numpy.stack([out["start"], out["end"]])
        return (logits * WEIGHTS).sum(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(logits), jax.device_get(grads)


def torch_logits(model):
    out = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK))
    return torch.stack([out.start_logits, out.end_logits])


def compare(logits, theirs, pairs) -> None:
    real = MASK > 0
    np.testing.assert_allclose(logits[:, real], theirs.detach().numpy()[:, real], atol=1e-4, rtol=1e-4)
    for name, ours, gradient in pairs:
        gradient = gradient.numpy()
        assert np.abs(gradient).max() > 0
        np.testing.assert_allclose(ours, gradient, atol=1e-4 * max(1, np.abs(gradient).max()), err_msg=name)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("bert", ("query", "value")),
        ("bert", ("mlp_output", "key")),
        ("bert", BERT_TARGETS),
        ("distilbert", BERT_TARGETS),
    ],
)
def test_lora_of_an_encoder(family, targets, tmp_path):
    model = torch_qa(family)
    model.save_pretrained(tmp_path)
    peft = PeftOptions(lora_rank=3, lora_scale=0.75, lora_targets=targets)
    config, params = our_params(tmp_path, peft, 0.3)
    pairs = []
    for number, layer in enumerate(sublayers(model, family)):
        for target in targets:
            path = f"layers/{number}/{PATHS[target]}"
            parent, name = layer[target]
            setattr(parent, name, TorchLora(getattr(parent, name), params[f"{path}/a"], params[f"{path}/b"], 0.75))
            pairs.append((path, getattr(parent, name)))
    theirs = torch_logits(model)
    (theirs * torch.tensor(WEIGHTS)).sum().backward()
    logits, grads = our_gradients(config, params, peft)
    compare(logits, theirs, [(p, grads[f"{p}/{x}"].T, getattr(m, x).grad) for p, m in pairs for x in "ab"])
    merged = lora.merge(params, 0.75)
    assert merged.keys() == registry.abstract_params(config, ("qa",)).keys()
    np.testing.assert_allclose(our_gradients(config, merged, PeftOptions())[0], logits, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("placement", ["houlsby", "feed_forward"])
def test_adapters_of_an_encoder(family, placement, tmp_path):
    model = torch_qa(family)
    model.save_pretrained(tmp_path)
    peft = PeftOptions(adapter_size=5, adapter_placement=placement)
    config, params = our_params(tmp_path, peft, 0.3)
    pairs = []

    def add(number: int, sublayer: str, dropout) -> TorchAdapter:
        path = f"layers/{number}/{sublayer}/adapter"
        names = [f"{path}/{x}" for x in ("intermediate/kernel", "intermediate/bias", "output/kernel", "output/bias")]
        module = TorchAdapter(dropout, *(params[name] for name in names))
        pairs.extend(zip(names, (module.w1, module.b1, module.w2, module.b2), strict=True))
        return module

    layers = model.bert.encoder.layer if family == "bert" else model.distilbert.transformer.layer
    for number, layer in enumerate(layers):
        if family == "bert":
            if placement == "houlsby":
                layer.attention.output.dropout = add(number, "attention", layer.attention.output.dropout)
            layer.output.dropout = add(number, "mlp", layer.output.dropout)
        else:  # DistilBERT has no dropout after attention; its feed-forward ends in one
            if placement == "houlsby":
                attached = torch.nn.Sequential(layer.attention.out_lin, add(number, "attention", torch.nn.Identity()))
                layer.attention.out_lin = attached
            layer.ffn.dropout = add(number, "mlp", layer.ffn.dropout)
    theirs = torch_logits(model)
    (theirs * torch.tensor(WEIGHTS)).sum().backward()
    logits, grads = our_gradients(config, params, peft)
    norm = model.bert.embeddings.LayerNorm if family == "bert" else model.distilbert.embeddings.LayerNorm
    pairs.append(("embeddings/norm/scale", norm.weight))
    compare(logits, theirs, [(name, grads[name], parameter.grad) for name, parameter in pairs])


def test_adapters_start_near_the_identity(tmp_path):
    """tf.truncated_normal_initializer(stddev=1e-3); the model is nearly that without adapters (section 2.1)."""
    torch_qa("bert").save_pretrained(tmp_path)
    config = model_section(tmp_path)
    loaded = hf_folder.load_params(tmp_path, config)
    peft = PeftOptions(adapter_size=64)
    fresh = registry.init_params(config, ("qa",), 2, jax.random.key(0), peft)
    kernels = [np.asarray(x) for path, x in fresh.items() if "/adapter/" in path and path.endswith("kernel")]
    assert len(kernels) == 4 * LAYERS
    flat = np.concatenate([x.ravel() for x in kernels])
    assert np.abs(flat).max() <= 2e-3 and abs(flat.std() / 0.87962566e-3 - 1) < 0.03
    plain = our_gradients(config, {p: loaded[p] for p in registry.abstract_params(config, ("qa",))}, PeftOptions())[0]
    adapted = our_gradients(config, fresh | {p: x for p, x in loaded.items() if p in fresh}, peft)[0]
    assert 0 < np.abs(adapted - plain).max() < 1e-3


def test_lora_starts_as_in_the_reference():
    """loralib: nn.init.kaiming_uniform_(A, a=sqrt(5)), zeros for B; other parameters do not depend on it."""
    config = T5Config(vocab_size=V, d_model=D, d_kv=8, d_ff=F, num_layers=1, num_heads=3)
    peft = PeftOptions(lora_rank=200, lora_targets=("query", "mlp_output"))
    fresh = registry.init_params(config, ("lm",), 2, jax.random.key(0), peft)
    plain = registry.init_params(config, ("lm",), 2, jax.random.key(0))
    assert all(np.array_equal(fresh[path], x) for path, x in plain.items())
    a, wide = fresh["encoder/layers/0/attention/query/lora/a"], fresh["decoder/layers/0/mlp/output/lora/a"]
    for x, rows in ((a, D), (wide, F)):
        assert x.shape == (rows, 200) and abs(np.std(x) * math.sqrt(3 * rows) - 1) < 0.03
        reference = torch.nn.init.kaiming_uniform_(torch.empty(200, rows), a=math.sqrt(5))
        assert np.abs(x).max() == pytest.approx(float(reference.abs().max()), rel=0.01)
    assert not any(np.any(x) for path, x in fresh.items() if path.endswith("/lora/b"))


@pytest.mark.parametrize("version", ["relu", "gated-gelu"])
def test_lora_of_a_t5(version):
    """In the encoder, the decoder and cross attention."""
    sizes = dict(vocab_size=V, d_model=D, d_kv=6, d_ff=F, num_layers=2, num_heads=4, feed_forward_proj=version)
    theirs = transformers.T5Config(**sizes, decoder_start_token_id=0, attn_implementation="eager")
    torch.manual_seed(2)
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    config = T5Config(**sizes)
    gate = ("mlp_gate",) if config.gated else ()
    targets = (*BERT_TARGETS, *gate)
    peft = PeftOptions(lora_rank=2, lora_scale=1.5, lora_targets=targets)
    loaded = flat_parameters(model, config)
    rng = np.random.default_rng(5)
    shapes = registry.abstract_params(config, ("lm",), 2, peft)
    added = {p: rng.normal(size=x.shape) * 0.2 for p, x in shapes.items() if p not in loaded}
    params = loaded | {path: x.astype(np.float32) for path, x in added.items()}
    attention = {"query": "q", "key": "k", "value": "v", "output": "o"}
    wide = {"intermediate": "wi_1", "gate": "wi_0", "output": "wo"} if gate else {"intermediate": "wi", "output": "wo"}
    pairs = []
    for stack in ("encoder", "decoder"):
        for number, block in enumerate(getattr(model, stack).block):
            parts = [("attention", block.layer[0].SelfAttention, attention)]
            parts += [("cross_attention", block.layer[1].EncDecAttention, attention)] if stack == "decoder" else []
            parts += [("mlp", block.layer[-1].DenseReluDense, wide)]
            for name, parent, names in parts:
                for ours, their in names.items():
                    path = f"{stack}/layers/{number}/{name}/{ours}/lora"
                    pair = TorchLora(getattr(parent, their), params.pop(f"{path}/a"), params.pop(f"{path}/b"), 1.5)
                    setattr(parent, their, pair)
                    pairs.append((path, pair))
    assert not any("/lora/" in path for path in params), "every update has its twin"
    for path, pair in pairs:
        params |= {f"{path}/a": pair.a.detach().numpy().T, f"{path}/b": pair.b.detach().numpy().T}

    def loss(params):
        built = registry.build_model(config, ("lm",), params, peft=peft)
        logits = built(IDS.astype(np.int32), IDS.astype(np.int32), MASK.astype(np.int32))
        return (logits[:, :, 5] * WEIGHTS[0]).sum(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    out = model(
        input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK), decoder_input_ids=torch.tensor(IDS)
    ).logits
    (out[:, :, 5] * torch.tensor(WEIGHTS[0])).sum().backward()
    np.testing.assert_allclose(np.asarray(logits), out.detach().numpy(), atol=2e-4, rtol=1e-3)
    for path, pair in pairs:
        for name in "ab":
            gradient = getattr(pair, name).grad.numpy()
            scale = max(1e-2, np.abs(gradient).max())
            np.testing.assert_allclose(grads[f"{path}/{name}"].T, gradient, atol=1e-3 * scale, err_msg=path)
