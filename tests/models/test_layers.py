"""The operations with gradients of their own, against plain autodiff; and dropout, by what it draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.run import MeshConfig
from bertjax.models import layer_stack
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.dropout import dropout, hash_bits
from bertjax.models.layers.modules import LayerNorm
from bertjax.models.layers.numerics import activation, add_bias, einsum_lowp, layer_norm
from bertjax.parallel.mesh import make_mesh

KINDS = [ComputeOptions(dropout_rng="hash"), ComputeOptions(dropout_rng="threefry")]
SIZES = {"b": 3, "s": 5, "d": 6, "t": 3, "f": 7, "h": 2, "q": 4, "k": 6, "v": 9, "g": 2}
SPECS = ["bsd,df->bsf", "bsd,dtf->bstf", "bqhk,bshk->bhqs", "bhqs,bshk->bqhk", "bkd,vd->bkv", "bgd,df->bgf"]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def assert_same_gradients(ours, plain, args, tolerance=1e-5):
    """Values and gradients of a random weighting of two functions' results."""
    weight = normal(99, *plain(*args).shape)
    total = lambda f: lambda *a: (f(*a).astype(jnp.float32) * weight).sum()  # noqa: E731
    every = tuple(range(len(args)))
    found = jax.value_and_grad(total(ours), every)(*args)
    expected = jax.value_and_grad(total(plain), every)(*[a.astype(jnp.float32) for a in args])
    for got, want, arg in zip(found[1], expected[1], args, strict=True):
        assert got.dtype == arg.dtype and got.shape == arg.shape
        scale = float(jnp.abs(want).max())
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=tolerance * scale)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_contract(spec, dtype, platform):
    left, right = spec.split("->")[0].split(",")
    a = normal(1, *(SIZES[i] for i in left)).astype(dtype)
    b = normal(2, *(SIZES[i] for i in right)).astype(dtype)
    plain = lambda a, b: jnp.einsum(spec, a, b, precision="highest")  # noqa: E731
    ours = lambda a, b: einsum_lowp(spec, a, b, platform)  # noqa: E731
    assert ours(a, b).dtype == (jnp.float32 if platform == "cpu" else dtype)
    assert_same_gradients(ours, plain, (a, b), 1e-5 if dtype == jnp.float32 else 0.02)


@pytest.mark.parametrize("shapes", [((3, 5, 7), (7,)), ((3, 5, 3, 4), (3, 4)), ((6, 4), (4,))])
def test_add_bias(shapes):
    args = normal(1, *shapes[0]), normal(2, *shapes[1])
    np.testing.assert_array_equal(add_bias(*args), args[0] + args[1])
    assert_same_gradients(add_bias, jnp.add, args)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.01)])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu"])
def test_activation(name, dtype, tolerance):
    forms = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "gelu_new": jax.nn.gelu, "relu": jax.nn.relu}
    x, ours = jnp.linspace(-9, 9, 1000).astype(dtype), partial(activation, name)
    assert ours(x).dtype == dtype
    np.testing.assert_allclose(ours(x).astype(jnp.float32), forms[name](x.astype(jnp.float32)), tolerance, 1e-6)
    assert_same_gradients(ours, forms[name], (x,), tolerance)


def plain_layer_norm(x, scale, bias, eps):
    x = x.astype(jnp.float32)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + eps) * scale + bias


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(3, 5, 16), (2, 33)])
def test_layer_norm(shape, dtype, tolerance):
    x = (normal(1, *shape) * 3 + 2).astype(dtype)
    scale, bias = normal(2, shape[-1]), normal(3, shape[-1])
    ours = lambda x, s, b: layer_norm(x, s, b, 1e-12)  # noqa: E731
    plain = lambda x, s, b: plain_layer_norm(x, s, b, 1e-12)  # noqa: E731
    assert ours(x, scale, bias).dtype == dtype
    np.testing.assert_allclose(ours(x, scale, bias).astype(jnp.float32), plain(x, scale, bias), atol=5 * tolerance)
    assert_same_gradients(ours, plain, (x, scale, bias), tolerance)


def test_layer_norm_far_from_zero():
    """A large common offset must not cancel the variance away."""
    x = normal(1, 4, 64)
    moved = layer_norm(x + 1000.0, jnp.ones(64), jnp.zeros(64), 1e-12)
    np.testing.assert_allclose(moved, layer_norm(x, jnp.ones(64), jnp.zeros(64), 1e-12), atol=1e-3)


# ---- dropout --------------------------------------------------------------------------------------------------------


def kept(key: jax.Array, shape: tuple[int, ...], rate: float, compute: ComputeOptions) -> np.ndarray:
    return np.asarray(dropout(jnp.ones(shape), rate, key, compute)) > 0


@pytest.mark.parametrize("compute", KINDS, ids=lambda e: e.dropout_rng)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.01])
def test_the_rate_and_the_mean_are_exact(rate, compute):
    out = np.asarray(dropout(jnp.ones((2048, 2048)), rate, jax.random.key(1), compute))
    assert abs((out == 0).mean() - rate) < 1e-3  # four million draws: 0.1 % is four deviations at the worst rate
    np.testing.assert_allclose(out[out > 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("compute", KINDS, ids=lambda e: e.dropout_rng)
def test_no_key_or_no_rate_is_no_dropout(compute):
    x = normal(1, 4, 4)
    assert dropout(x, 0.5, None, compute) is x and dropout(x, 0.0, jax.random.key(0), compute) is x
    low = dropout(x.astype(jnp.bfloat16), 0.5, jax.random.key(0), compute)
    assert low.dtype == jnp.bfloat16


@pytest.mark.parametrize("compute", KINDS, ids=lambda e: e.dropout_rng)
@pytest.mark.parametrize("spec", [P(("data", "fsdp")), P("data", None, "tensor"), P(None, "fsdp", ("data", "tensor"))])
def test_the_same_elements_are_dropped_under_any_sharding(spec, compute):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh, x, key = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), normal(1, 8, 6, 24), jax.random.key(2)
    whole = dropout(x, 0.3, key, compute)
    drop = jax.jit(lambda x, key: dropout(x, 0.3, key, compute), out_shardings=NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        split = drop(jax.device_put(x, NamedSharding(mesh, spec)), key)
    assert split.sharding.num_devices == 8
    np.testing.assert_array_equal(np.asarray(split), np.asarray(whole))


@pytest.mark.parametrize("compute", KINDS, ids=lambda e: e.dropout_rng)
def test_forward_and_backward_drop_the_same(compute):
    x, key = normal(1, 16, 32), jax.random.key(3)
    gradient = jax.grad(lambda x: dropout(x, 0.4, key, compute).sum())(x)
    np.testing.assert_array_equal(np.asarray(gradient) > 0, np.asarray(dropout(x, 0.4, key, compute)) != 0)


@pytest.mark.parametrize("segments", [(), (4,), (1, 3)])
@pytest.mark.parametrize("kind", ["hash", "threefry"])
def test_masks_differ_by_layer_and_step_but_not_by_how_the_stack_is_cut(kind, segments):
    layers, steps, size = 4, 3, 4096

    def masks(key: jax.Array, segments: tuple[int, ...]) -> jax.Array:
        compute = ComputeOptions(dropout_rng=kind, segments=segments)
        call = lambda _, x, key: jnp.roll(x, -1, 0).at[-1].set(dropout(jnp.ones(size), 0.5, key, compute))  # noqa: E731
        stacked = [LayerNorm(1, 1e-12) for _ in range(layers)]
        return layer_stack.apply_layers(stacked, jnp.zeros((layers, size)), call, key, compute, heads=1)

    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(steps)]
    drawn = np.concatenate([np.asarray(masks(key, segments)) > 0 for key in keys])
    same = np.concatenate([np.asarray(masks(key, ())) > 0 for key in keys])
    np.testing.assert_array_equal(drawn, same)
    agreement = (drawn[:, None] == drawn[None]).mean(-1)[~np.eye(layers * steps, dtype=bool)]
    assert np.abs(agreement - 0.5).max() < 5 * 0.5 / size**0.5  # as independent coins agree


def test_hash_bits_are_as_good_as_independent():
    """Every bit is fair, and neighbours, rows, columns and keys next to each other are uncorrelated."""
    shape = (64, 12, 32, 64)
    first = np.asarray(hash_bits(jax.random.key(0), shape))
    second = np.asarray(hash_bits(jax.random.fold_in(jax.random.key(0), 1), shape))
    limit = 5 / first.size**0.5
    bits = lambda x: ((x[..., None] >> np.arange(32, dtype=np.uint32)) & 1).astype(np.int8)  # noqa: E731
    assert np.abs(bits(first[::8]).reshape(-1, 32).mean(0) - 0.5).max() < 5 * 0.5 / (first.size / 8) ** 0.5
    low = np.where(first < 2**32 * 0.1, 9.0, -1.0) / 3  # dropped or not at a rate of 0.1, with unit variance
    other = np.where(second < 2**32 * 0.1, 9.0, -1.0) / 3
    assert abs((low * other).mean()) < limit
    for axis in range(4):
        assert abs((low * np.roll(low, 1, axis)).mean()) < limit, axis
    for axis in range(4):  # no row or column of any axis is dropped more than another
        sums = low.mean(axis=tuple(a for a in range(4) if a != axis))
        assert np.abs(sums).max() < 5 / (first.size / shape[axis]) ** 0.5
    assert len(np.unique(first)) > first.size * 0.999
