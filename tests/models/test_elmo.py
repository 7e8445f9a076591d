"""ELMo's recurrence against torch.nn.LSTM, outputs and gradients; examples and padding do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.schema.ladder_models import ElmoConfig
from bertjax.models import registry
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.elmo.lstm import run_lstm

torch = pytest.importorskip("torch")
COMPUTE = ComputeOptions(platform="cpu", dtype=jnp.float32)
LENGTHS = [9, 6, 1]


def torch_lstm(projection: int | None) -> "torch.nn.LSTM":
    torch.manual_seed(0)
    return torch.nn.LSTM(7, 10, batch_first=True, bidirectional=True, proj_size=projection or 0)


def run_ours(x: jax.Array, weights: dict[str, jax.Array], lengths: list[int]) -> jax.Array:
    """Both directions over rows of one example of these lengths; x [B, S, 7]."""
    place, sizes = np.arange(x.shape[1]), np.array(lengths)[:, None]
    segments = (place < sizes).astype(int)
    changes = np.diff(segments, axis=1) != 0
    first = np.ones((len(x), 1), bool)
    starts = {"": np.concatenate([first, changes], 1), "_reverse": np.concatenate([changes, first], 1)[:, ::-1]}
    found = []
    for way, begin in starts.items():
        kernel, recurrent = (weights[f"weight_{k}_l0{way}"].reshape(4, 10, -1).transpose(2, 0, 1) for k in ("ih", "hh"))
        bias = (weights[f"bias_ih_l0{way}"] + weights[f"bias_hh_l0{way}"]).reshape(4, 10)
        projection = weights.get(f"weight_hr_l0{way}")
        flip = (lambda a: a[:, ::-1]) if way else (lambda a: a)
        z = jnp.einsum("bsd,dgh->bsgh", flip(x), kernel) + bias
        found.append(flip(run_lstm(z, jnp.asarray(begin), recurrent, None if projection is None else projection.T)))
    return jnp.concatenate(found, -1) * segments[..., None]


@pytest.mark.parametrize("projection", [None, 4])
def test_outputs_and_gradients_are_those_of_torch(projection):
    theirs = torch_lstm(projection)
    x = np.random.default_rng(0).normal(size=(3, 9, 7)).astype(np.float32)
    weights = {name: jnp.asarray(p.detach().numpy()) for name, p in theirs.named_parameters()}
    given = torch.tensor(x, requires_grad=True)
    rows = torch.nn.utils.rnn.pack_padded_sequence(given, LENGTHS, batch_first=True)
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(rows)[0], batch_first=True)
    np.testing.assert_allclose(run_ours(jnp.asarray(x), weights, LENGTHS), out.detach().numpy(), atol=1e-5)
    scale = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    (out * torch.tensor(scale)).sum().backward()
    loss = lambda x, weights: (run_ours(x, weights, LENGTHS) * scale).sum()  # noqa: E731
    dx, dweights = jax.grad(loss, argnums=(0, 1))(jnp.asarray(x), weights)
    np.testing.assert_allclose(dx, given.grad.numpy(), atol=1e-5)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(dweights[name], parameter.grad.numpy(), atol=5e-5, err_msg=name)


@pytest.mark.parametrize("projection", [None, 6])
def test_examples_of_a_packed_row_are_those_of_rows_of_their_own(projection):
    config = ElmoConfig(vocab_size=40, hidden_size=8, projection_size=projection, initializer_range=1.0)
    params = registry.init_params(config, ("lm",), 2, jax.random.key(0))

    @jax.jit
    def states(ids, segments, places):
        model = registry.build_model(config, ("lm",), params, compute=COMPUTE)
        fields = ids, 0 * ids, segments, places
        return model.hidden_states(*fields), model.token_states(*fields)

    ids = np.random.default_rng(1).integers(0, 40, (1, 12))
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3])
    places = np.array([[*range(5), *range(4), 0, 0, 0]])
    packed, _ = states(ids, segments, places)
    assert {x.shape[-1] for x in packed} == {2 * config.embedding_width}
    for start, stop in ((0, 5), (5, 9)):
        own = ids[:, start:stop]
        alone, tokens = states(own, np.ones_like(own), np.arange(stop - start)[None])
        for one, other in zip(packed, alone, strict=True):
            np.testing.assert_allclose(one[:, start:stop], other, atol=1e-5)
        np.testing.assert_allclose(alone[-1][0, 0], tokens[0].mean(0), atol=1e-5)
        np.testing.assert_allclose(alone[-1][0, 1:], tokens[0, 1:], atol=1e-6)
