"""Mesh sizes, the rules that place arrays, and constraints, on eight CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.run import MeshConfig
from bertjax.errors import UserError
from bertjax.parallel import sharding
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import RULES, merge_rules


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (1, 8, 1, 1)),
        ({"fsdp": 8, "data": 1}, (1, 1, 8, 1)),
        ({"fsdp": -1, "data": 2, "tensor": 2}, (1, 2, 2, 2)),
        ({"fsdp": 4, "tensor": 2}, (1, 1, 4, 2)),
        ({"dcn": 2, "fsdp": 2}, (2, 2, 2, 1)),
    ],
)
def test_mesh_takes_all_devices(sizes, expected):
    mesh = make_mesh(MeshConfig(**sizes))
    assert mesh.axis_names == ("dcn", "data", "fsdp", "tensor") and mesh.devices.shape == expected
    assert set(mesh.devices.flat) == set(jax.devices())


def test_mesh_over_some_devices():
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[2:6])
    assert mesh.devices.shape == (1, 2, 2, 1) and list(mesh.devices.flat) == jax.devices()[2:6]


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 3},
        {"data": 4},
        {"fsdp": 16},
        {"data": 2, "fsdp": 2, "tensor": 4},
        {"dcn": 3},
        {"dcn": 2, "data": 8},
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_one_line(sizes):
    first = "dcn" if "dcn" in sizes else "data"
    with pytest.raises(UserError, match=rf"^mesh: {first}=.* does not fit 8 devices; .*-1") as error:
        make_mesh(MeshConfig(**sizes))
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


def test_rules_place_logical_axes():
    """ZeRO-3 over fsdp, Megatron's column and row split over tensor, rows of a batch over data and fsdp."""
    table = merge_rules({})
    assert sharding.logical_to_mesh_axes(("embed", None, "heads"), table) == P("fsdp", None, "tensor")
    assert sharding.logical_to_mesh_axes(("vocab", "embed"), table) == P("tensor", "fsdp")
    assert sharding.logical_to_mesh_axes(("mlp", "embed"), table) == P("tensor", "fsdp")
    assert sharding.logical_to_mesh_axes(("batch", None, None), table) == P(("dcn", "data", "fsdp"), None, None)
    assert sharding.logical_to_mesh_axes(("batch", "sequence", None), table) == P(("dcn", "data", "fsdp"), None, None)
    assert sharding.logical_to_mesh_axes((None,), table) == P(None)


def test_overrides_replace_single_rules():
    table = merge_rules({"embed": None, "batch": ["dcn", "data"], "vocab": ["fsdp", "tensor"], "sequence": "tensor"})
    assert sharding.logical_to_mesh_axes(("batch", "sequence"), table) == P(("dcn", "data"), "tensor")
    assert sharding.logical_to_mesh_axes(("vocab", "embed"), table) == P(("fsdp", "tensor"), None)
    assert sharding.logical_to_mesh_axes(("batch", "mlp"), table) == P(("dcn", "data"), "tensor")
    assert RULES["embed"] == ("fsdp",)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"embd": "fsdp"}, "mesh.rules.embd: no such logical axis; known: batch, sequence, vocab, embed, heads, mlp"),
        ({"embed": "model"}, "mesh.rules.embed: no mesh axis 'model'; known: dcn, data, fsdp, tensor"),
        ({"mlp": ["tensor", "pipe"]}, "mesh.rules.mlp: no mesh axis 'pipe'"),
    ],
)
def test_unknown_axes_are_user_errors(overrides, words):
    with pytest.raises(UserError) as error:
        merge_rules(overrides)
    assert words in str(error.value)


def test_two_axes_of_one_array_cannot_share_a_mesh_axis():
    table = merge_rules({"heads": "fsdp"})
    with pytest.raises(UserError, match="^mesh.rules: embed and heads .* 'fsdp'"):
        sharding.logical_to_mesh_axes(("embed", None, "heads"), table)


def test_axes_that_do_not_divide_stay_whole():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    assert sharding.named_sharding(mesh, ("vocab", "embed"), (30522, 768)).spec == P("tensor", "fsdp")
    assert sharding.named_sharding(mesh, ("vocab", "embed"), (101, 768)).spec == P(None, "fsdp")
    assert sharding.named_sharding(mesh, ("embed", None), (30, 2)).spec == P(None, None)


def test_constrain_places_activations_inside_a_mesh_only():
    x = jnp.ones((8, 4, 6))
    assert sharding.with_logical_constraint(x, "batch", None, "mlp") is x
    mesh, table = make_mesh(MeshConfig(fsdp=4, tensor=2)), merge_rules({})
    with sharding.use_mesh_and_rules(mesh, table):
        placed = jax.jit(lambda x: sharding.with_logical_constraint(x, "batch", None, "mlp"))(x)
    expected = sharding.named_sharding(mesh, ("batch", None, "mlp"), x.shape, table)
    assert placed.sharding.is_equivalent_to(expected, 3) and placed.addressable_shards[0].data.shape == (2, 4, 3)
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    with sharding.use_mesh_and_rules(one, table):
        assert sharding.with_logical_constraint(x, "batch", None, "mlp") is x


def test_constrain_follows_the_configured_rules():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    with sharding.use_mesh_and_rules(mesh, merge_rules({"mlp": None, "batch": "data"})):
        placed = jax.jit(lambda x: sharding.with_logical_constraint(x, "batch", None, "mlp"))(jnp.ones((8, 4, 6)))
    assert placed.sharding.is_fully_replicated
    with sharding.use_mesh_and_rules(mesh, merge_rules({})):  # and the override ends with its block
        placed = jax.jit(lambda x: sharding.with_logical_constraint(x, "batch", None, "mlp"))(jnp.ones((8, 4, 6)))
    assert placed.addressable_shards[0].data.shape == (2, 4, 3)


def test_gathered_weights_are_whole_along_fsdp_and_split_along_tensor():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    weight = jax.device_put(jnp.ones((8, 3, 8)), sharding.named_sharding(mesh, ("embed", None, "heads"), (8, 3, 8)))
    with sharding.use_mesh_and_rules(mesh, merge_rules({})):
        whole = jax.jit(lambda w: sharding.all_gather_fsdp(w, "embed", None, "heads"))(weight)
    assert weight.addressable_shards[0].data.shape == (2, 3, 4)
    assert whole.addressable_shards[0].data.shape == (8, 3, 4)


# ---- inside a shard_map over the rows' axes --------------------------------------------------------------------------


@pytest.fixture
def by_hand():
    """run(f, *(array, logical axes)) inside a shard_map over dcn, data and fsdp of eight devices, tensor left alone."""
    mesh, table = make_mesh(MeshConfig(dcn=2, fsdp=2, tensor=2)), merge_rules({})
    cut = ("dcn", "data", "fsdp")

    def run(f, *given, out):
        """Each given with its logical axes; `out` names those of the result."""
        only = lambda names: P(*(tuple(a for a in table.get(n or "", ()) if a in cut) or None for n in names))  # noqa: E731
        specs = tuple(only(names) for _, names in given)
        with sharding.use_mesh_and_rules(mesh, table):
            mapped = jax.shard_map(f, in_specs=specs, out_specs=only(out), axis_names=set(cut), check_vma=False)
            return jax.jit(mapped)(*(x for x, _ in given))

    return run


def test_own_part_numbers_the_parts_in_order(by_hand):
    def first(x):
        parts, part = sharding.shard_index("batch")
        assert parts == 4 and sharding.shard_index("heads") == (1, 0)
        return jnp.full(x.shape, part * x.shape[0])

    found = by_hand(first, (jnp.zeros((8,)), ("batch",)), out=("batch",))
    assert found.tolist() == [0, 0, 2, 2, 4, 4, 6, 6] and sharding.shard_index("batch") == (1, 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_weight_is_gathered_whole_and_its_gradient_summed_and_cut(by_hand, dtype):
    """y = x w over all rows: dw = x^T g, each device's rows added up, and left where w is."""
    x, w = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(((8, 4), (4, 6))))

    def gradient(x, w):
        loss = lambda w: (x @ sharding.all_gather_fsdp(w.astype(dtype), "embed", "mlp").astype(jnp.float32)).sum()  # noqa: E731
        return sharding.psum_manual(jax.grad(loss)(w), ("dcn",), "embed", "mlp")

    found = by_hand(gradient, (x, ("batch", None)), (w, ("embed", "mlp")), out=("embed", None))
    expected = jnp.broadcast_to(x.sum(0)[:, None], w.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype == jnp.float32 else 2e-2, atol=1e-6)


def test_weights_are_left_alone_outside():
    w = jnp.ones((4, 6))
    assert sharding.unshard(w, "embed", "mlp") is w
