"""GPT against OpenAIGPTLMHeadModel of transformers with the same weights: logits, attention, scores of sentences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.schema.model import GptConfig
from bertjax.evaluation.predictors.sentence_scores import chain_of_tokens
from bertjax.models import registry
from bertjax.models.attention import dot_product_attention
from bertjax.models.compute_options import ComputeOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CONFIG = GptConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                   max_position_embeddings=20)  # fmt: skip
COMPUTE = ComputeOptions(platform="cpu", dtype=jnp.float32)


@pytest.fixture(scope="module")
def theirs():
    """A small OpenAI GPT whose weights are random, norms and biases too."""
    torch.manual_seed(0)
    config = transformers.OpenAIGPTConfig(vocab_size=48, n_positions=20, n_embd=32, n_layer=2, n_head=4)
    model = transformers.OpenAIGPTLMHeadModel(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            norm = "ln_" in path and path.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if norm else 0.0))
    return model


def params_of(theirs) -> dict[str, jax.Array]:
    """Our names of its tensors; Conv1D has kernels [in, out], as ours."""
    state = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    found = {
        "embeddings/word/embedding": state["transformer.tokens_embed.weight"],
        "embeddings/position/embedding": state["transformer.positions_embed.weight"],
    }
    parts = {
        "attention/output/kernel": "attn.c_proj.weight", "attention/output/bias": "attn.c_proj.bias",
        "attention/norm/scale": "ln_1.weight", "attention/norm/bias": "ln_1.bias",
        "mlp/intermediate/kernel": "mlp.c_fc.weight", "mlp/intermediate/bias": "mlp.c_fc.bias",
        "mlp/output/kernel": "mlp.c_proj.weight", "mlp/output/bias": "mlp.c_proj.bias",
        "mlp/norm/scale": "ln_2.weight", "mlp/norm/bias": "ln_2.bias",
    }  # fmt: skip
    for layer in range(2):
        there = {name: state[f"transformer.h.{layer}.{name}"] for name in parts.values()}
        found |= {f"layers/{layer}/{ours}": there[name] for ours, name in parts.items()}
        for ours, name, shape in (("kernel", "weight", (32, 3, 32)), ("bias", "bias", (3, 32))):
            fused = state[f"transformer.h.{layer}.attn.c_attn.{name}"]
            found[f"layers/{layer}/attention/qkv/{ours}"] = fused.reshape(shape)
    return {path: jnp.asarray(x) for path, x in found.items()}


def test_logits_are_those_of_transformers(theirs):
    model = registry.build_model(CONFIG, ("lm",), params_of(theirs), compute=COMPUTE)
    ids = np.random.default_rng(0).integers(0, 48, (3, 17))
    ones, places = np.ones_like(ids), np.broadcast_to(np.arange(17), ids.shape)
    with torch.no_grad():
        out = theirs(torch.tensor(ids), output_hidden_states=True)
    hidden = model.token_states(ids, 0 * ids, ones, places)
    np.testing.assert_allclose(model.lm_logits(hidden), out.logits.numpy(), atol=1e-4)
    ours = model.hidden_states(ids, 0 * ids, ones, places)
    for mine, other in zip(ours, out.hidden_states, strict=True):
        np.testing.assert_allclose(mine[:, 1:], other.numpy()[:, 1:], atol=1e-4)
        np.testing.assert_allclose(mine[:, 0], other.numpy()[:, -1], atol=1e-4)  # [CLS] has the last token's


def test_examples_of_a_packed_row_are_those_of_rows_of_their_own(theirs):
    params = params_of(theirs)

    @partial(jax.jit, static_argnames="packed")
    def encode(ids, segments, places, packed=False):
        model = registry.build_model(CONFIG, ("lm",), params, compute=COMPUTE)
        return model.encode(ids, 0 * ids, segments, places, packed=packed)

    ids = np.random.default_rng(1).integers(0, 48, (1, 12))
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3])
    places = np.array([[*range(5), *range(4), 0, 0, 0]])
    packed = encode(ids, segments, places, packed=True)
    for start, stop in ((0, 5), (5, 9)):
        own = ids[:, start:stop]
        alone = encode(own, np.ones_like(own), np.arange(stop - start)[None])
        np.testing.assert_allclose(packed[:, start:stop], alone, atol=1e-5)
    np.testing.assert_allclose(encode(ids, 1 * (segments == 1), places)[:, :5], packed[:, :5], atol=1e-5)


def test_causal_attention_is_that_of_torch():
    q, k, v = (np.random.default_rng(n).normal(size=(2, 6, 3, 8)).astype(np.float32) for n in range(3))
    heads_first = [torch.tensor(np.moveaxis(x, 2, 1)) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True).numpy()
    options = {"packed": False, "rate": 0.0, "key": None, "compute": COMPUTE, "causal": True}
    found = dot_product_attention(*map(jnp.asarray, (q, k, v)), jnp.ones((2, 6), int), **options)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), 2, 1), expected, atol=1e-5)


def test_attention_is_that_of_transformers(theirs):
    """Layer by layer, also in a row with padding; later tokens have no weight."""
    model = registry.build_model(CONFIG, ("lm",), params_of(theirs), compute=COMPUTE)
    ids = np.random.default_rng(2).integers(0, 48, (2, 17))
    real = (np.arange(17) < np.array([[17], [9]])).astype(int)
    places = np.broadcast_to(np.arange(17), ids.shape)
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        out = theirs(torch.tensor(ids), attention_mask=torch.tensor(real), output_attentions=True)
    found = model.attention_probabilities(ids, 0 * ids, real, places)
    assert len(found) == len(out.attentions) == 2
    for mine, other in zip(found, out.attentions, strict=True):
        assert mine.dtype == jnp.float32 and mine.shape == (2, 4, 17, 17)
        assert not np.triu(mine, 1).any() and np.std(mine) > 0.01
        mine, other = (np.moveaxis(np.asarray(x), 1, 2)[real > 0] for x in (mine, other.numpy()))
        np.testing.assert_allclose(mine, other, atol=2e-5)


def test_sentence_scores_are_those_of_the_harness(theirs):
    """`blimp` of lm-evaluation-harness, whose context of a sentence is the start token, and the end token's score.

    It adds the log probabilities of all tokens of the sentence, the first one given the start token ([CLS] here), and
    scores no end token. Sentences of different lengths are in one padded batch.
    """
    model = registry.build_model(CONFIG, ("lm",), params_of(theirs), compute=COMPUTE)
    start, end, rng = 2, 3, np.random.default_rng(4)
    sentences = [rng.integers(5, 48, length).tolist() for length in (1, 6, 14)]
    expected = []
    for sentence in sentences:
        given = torch.tensor([[start, *sentence]])  # context and continuation, without their last token in the harness
        with torch.no_grad():
            scores = torch.log_softmax(theirs(given).logits[0], -1)
            loss = theirs(torch.tensor([[start, *sentence, end]]), labels=torch.tensor([[start, *sentence, end]])).loss
        harness = scores[:-1].gather(-1, torch.tensor(sentence)[:, None]).sum().item()
        expected.append(harness + scores[-1, end].item())
        assert -loss.item() * (len(sentence) + 1) == pytest.approx(expected[-1], abs=1e-3)
    rows = [[start, *sentence, end] for sentence in sentences]
    segments = np.array([[1] * len(row) + [0] * (16 - len(row)) for row in rows])
    ids = np.array([row + [0] * (16 - len(row)) for row in rows])
    batch = {
        "input_ids": ids,
        "token_type_ids": 0 * ids,
        "segment_ids": segments,
        "positions": np.arange(16) * segments,
    }
    found = chain_of_tokens(tuple(batch), (1,))(model, {name: jnp.asarray(x) for name, x in batch.items()})
    np.testing.assert_allclose(found, expected, atol=1e-3)
