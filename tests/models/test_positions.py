"""Positions in pieces: what enters and leaves a block, and when a stack can run so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bertjax.config.schema.run import MeshConfig
from bertjax.models import sequence_parallel
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.dropout import dropout, hash_bits
from bertjax.models.layers.modules import Linear
from bertjax.models.vocab_parallel import embedding_lookup
from bertjax.parallel import sharding
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules

RULES = {"sequence": "tensor"}
AXES = {"data": 1, "fsdp": 4, "tensor": 2}


class Block(nnx.Module):
    """A residual feed-forward block, the smallest that has both kinds of matmul."""

    def __init__(self, width: int):
        rngs = nnx.Rngs(params=0)
        self.inner = Linear((8, width), ("embed", "mlp"), 1.0, EXECUTION, rngs)
        self.output = Linear((width, 8), ("mlp", "embed"), 1.0, EXECUTION, rngs)

    def __call__(self, x: jax.Array, key: jax.Array, shift: jax.Array) -> jax.Array:
        h = jnp.sin(self.inner(sequence_parallel.all_gather_sequence(x)) + shift)
        h = dropout(h, 0.3, key, EXECUTION, names=("batch", None, "mlp"))
        return x + dropout(self.output(h), 0.3, key, EXECUTION)


EXECUTION = ComputeOptions()


def inside(rules: dict, axes: dict, f, *args):
    with sharding.use_mesh_and_rules(make_mesh(MeshConfig(**axes)), merge_rules(rules)):
        return jax.jit(f)(*args)


def test_a_block_in_pieces_gives_the_same_values_and_gradients():
    """With dropout between and behind the matmuls, and an array that every device reads whole."""
    block, x, key = Block(6), jax.random.normal(jax.random.key(1), (4, 6, 8)), jax.random.key(2)
    shift = jnp.float32(0.5)

    def run(x, weights, key, shift):
        assert x.shape[1] == 6 // (2 if sequence_parallel.manual_sequence_axes() else 1)
        return weights(x, key, shift)

    def pieces(x, block, shift):
        return sequence_parallel.shard_map_sequence(run, ("tensor",), x, block, ((key, ()), (shift, ())))

    loss = lambda f: jax.value_and_grad(lambda x, block, shift: (f(x, block, shift) ** 2).sum(), argnums=(0, 1, 2))  # noqa: E731
    expected = jax.jit(loss(lambda x, block, shift: run(x, block, key, shift)))(x, block, shift)
    found = inside(RULES, AXES, loss(pieces), x, block, shift)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("rules", "length", "width", "expected"),
    [
        (RULES, 6, 6, ("tensor",)),
        ({}, 6, 6, ()),
        (RULES, 5, 6, ()),  # positions do not divide
        (RULES, 6, 7, ()),  # columns do not
        (RULES | {"mlp": None}, 6, 6, ()),  # columns are not split
    ],
)
def test_when_a_stack_runs_in_pieces(rules, length, width, expected):
    with sharding.use_mesh_and_rules(make_mesh(MeshConfig(**AXES)), merge_rules(rules)):
        assert sequence_parallel.stack_shard_axes(length, [Block(width)], heads=3) == expected
    assert sequence_parallel.stack_shard_axes(length, [Block(width)], heads=3) == ()


@pytest.mark.parametrize(("heads", "expected"), [(4, ("tensor",)), (3, ())])
def test_heads_that_do_not_divide_though_their_columns_do(heads, expected):
    columns = Linear((8, 8 * heads), ("embed", "heads"), 1.0, EXECUTION, nnx.Rngs(params=0))
    with sharding.use_mesh_and_rules(make_mesh(MeshConfig(**AXES)), merge_rules(RULES)):
        assert sequence_parallel.stack_shard_axes(6, [columns], heads) == expected


@pytest.mark.parametrize("names", [("batch", "sequence"), ("batch", "heads", None), ("batch", None, "mlp")])
def test_bits_of_a_part_are_those_of_the_whole(names):
    """Rows, positions, heads and columns each know where they are."""
    shape, key, table = (8, 4, 6), jax.random.key(3), merge_rules(RULES)
    mesh = make_mesh(MeshConfig(dcn=2, fsdp=2, tensor=2))
    spec = sharding.logical_to_mesh_axes((*names, None)[:3], table)
    part = tuple(n // np.prod([mesh.shape[a] for a in jax.tree.leaves((axes,))], dtype=int)
                 for n, axes in zip(shape, spec, strict=True))  # fmt: skip
    with sharding.use_mesh_and_rules(mesh, table):
        draw = jax.shard_map(lambda: hash_bits(key, part, names), in_specs=(), out_specs=spec, check_vma=False)
        found = jax.jit(draw)()
    np.testing.assert_array_equal(found, hash_bits(key, shape))


@pytest.mark.parametrize("names", [("batch", "sequence"), ("batch", None, "mlp")])
@pytest.mark.parametrize("broadcast_length", [False, True])
def test_a_device_with_a_single_row_draws_what_is_its_own(names, broadcast_length):
    """Eight rows over eight devices, each with one: not the first row's mask eight times."""
    shape, key, table = (8, 6, 4), jax.random.key(3), merge_rules({})
    mesh, spec = make_mesh(MeshConfig(data=8)), sharding.logical_to_mesh_axes(("batch", None, None), table)
    drop = partial(dropout, rate=0.5, key=key, compute=EXECUTION, names=names, broadcast_length=broadcast_length)
    with sharding.use_mesh_and_rules(mesh, table):
        found = jax.jit(jax.shard_map(drop, in_specs=spec, out_specs=spec, check_vma=False))(jnp.ones(shape))
    np.testing.assert_array_equal(found, drop(jnp.ones(shape)))
    assert len({row.tobytes() for row in np.asarray(found)}) > 4


@pytest.mark.parametrize("rules", [RULES, {}, RULES | {"vocab": None}], ids=["pieces", "whole", "whole table"])
@pytest.mark.parametrize("pieces", [64, 30, 31])
def test_lookup_is_take(rules, pieces):
    """And its gradient a sum over all rows, repeated ids included."""
    table = jax.random.normal(jax.random.key(0), (pieces, 8))
    ids = jax.random.randint(jax.random.key(1), (4, 6), 0, pieces).at[0].set(7)
    weight = jax.random.normal(jax.random.key(2), (4, 6, 8))
    both = lambda f: lambda table: (f(table), jax.grad(lambda t: (f(t) * weight).sum())(table))  # noqa: E731
    found = inside(rules, AXES, both(lambda table: embedding_lookup(table, ids)), table)
    for a, b in zip(found, both(lambda table: jnp.take(table, ids, axis=0))(table), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
