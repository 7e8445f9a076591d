"""The fused attention kernels, run by Pallas's interpreter, against plain attention: outputs, gradients, dropout."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.run import MeshConfig
from bertjax.models import attention
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.fused_attention.attention import DropoutBits, fused_attention
from bertjax.models.fused_attention.distance_bias import lay_out_diagonals
from bertjax.models.fused_attention.options import FusedOptions, choose_block, choose_heads
from bertjax.models.fused_attention.sharded import segment_key_mask, sharded_fused_attention
from bertjax.models.layers.dropout import dropout, hash_bits, hash_seeds
from bertjax.models.t5 import attention as t5
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.parallel.sharding import use_mesh_and_rules

XLA, FUSED = ComputeOptions(attention="xla"), ComputeOptions(attention="fused")
TPU = ComputeOptions(platform="tpu", dtype=jnp.bfloat16)
KEY = jax.random.key(7)


def plain(q, k, v, query_ids, key_ids, *, scale, rate, bias, causal, prefix, window):
    """The same with arrays of scores -> (output, bool [B, Q]: whether a query sees a key)."""
    apart = jnp.arange(k.shape[1]) - jnp.arange(q.shape[1])[:, None]
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k) * scale
    if bias is not None:
        scores = scores + bias[:, apart + q.shape[1] - 1]
    seen = query_ids[:, None, :, None] == key_ids[:, None, None, :]
    if causal:
        seen = seen & (apart <= 0 if prefix is None else (apart <= 0) | (prefix > 0)[:, None, None, :])
    if window is not None:
        seen = seen & (abs(apart) <= window)
    p = jax.nn.softmax(jnp.where(seen, scores, attention.MASK_VALUE), axis=-1)
    p = dropout(p, rate, KEY, XLA, names=("batch", "heads"))
    return jnp.einsum("bhqs,bshk->bqhk", p, v), seen.any(-1)[:, 0]


def segments(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Ids 2, 1 and 0 in any lengths, also none."""
    return np.sort(rng.integers(0, 3, (rows, length)) * rng.integers(0, 2, (rows, 1)))[:, ::-1].astype(np.int32)


@st.composite
def cases(draw) -> dict:
    square = draw(st.booleans())
    queries = draw(st.sampled_from([128, 200, 256, 384]))
    keys = queries if square else draw(st.sampled_from([128, 256, 300]))
    pad = lambda n: -(-n // 128) * 128  # noqa: E731
    blocks = [draw(st.sampled_from([b for b in (128, 256, 384) if pad(n) % b == 0])) for n in (queries, keys)]
    heads = draw(st.sampled_from([1, 2, 4]))
    causal = square and draw(st.booleans())
    gpu = draw(st.booleans())
    if gpu:
        blocks = draw(st.sampled_from([[128, 64], [64, 64]]))
    return {
        "lengths": (queries, keys), "heads": heads, "size": draw(st.sampled_from([32, 64, 128])),
        "blocks": (*blocks, 1 if gpu else draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0]))), "gpu": gpu,
        "rate": draw(st.sampled_from([0.0, 0.1, 0.5])), "scale": draw(st.sampled_from([1.0, 0.125, 0.3])),
        "bias": draw(st.booleans()), "causal": causal, "prefix": causal and draw(st.booleans()),
        "window": draw(st.sampled_from([None, 5, 130])) if square else None, "seed": draw(st.integers(0, 1000)),
    }  # fmt: skip


def compare(case: dict) -> None:
    """Outputs and gradients to 1e-5 of their size."""
    rng, rows, (Q, S), H, K = np.random.default_rng(case["seed"]), 2, case["lengths"], case["heads"], case["size"]
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    q, k, v, weight = normal(rows, Q, H, K), normal(rows, S, H, K), normal(rows, S, H, K), normal(rows, Q, H, K)
    key_ids = segments(rng, rows, S)
    query_ids = key_ids if Q == S else segments(rng, rows, Q)
    query_ids = np.where(query_ids > 0, query_ids, -1)
    bias = normal(H, Q + S - 1) if case["bias"] else None
    prefix = jnp.asarray(rng.integers(0, 2, (rows, S))) if case["prefix"] else None
    options = {name: case[name] for name in ("scale", "rate", "causal", "window")}
    bits = DropoutBits(hash_seeds(KEY), 0, 0, rows, H)

    def ours(q, k, v, bias):
        return fused_attention(
            q, k, v, query_ids, key_ids, bits=bits, bias=bias, prefix_BS=prefix, interpret=True,
            blocks=case["blocks"], gpu=case["gpu"], **options,
        )  # fmt: skip

    def theirs(q, k, v, bias):
        return plain(q, k, v, query_ids, key_ids, bias=bias, prefix=prefix, **options)[0]

    if case["causal"] or case["window"] is not None:  # blocks without a visible pair are left out
        alive = plain(q, k, v, query_ids, key_ids, bias=bias, prefix=prefix, **options)[1]
        weight = weight * alive[:, :, None, None]

    def both(function):
        def loss(q, k, v, bias):
            out = function(q, k, v, bias) * (weight != 0)
            return (out * weight).sum(), out

        argnums = (0, 1, 2) if bias is None else (0, 1, 2, 3)
        (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums, has_aux=True))(q, k, v, bias)
        return out, *grads

    for found, expected in zip(both(ours), both(theirs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


BASE = {"lengths": (256, 256), "heads": 2, "size": 64, "scale": 0.125, "rate": 0.1, "bias": False, "causal": False,
        "prefix": False, "window": None, "seed": 0, "gpu": False}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": (256, 256, 2)},
        {"blocks": (128, 128, 1), "bias": True},
        {"blocks": (128, 256, 2), "bias": True, "causal": True, "prefix": True},
        {"blocks": (128, 128, 2), "causal": True, "window": 50},
        {"blocks": (128, 384, 1), "bias": True, "lengths": (114, 300), "scale": 1.0},
    ],
    ids=["bert", "bias", "prefix", "window", "padded"],
)
@pytest.mark.parametrize("gpu", [False, True], ids=["tpu", "gpu"])
def test_it_is_plain_attention(change: dict, gpu: bool) -> None:
    compare(BASE | change | ({"blocks": (128, 64, 1), "gpu": True} if gpu else {}))


@pytest.mark.slow
@settings(max_examples=40)
@given(cases())
def test_it_is_plain_attention_with_any_options(case: dict) -> None:
    compare(case)


def kept_of(function, rows: int, length: int, heads: int) -> np.ndarray:
    """bool [B, H, Q, S]: which probabilities a function of q, k, v keeps; values are the columns of a unit matrix."""
    zeros = jnp.zeros((rows, length, heads, length), jnp.float32)
    unit = jnp.broadcast_to(jnp.eye(length)[None, :, None], zeros.shape)
    return np.moveaxis(np.asarray(jax.jit(function)(zeros, zeros, unit)) > 0, 1, 2)


@pytest.mark.parametrize("axes", [None, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}], ids=str)
def test_dropout_has_the_bits_of_the_hash(axes: dict | None) -> None:
    rows, length, heads = 8, 128, 2
    ones = jnp.ones((rows, length), jnp.int32)

    def run(q, k, v):
        return attention.dot_product_attention(q, k, v, ones, packed=False, rate=0.3, key=KEY, compute=FUSED)

    mesh = make_mesh(MeshConfig(**(axes or {"data": 1})), jax.devices()[: 8 if axes else 1])
    with use_mesh_and_rules(mesh, merge_rules({})):
        found = kept_of(run, rows, length, heads)
    bits = hash_bits(KEY, (rows, heads, length, length))
    np.testing.assert_array_equal(found, bits >= np.uint32(round(0.3 * 2**32)))
    other = hash_bits(jax.random.key(8), (rows, heads, length, length))
    assert (found != (other >= np.uint32(round(0.3 * 2**32)))).mean() > 0.3


def test_one_mask_of_dropout_for_all_queries() -> None:
    rows, length, heads = 2, 128, 3
    mask = segment_key_mask(*(jnp.ones((rows, length), jnp.int32),) * 2)

    def run(q, k, v):
        return sharded_fused_attention(
            q, k, v, mask, scale=1.0, rate=0.3, key=KEY, compute=FUSED, broadcast_length=True
        )

    found = kept_of(run, rows, length, heads)
    expected = hash_bits(KEY, (rows, heads, 1, length)) >= np.uint32(round(0.3 * 2**32))
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def bert_case(seed: int, packed: bool) -> tuple:
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.normal(size=(8, 128, 2, 32)), jnp.float32) for _ in range(4)]
    ids = segments(rng, 8, 128)
    return arrays, jnp.asarray(ids if packed else np.minimum(ids, 1))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_bert_with_it_is_bert_with_xla(packed: bool, causal: bool) -> None:
    """Also for queries that see nothing, such as padding in packed rows."""
    (*qkv, weight), ids = bert_case(3, packed)

    def loss(q, k, v, compute):
        out = attention.dot_product_attention(
            q, k, v, ids, packed=packed, rate=0.2, key=KEY, compute=compute, causal=causal
        )
        return (out * weight).sum()

    found, expected = (jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=3)(*qkv, c) for c in (FUSED, XLA))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "axes",
    [{"data": 2, "fsdp": 2, "tensor": 2}, pytest.param({"data": 1, "tensor": 8}, marks=pytest.mark.slow)],
    ids=["divided", "heads not divided"],
)
def test_a_mesh_changes_nothing(axes: dict) -> None:
    """T5's attention with bias and dropout: values, and gradients of q, k, v and of the bias, which all rows share."""
    (*qkv, weight), ids = bert_case(4, packed=True)
    bias = jax.random.normal(jax.random.key(1), (2, 255))
    mask = segment_key_mask(ids, ids)

    def loss(q, k, v, bias):
        out = sharded_fused_attention(
            q, k, v, mask, scale=1.0, rate=0.2, key=KEY, compute=FUSED, bias=bias, broadcast_length=True
        )
        dropped = sharded_fused_attention(q, k, v, mask, scale=0.3, rate=0.2, key=KEY, compute=FUSED)
        return ((out + dropped) * weight).sum()

    run = jax.value_and_grad(loss, (0, 1, 2, 3))
    expected = jax.jit(run)(*qkv, bias)
    with use_mesh_and_rules(make_mesh(MeshConfig(**axes)), merge_rules({})):
        found = jax.jit(run)(*qkv, bias)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def test_bfloat16_is_close_to_float32() -> None:
    (*qkv, weight), ids = bert_case(5, packed=True)

    def loss(q, k, v):
        out = attention.dot_product_attention(q, k, v, ids, packed=True, rate=0.1, key=KEY, compute=FUSED)
        assert out.dtype == q.dtype
        return (out.astype(jnp.float32) * weight).sum()

    run = jax.jit(jax.grad(loss, (0, 1, 2)))
    for low, exact in zip(run(*(x.astype(jnp.bfloat16) for x in qkv)), run(*qkv), strict=True):
        error = np.linalg.norm(low.astype(np.float32) - exact) / np.linalg.norm(exact)
        assert low.dtype == jnp.bfloat16 and 1e-4 < error < 0.02


@pytest.mark.parametrize("blocks", [(128, 128), (256, 128), (128, 384)])
def test_diagonals_hold_the_value_of_each_distance(blocks: tuple[int, int]) -> None:
    Q, S = 256, 384
    options = FusedOptions(1.0, 0.0, (1, 1, Q), S, False, False, None, *blocks, 1, False, True)
    distances = jnp.arange(1 - Q, S, dtype=jnp.float32)[None]
    found = np.asarray(lay_out_diagonals(distances, Q, S, options))[0]
    for number, diagonal in enumerate(found):
        between = number * options.step - (Q - blocks[0])
        expected = between + blocks[1] + np.arange(8)[:, None] - np.arange(sum(blocks))
        exists = (expected >= 1 - Q) & (expected < S)
        np.testing.assert_array_equal(diagonal[exists], expected[exists])
    assert found.shape[0] == number + 1 and between == S - blocks[1]


def test_blocks_and_heads_divide() -> None:
    assert [choose_block(n) for n in (128, 256, 384, 512, 640, 1024, 1152)] == [128, 256, 384, 512, 128, 512, 384]
    assert [choose_heads(12, n, n) for n in (512, 256, 128)] == [1, 4, 12] and choose_heads(16, 384, 384) == 1


# ---- selection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        ({}, {"rate": 0.1}, "fused"),
        ({}, {"rate": 0.0}, "splash"),
        ({}, {"biased": True}, "fused"),
        ({}, {"biased": True, "length": 114, "key_length": 512}, "fused"),
        ({}, {"rate": 0.1, "length": 80}, "xla"),  # padded by more than a quarter
        ({"attention": "fused"}, {"rate": 0.1, "length": 80}, "fused"),
        ({"attention": "fused"}, {}, "fused"),
        ({}, {"rate": 0.1, "head_dim": 256}, "xla"),
        ({"dropout_rng": "threefry"}, {"rate": 0.1}, "xla"),
        ({"dropout_rng": "threefry"}, {"rate": 0.1, "biased": True, "broadcast_dropout": True}, "fused"),
        ({"attention": "xla"}, {"rate": 0.1}, "xla"),
        ({"platform": "gpu"}, {"rate": 0.1}, "xla"),  # not measured there yet
        ({"platform": "gpu", "attention": "fused"}, {"rate": 0.1}, "fused"),
        ({"platform": "cpu"}, {"rate": 0.1}, "xla"),
        ({"platform": "cpu", "attention": "fused"}, {"rate": 0.1}, "fused"),
    ],
)
def test_when_it_is_chosen(change: dict, options: dict, expected: str) -> None:
    given = {"length": 512, "head_dim": 64, "rate": 0.0} | options
    assert attention.select_kernel(replace(TPU, **change), **given) == expected


@pytest.mark.parametrize(
    ("change", "options", "why"),
    [
        ({"dropout_rng": "threefry"}, {"rate": 0.1}, "run.dropout_rng: hash"),
        ({}, {"head_dim": 256}, "up to 128, not 256"),
        ({}, {"length": 8320}, "up to 8192, not 8320"),
        ({"platform": "gpu"}, {"head_dim": 48}, "16, 32, 64 or 128, not 48"),
        ({"attention": "splash"}, {"biased": True}, "position bias: use fused"),
        ({"attention": "splash"}, {"rate": 0.1}, "or use fused"),
    ],
)
def test_it_says_why_it_cannot(change: dict, options: dict, why: str) -> None:
    given = {"length": 512, "head_dim": 64, "rate": 0.0} | options
    with pytest.raises(ValueError, match=why):
        attention.select_kernel(replace(TPU, **{"attention": "fused"} | change), **given)


@pytest.mark.parametrize("options", [{"causal": True}, {"window": 3}])
def test_an_order_of_other_lengths_is_refused(options: dict) -> None:
    q, k = jnp.zeros((1, 128, 1, 32)), jnp.zeros((1, 256, 1, 32))
    with pytest.raises(ValueError, match="as many queries as keys, not 128 and 256"):
        fused_attention(q, k, k, jnp.zeros((1, 128)), jnp.zeros((1, 256)), scale=1.0, **options)


def test_cached_decoding_keeps_arrays_of_visible_keys() -> None:
    """The fused kernel is for ids; a cache gives T5's attention an array, whatever the option."""
    q, kv = jnp.ones((1, 1, 2, 8)), (jnp.ones((1, 5, 2, 8)),) * 2
    visible = jnp.asarray([1, 1, 0, 0, 0], bool)[None, None, None]
    outs = [t5.dot_product_attention(q, kv, None, visible, rate=0.0, key=None, compute=c) for c in (FUSED, XLA)]
    np.testing.assert_array_equal(*outs)
