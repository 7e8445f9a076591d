"""The encoder's own properties: sizes, stacks, packing, precision and gradients. Parity is in test_bert_parity.py."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.schema.model import BertConfig, DistilBertConfig
from bertjax.config.schema.run import MeshConfig
from bertjax.config.schema.training import SpanQaObjective
from bertjax.data.preprocess.packing import pack_lengths, pack_rows
from bertjax.models.attention import select_kernel
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.registry import abstract_model, build_model, init_params, logical_axes, merge
from bertjax.objectives.registry import build
from bertjax.parallel import sharding
from bertjax.parallel.mesh import make_mesh

SMALL = BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=32, initializer_range=0.2,
)  # fmt: skip
DROPPING = SMALL.model_copy(update={"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2})


@cache
def parameters(config: BertConfig, heads: tuple[str, ...]) -> dict[str, jax.Array]:
    return init_params(config, heads, 2, jax.random.key(0))


def test_sinusoidal_positions_start_as_waves_as_large_as_the_words():
    """arXiv 1706.03762 section 3.5: a shift of all positions is one linear map."""
    config = SMALL.model_copy(update={"position_init": "sinusoidal"})
    found = init_params(config, ("mlm",), 2, jax.random.key(0))
    table, words = found["embeddings/position/embedding"], found["embeddings/word/embedding"]
    np.testing.assert_allclose(table.std(), words.std(), rtol=0.3)
    shift, residual, *_ = np.linalg.lstsq(np.asarray(table[:-3]), np.asarray(table[3:]), rcond=None)
    np.testing.assert_allclose(table[:-3] @ shift, table[3:], atol=1e-4)
    plain = parameters(SMALL, ("mlm",))["embeddings/position/embedding"]
    assert np.abs(np.asarray(plain) - np.asarray(table)).max() > 0.1


def examples(count: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Unpacked span_qa rows of random lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, length + 1, (count, 1))
    place = np.arange(length)[None]
    real = place < lengths
    answers = np.sort(rng.integers(0, lengths, (count, 2)), axis=1).astype(np.int32)
    return {
        "input_ids": np.where(real, rng.integers(0, 50, (count, length)), 0).astype(np.int32),
        "token_type_ids": (real & (place > lengths // 2)).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "positions": (place * real).astype(np.int32),
        "cls_positions": np.zeros((count, 1), np.int32),
        "start_positions": answers[:, :1],
        "end_positions": answers[:, 1:],
        "span_weights": np.ones((count, 1), np.float32),
    }


def hidden_and_grads(config, params, batch, compute, key=None, packed=False):
    """Hidden states and the gradient of a fixed random weighting of them (zero on padding)."""
    graph = abstract_model(config, (), compute=compute)
    weights = np.random.default_rng(1).normal(size=(*batch["input_ids"].shape, config.hidden_size)).astype(np.float32)
    weights *= (batch["segment_ids"] > 0)[..., None]

    def run(params):
        model = merge(*graph, params)
        fields = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions"))
        hidden = model.encode(*fields, packed=packed, key=key).astype(jnp.float32)
        return (hidden * weights).sum(), hidden

    (_, hidden), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    return np.asarray(hidden), {path: np.asarray(g) for path, g in grads.items()}


def assert_close(found, expected, tolerance=1e-5):
    """Hidden states within the tolerance; gradients too, relative to the largest of each array."""
    np.testing.assert_allclose(found[0], expected[0], atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for path, value in expected[1].items():
        np.testing.assert_allclose(found[1][path], value, atol=tolerance * max(1, np.abs(value).max()), err_msg=path)


@pytest.mark.parametrize(
    ("config", "heads", "expected"),
    [  # as counted by hand from the papers' sizes, and by transformers' num_parameters()
        (BertConfig(), ("pooler",), 109_482_240),
        (BertConfig(), ("mlm", "nsp"), 110_106_428),
        (BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
         ("pooler",), 335_141_888),
        (DistilBertConfig(num_hidden_layers=6, type_vocab_size=0), (), 66_362_880),
    ],
)  # fmt: skip
def test_parameter_counts(config, heads, expected):
    abstract = abstract_model(config, heads)[1]
    assert sum(x.size for x in jax.tree.leaves(abstract)) == expected


def test_initialisation():
    """Truncated normals of the configured deviation, zero biases, unit norms; no array twice the same."""
    params = parameters(SMALL.model_copy(update={"hidden_size": 256, "initializer_range": 0.02}), ("mlm", "nsp", "qa"))
    for path, x in params.items():
        x = np.asarray(x)
        assert x.dtype == np.float32
        if path.endswith(("kernel", "embedding")):
            assert np.abs(x).max() <= 2.001 * 0.02 / 0.8796
            assert x.size < 4000 or abs(x.std() - 0.02) < 1e-3
        else:
            assert (x == (1 if path.endswith("scale") else 0)).all()
    kernels = [np.asarray(x).tobytes() for path, x in params.items() if path.endswith(("kernel", "embedding"))]
    assert len(set(kernels)) == len(kernels)


KEY = jax.random.key(3)


@cache
def listed(config: BertConfig):
    """What all ways of running the stack, with dropout on, are compared with: one layer after the other."""
    return hidden_and_grads(config, parameters(config, ()), examples(3, 16), ComputeOptions(), KEY)


@pytest.mark.parametrize(("segments", "remat"), [((3,), "none"), ((1, 2), "full"), ((2, 1), "dots"), ((), "full")])
def test_scanned_listed_and_recomputed_stacks_are_the_same_model(segments, remat):
    compute = ComputeOptions(segments=segments, remat=remat)
    found = hidden_and_grads(DROPPING, parameters(DROPPING, ()), examples(3, 16), compute, KEY)
    assert_close(found, listed(DROPPING))


def test_segments_must_add_up():
    with pytest.raises(ValueError, match="do not add up to 3 layers"):
        hidden_and_grads(SMALL, parameters(SMALL, ()), examples(1, 8), ComputeOptions(segments=(2,)))


def packed(alone: dict[str, np.ndarray], length: int, segments: int):
    """The same examples in packed rows -> (batch, (row, column) of every real token in the order of `alone`)."""
    wide = {"input_ids", "token_type_ids", "segment_ids", "positions"}
    alone = {n: np.pad(x, ((0, 0), (0, length - x.shape[1]))) if n in wide else x for n, x in alone.items()}
    assignment = pack_lengths((alone["segment_ids"] > 0).sum(1), length, segments)
    rows = pack_rows({name: x[assignment.examples] for name, x in alone.items()}, assignment, segments)
    where = {}
    for row in range(assignment.rows):
        for place, example in enumerate(assignment.part(row, row + 1).examples.tolist()):
            where[example] = [(row, int(c)) for c in np.flatnonzero(rows["segment_ids"][row] == place + 1)]
    return rows, np.array([at for example in sorted(where) for at in where[example]])


@pytest.mark.parametrize("segments", [(), (3,)])
def test_packed_examples_are_as_if_alone(segments):
    """Hidden states of every token, and loss and gradient of the whole QA objective, packed and not."""
    alone = examples(9, 14)
    together, places = packed(alone, 32, 4)
    assert together["segment_ids"].max() > 2 and len(together["input_ids"]) < 9
    params, compute = parameters(SMALL, ("qa",)), ComputeOptions(segments=segments)
    graph, objective = abstract_model(SMALL, ("qa",), compute=compute), build(SpanQaObjective())

    def run(params, batch):
        model = merge(*graph, params)
        terms = objective.losses(model, batch, None)
        fields = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions"))
        hidden = model.encode(*fields, packed=batch["cls_positions"].shape[1] > 1)
        return objective.total_loss(terms, objective.normalizers(batch)), (hidden, terms["span"].correct)

    run = jax.jit(jax.value_and_grad(run, has_aux=True))
    (loss, (hidden, correct)), grads = run(params, alone)
    (packed_loss, (packed_hidden, packed_correct)), packed_grads = run(params, together)
    hidden = np.asarray(hidden)[alone["segment_ids"] > 0]
    np.testing.assert_allclose(np.asarray(packed_hidden)[tuple(places.T)], hidden, atol=1e-5)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    assert correct == packed_correct
    for path, value in grads.items():
        np.testing.assert_allclose(packed_grads[path], value, atol=1e-5 * max(1, np.abs(value).max()), err_msg=path)


def test_padding_is_never_seen():
    """Neither other tokens on padding nor more padding change a real token's hidden state."""
    params, batch = parameters(SMALL, ()), examples(4, 12)
    model = build_model(SMALL, (), params)
    fields = ("input_ids", "token_type_ids", "segment_ids", "positions")
    real = batch["segment_ids"] > 0
    hidden = np.asarray(model.encode(*(batch[f] for f in fields)))[real]
    noisy = {**batch, "input_ids": np.where(real, batch["input_ids"], 7)}
    np.testing.assert_array_equal(np.asarray(model.encode(*(noisy[f] for f in fields)))[real], hidden)
    longer = model.encode(*(np.pad(batch[f], ((0, 0), (0, 5))) for f in fields))
    np.testing.assert_allclose(np.asarray(longer)[:, :12][real], hidden, atol=1e-5)


def test_bfloat16_is_close_to_float32():
    params, batch = parameters(SMALL, ()), examples(4, 16)
    exact, exact_grads = hidden_and_grads(SMALL, params, batch, ComputeOptions())
    low, low_grads = hidden_and_grads(SMALL, params, batch, ComputeOptions(dtype=jnp.bfloat16))
    real = batch["segment_ids"] > 0
    assert 1e-4 < np.abs(low - exact)[real].mean() < 0.02  # hidden states have unit variance
    for path, value in exact_grads.items():
        assert low_grads[path].dtype == np.float32
        error = np.linalg.norm(low_grads[path] - value) / max(np.linalg.norm(value), 1e-3)
        # a key bias shifts all scores of a query alike: its true gradient is zero
        assert error < 0.06 or path.endswith("qkv/bias"), (path, error)


@pytest.mark.slow
def test_a_model_split_over_eight_devices_is_the_same_model():
    """Hidden states, gradients and the dropout drawn on the way: one device against data=2, fsdp=2, tensor=2."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    params, batch, key = parameters(DROPPING, ()), examples(8, 16), jax.random.key(5)
    expected = hidden_and_grads(DROPPING, params, batch, ComputeOptions(), key)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    names = logical_axes(abstract_model(DROPPING, ())[1])
    placed = {p: jax.device_put(x, sharding.named_sharding(mesh, names[p], x.shape)) for p, x in params.items()}
    assert len({x.sharding.spec for x in placed.values()}) > 3
    rows = jax.sharding.NamedSharding(mesh, sharding.logical_to_mesh_axes(("batch",)))
    put = {name: jax.device_put(x, rows) for name, x in batch.items()}
    with jax.set_mesh(mesh):
        found = hidden_and_grads(DROPPING, placed, put, ComputeOptions(), key)
    assert_close(found, expected)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_activations(act):
    """Against the formulas in double precision: x*Phi(x), and the tanh form of modeling.py's gelu."""
    from math import erf

    from bertjax.models.layers.numerics import activation

    x = np.linspace(-6, 6, 301)
    expected = {
        "gelu": x * (1 + np.array([erf(v / 2**0.5) for v in x])) / 2,
        "gelu_new": x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "relu": np.maximum(x, 0),
    }
    np.testing.assert_allclose(activation(act, jnp.float32(x)), expected[act], atol=2e-6)


CPU, GPU, TPU = (ComputeOptions(platform=p, dtype=jnp.bfloat16) for p in ("cpu", "gpu", "tpu"))


@pytest.mark.parametrize(
    ("compute", "length", "head_dim", "rate", "expected"),
    [
        (CPU, 128, 64, 0.0, "xla"),
        (GPU, 128, 64, 0.0, "cudnn"),
        (GPU, 100, 64, 0.0, "cudnn"),
        (GPU, 128, 64, 0.1, "xla"),  # dropout on the probabilities
        (GPU, 128, 60, 0.0, "xla"),
        (GPU, 128, 256, 0.0, "xla"),
        (replace(GPU, dtype=jnp.float32), 128, 64, 0.0, "xla"),
        (replace(GPU, attention="xla"), 128, 64, 0.0, "xla"),
        (replace(GPU, attention="cudnn"), 128, 64, 0.0, "cudnn"),
        (TPU, 128, 64, 0.0, "splash"),
        (TPU, 384, 64, 0.0, "splash"),
        (TPU, 100, 64, 0.0, "xla"),
        (TPU, 128, 64, 0.1, "fused"),
    ],
)
def test_attention_kernels_are_chosen_by_what_they_can_do(compute, length, head_dim, rate, expected):
    assert select_kernel(compute, length=length, head_dim=head_dim, rate=rate) == expected


@pytest.mark.parametrize(
    ("compute", "length", "rate", "why"),
    [
        (replace(GPU, attention="cudnn"), 128, 0.1, "attention_probs_dropout_prob"),
        (replace(GPU, attention="cudnn", dtype=jnp.float32), 128, 0.0, "bfloat16"),
        (replace(TPU, attention="splash"), 100, 0.0, "multiples of 128"),
        (replace(CPU, attention="cudnn"), 128, 0.0, "does not run on cpu"),
        (replace(GPU, attention="splash"), 128, 0.0, "does not run on gpu"),
    ],
)
def test_a_kernel_asked_for_by_name_says_why_it_cannot(compute, length, rate, why):
    with pytest.raises(ValueError, match=why):
        select_kernel(compute, length=length, head_dim=64, rate=rate)
