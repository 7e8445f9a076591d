"""Frozen features against transformers' BertModel: mixtures of its hidden states, and gradients of heads on them."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from model_sections import model_section  # noqa: E402

from bertjax.interop import hf_folder  # noqa: E402
from bertjax.models import registry  # noqa: E402
from bertjax.models.peft_options import PeftOptions  # noqa: E402

V, D, F, LAYERS, ROWS, S = 41, 24, 40, 5, 3, 10
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, V, (ROWS, S))
MASK = (np.arange(S)[None] < np.array([[S], [6], [1]])).astype(np.int64)
WEIGHTS = RNG.normal(size=(2, ROWS, S)).astype(np.float32) * MASK  # of the span logits in the loss
SHARES, GAMMA = RNG.normal(size=LAYERS + 1).astype(np.float32), np.float32([0.7])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random encoder with the heads of questions, and of classes with a pooler."""
    config = transformers.BertConfig(
        vocab_size=V, max_position_embeddings=S, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=3,
        intermediate_size=F, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    home = tmp_path_factory.mktemp("encoder")
    model.save_pretrained(home)
    return home


def torch_mix(states, layers: str, shares, gamma):
    """BERT's feature-based table and ELMo's equation 1, in their own words."""
    if layers == "last":
        return states[-1]
    if layers == "sum_last_four":
        return torch.stack(states[-4:]).sum(0)
    return gamma * sum(share * state for share, state in zip(torch.softmax(shares, 0), states, strict=True))


@pytest.mark.parametrize("layers", ["last", "sum_last_four", "weighted"])
def test_features_and_gradients_of_a_head_are_those_of_torch(folder, layers):
    """The pooler and a classifier on the first token; the encoder has no gradient."""
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    shares, gamma = (torch.nn.Parameter(torch.tensor(x)) for x in (SHARES, GAMMA))
    with torch.no_grad():
        out = model.bert(torch.tensor(IDS), attention_mask=torch.tensor(MASK), output_hidden_states=True)
    hidden = torch_mix(out.hidden_states, layers, shares, gamma)
    logits = model.classifier(model.bert.pooler(hidden))
    labels = torch.tensor([0, 2, 1])
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    loss.backward()

    config, peft = model_section(folder), PeftOptions(feature_layers=layers)
    params = dict(hf_folder.load_params(folder, config))
    if layers == "weighted":
        params |= {"heads/layer_mix/weights": SHARES, "heads/layer_mix/gamma": GAMMA}
    wanted = registry.abstract_params(config, ("classifier",), 3, peft)
    assert {path: x.shape for path, x in wanted.items()} == {path: x.shape for path, x in params.items()}

    def ours(heads, frozen):
        out = registry.build_model(config, ("classifier",), {**frozen, **heads}, num_labels=3, peft=peft)(
            IDS.astype(np.int32), MASK.astype(np.int32)
        )
        chosen = jax.nn.log_softmax(out["classifier"])[np.arange(ROWS), labels.numpy()]
        return -chosen.sum(), out["hidden"]

    heads = {path: x for path, x in params.items() if path.startswith("heads/")}
    frozen = {path: x for path, x in params.items() if path not in heads}
    (found, mixed), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(heads, frozen)
    real = MASK > 0
    np.testing.assert_allclose(np.asarray(mixed)[real], hidden.detach().numpy()[real], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    theirs = {}
    for name, layer in (("pooler", model.bert.pooler.dense), ("classifier", model.classifier)):
        theirs |= {f"heads/{name}/kernel": layer.weight.grad.T, f"heads/{name}/bias": layer.bias.grad}
    if layers == "weighted":
        theirs |= {"heads/layer_mix/weights": shares.grad, "heads/layer_mix/gamma": gamma.grad}
    assert theirs.keys() == grads.keys()
    for path, gradient in theirs.items():
        assert np.abs(gradient.numpy()).max() > 0
        np.testing.assert_allclose(grads[path], gradient.numpy(), atol=1e-4, rtol=1e-4, err_msg=path)


def test_logistic_regression_on_torch_features_reaches_the_same_loss(folder):
    """A convex problem: the classifier alone, on the sum of the last four layers, with L2."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(4)
    ids, labels = rng.integers(1, V, (60, S)), rng.integers(0, 2, 60)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model.bert(torch.tensor(ids), output_hidden_states=True).hidden_states
    features = torch.stack(states[-4:]).sum(0)[:, 0].numpy()
    penalty = 0.1
    fit = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10_000).fit(features, labels)
    chance = fit.predict_proba(features)[np.arange(60), labels]
    expected = -np.log(chance).sum() + penalty / 2 * (fit.coef_**2).sum()

    config, peft = model_section(folder), PeftOptions(feature_layers="sum_last_four")
    ours = registry.build_model(config, ("classifier",), hf_folder.load_params(folder, config), num_labels=3, peft=peft)
    zeros = np.zeros_like(ids, np.int32)
    inputs = (ids.astype(np.int32), zeros, zeros + 1, zeros + np.arange(S, dtype=np.int32))
    x = np.asarray(ours.encode(*inputs))[:, 0]

    def loss(w):
        logits = x @ w[:-1] + w[-1]
        return jax.numpy.logaddexp(0, -logits * (2 * labels - 1)).sum() + penalty / 2 * (w[:-1] ** 2).sum()

    step = jax.jit(lambda w: w - jax.numpy.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w)))
    w = np.zeros(D + 1, np.float32)
    for _ in range(12):  # Newton's method
        w = step(w)
    assert float(loss(w)) == pytest.approx(expected, rel=1e-4)
