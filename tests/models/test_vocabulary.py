"""The search of a split vocabulary against lax.top_k of the whole: the same values, indices and order of ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from bertjax.config.schema.run import MeshConfig
from bertjax.models.vocab_parallel import top_k
from bertjax.parallel import sharding
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules

MESHES = {
    "tensor8": {"data": 1, "tensor": 8},
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
    "dcn2_tensor4": {"dcn": 2, "data": 1, "tensor": 4},
}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16), size=st.integers(2000, 2700), k=st.integers(1, 4), values=st.sampled_from([2, 9, 10**6])
)
def test_a_search_by_blocks_is_top_k(seed, size, k, values):
    """One device, sizes on both sides of the block search; many ties, -inf, and fewer finite values than k."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, (2, 3, size)).astype(np.float32)
    x[0] = np.where(rng.random((3, size)) < 2 / size, x[0], -np.inf)
    for found, expected in zip(top_k(jnp.asarray(x), k), lax.top_k(x, k), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_search_by_blocks_starts_at_its_size():
    found = ["sort" in str(jax.make_jaxpr(lambda x: top_k(x, 2))(jnp.zeros((1, n)))) for n in (1023, 1024)]
    assert found == [False, True]


def search(axes: dict, x: jax.Array, k: int, along: str | None) -> tuple:
    with sharding.use_mesh_and_rules(make_mesh(MeshConfig(**axes)), merge_rules({})):
        return jax.jit(top_k, static_argnums=(1, 2))(x, k, along)


@pytest.mark.parametrize("axes", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("shape", [(8, 64), (4, 3, 32), (3, 2, 24), (4, 30)])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_it_is_top_k(axes, shape, seed):
    """Few different values, so that most are ties; rows and vocabularies that the mesh divides or does not."""
    x = jnp.asarray(np.random.default_rng(seed).integers(0, 5, shape), jnp.float32)
    for k, along in ((1, "vocab"), (6, "vocab"), (shape[-1], "vocab"), (6, None)):
        for found, expected in zip(search(axes, x, k, along), lax.top_k(x, k), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_one_device_and_none_take_laxs():
    x = jnp.asarray([[3.0, 1.0, 3.0, 2.0]])
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    with sharding.use_mesh_and_rules(one, merge_rules({})):
        inside = jax.make_jaxpr(lambda x: top_k(x, 2, "vocab"))(x)
    assert str(inside) == str(jax.make_jaxpr(lambda x: top_k(x, 2, "vocab"))(x)) and "shard_map" not in str(inside)
    assert [a.tolist() for a in top_k(x, 2, "vocab")] == [[[3.0, 3.0]], [[0, 2]]]
