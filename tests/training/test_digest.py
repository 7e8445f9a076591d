"""The digest: against its definition in plain numpy, on every sharding, and for every single change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.training.checkpoint import checksums

MASK = 0xFFFFFFFF


def fmix32(h: int) -> int:
    """MurmurHash3's finalizer, one integer at a time."""
    h ^= h >> 16
    h = h * 0x85EBCA6B & MASK
    h ^= h >> 13
    h = h * 0xC2B2AE35 & MASK
    return h ^ h >> 16


def definition(words: np.ndarray) -> int:
    flat = np.ascontiguousarray(words).ravel().tolist()
    return sum(fmix32(w + 0x9E3779B9 & MASK) * (fmix32(i) | 1) for i, w in enumerate(flat)) & MASK


def of(x: jax.Array | np.ndarray) -> int:
    return checksums.compute_digests({"x": x})["x"].digest


def test_mix_is_the_published_finalizer() -> None:
    """SMHasher's values for fmix32(0), fmix32(1) and fmix32(0xffffffff)."""
    values = jnp.asarray([0, 1, MASK], jnp.uint32)
    assert [int(v) for v in checksums._mix(values)] == [0, 0x514E28B7, 0x81F16F39]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (16, 24), (3, 5, 4), (0, 3)])
def test_agrees_with_its_definition(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    x = np.asarray(rng.standard_normal(shape), np.float32)
    assert of(x) == definition(x.view(np.uint32))
    half = jnp.asarray(x, jnp.bfloat16)
    assert of(half) == definition(np.asarray(half).view(np.uint16).astype(np.uint32))
    small = rng.integers(-128, 128, shape, np.int8)
    assert of(small) == definition(small.view(np.uint8).astype(np.uint32))
    assert of(small > 0) == definition((small > 0).astype(np.uint32))
    with jax.enable_x64(True):
        assert of(x.astype(np.float64)) == definition(np.atleast_1d(x.astype(np.float64)).view(np.uint32))


def test_keys_are_their_words() -> None:
    for impl in ("threefry2x32", "rbg"):
        keys = jax.random.split(jax.random.key(3, impl=impl), 5)
        assert of(keys) == definition(np.asarray(jax.random.key_data(keys)))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_one_value_for_every_sharding(axis_type: AxisType) -> None:
    x = np.random.default_rng(0).standard_normal((16, 8, 24)).astype(np.float32)
    x[3, 4, 5] = np.nan
    expected = definition(x.view(np.uint32))
    specs = [P(), P("a"), P(None, "b"), P("b", None, "a"), P(("a", "b")), P(None, None, ("b", "a"))]
    for shape in ((4, 2), (2, 4), (8, 1), (1, 1)):
        devices = jax.devices()[: shape[0] * shape[1]]
        mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(axis_type,) * 2, devices=devices)
        for spec in specs:
            leaf = checksums.compute_digests({"x": jax.device_put(x, NamedSharding(mesh, spec))})["x"]
            assert (leaf.digest, leaf.nonfinite, leaf.shape, leaf.dtype) == (expected, 1, (16, 8, 24), "float32")


def test_devices_exchange_nothing() -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.device_put(np.zeros((64, 64), np.float32), NamedSharding(mesh, P("a", "b")))
    program = checksums._measure_shards(mesh, P("a", "b")).lower(x).compile().as_text()
    assert not [name for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute") if name in program]


BASE = np.random.default_rng(1).integers(0, 2**32, 64, np.uint32)


@given(place=st.integers(0, 63), bit=st.integers(0, 31), other=st.integers(0, 63))
@settings(max_examples=100, deadline=None)
def test_every_changed_bit_and_every_swap_shows(place: int, bit: int, other: int) -> None:
    changed = BASE.copy()
    changed[place] ^= np.uint32(1) << np.uint32(bit)
    assert of(changed) != of(BASE)
    swapped = BASE.copy()
    swapped[[place, other]] = swapped[[other, place]]
    assert (of(swapped) == of(BASE)) == (place == other)


def test_counts_what_is_not_finite() -> None:
    x = np.zeros((3, 4), np.float32)
    x[0, 0], x[1, 2], x[2, 3] = np.nan, np.inf, -np.inf
    tree = {"x": x, "half": jnp.asarray(x, jnp.bfloat16), "ints": np.full(3, 0x7F800000, np.int32)}
    assert {path: leaf.nonfinite for path, leaf in checksums.compute_digests(tree).items()} == {
        "x": 3,
        "half": 3,
        "ints": 0,
    }
    with jax.enable_x64(True):
        assert checksums.compute_digests({"x": x.astype(np.float64)})["x"].nonfinite == 3
