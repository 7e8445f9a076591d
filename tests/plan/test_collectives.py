"""Collectives of real programs over eight CPU devices, and every way that XLA writes groups of devices."""

from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.plan.hlo.collectives import Collective, find_collectives, parse_replica_groups, spanned_axes
from bertjax.plan.hlo.module import HloModule, HloOp

MESH = {"dcn": 1, "data": 2, "fsdp": 2, "tensor": 2}


def operation(attributes: str, code: str = "all-reduce", type_: str = "f32[8]{0}") -> HloOp:
    return HloOp("x", code, type_, f"%p), channel_id=1, {attributes}, use_global_device_ids=true", False)


@pytest.mark.parametrize(
    "text, groups",
    [
        # The forms and what they stand for: xla/hlo/ir/replica_group.h and mesh_and_axis.h of openxla/xla
        ("replica_groups={{0,1},{2,3}}", [(0, 1), (2, 3)]),
        ("replica_groups=[2,4]<=[8]", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [(0, 2, 4, 6), (1, 3, 5, 7)]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [(0, 2, 4, 6), (1, 3, 5, 7)]),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ("replica_groups=mesh[a=4,b=2] {a:(1)2}", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [(0, 2), (1, 3)]),
        ("replica_groups={}", [(0, 1, 2, 3, 4, 5, 6, 7)]),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", [(0, 1), (2, 3)]),
    ],
)
def test_forms_of_groups(text: str, groups: list[tuple[int, ...]]):
    assert parse_replica_groups(operation(text), 8) == groups


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data())
def test_groups_along_any_axes_are_named_by_them(sizes: list[int], data):
    mesh = {f"axis{number}": size for number, size in enumerate(sizes)}
    along = data.draw(st.sets(st.sampled_from(list(mesh)), min_size=1))
    ids = np.arange(prod(sizes)).reshape(sizes)
    across = [n for n, name in enumerate(mesh) if name not in along]
    order = across + [n for n, name in enumerate(mesh) if name in along]
    width = prod(mesh[name] for name in along)
    groups = [tuple(row) for row in ids.transpose(order).reshape(-1, width).tolist()]
    listed = "replica_groups={" + ",".join("{" + ",".join(map(str, group)) + "}" for group in groups) + "}"
    iota = f"replica_groups=[{len(groups)},{width}]<=[{','.join(map(str, sizes))}]T({','.join(map(str, order))})"
    named = "replica_groups=mesh[" + ",".join(f"'{n}'={s}" for n, s in mesh.items()) + "] {" + ",".join(
        f"'{n}'" for n in mesh if n in along
    ) + "}"  # fmt: skip
    expected = "+".join(name for name in mesh if name in along and mesh[name] > 1) or "none"
    for text in (listed, iota, named):
        assert spanned_axes(parse_replica_groups(operation(text), prod(sizes)), mesh) == expected


def test_a_piece_of_an_axis_is_called_one():
    assert spanned_axes([(0, 1), (2, 3)], {"data": 4}) == "part of data"


def test_asynchronous_starts_hold_their_operands_too():
    text = """ENTRY %main (a: f32[2]) -> f32[8] {
  %g = ((f32[2]{0}, bf16[4]{0}), (f32[8]{0}, bf16[16]{0})) all-gather-start(%a, %b), replica_groups=[2,4]<=[8]
  %r = f32[5]{0} all-reduce-start(%a), replica_groups=[1,8]<=[8]
  %p = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  %s = f32[2]{0} reduce-scatter(%a), replica_groups=[2,4]<=[8], dimensions={0}
}
"""
    found = {one.kind: one.bytes for one in find_collectives(HloModule.parse(text), {"x": 2, "y": 4})}
    assert found == {"all-gather": 64, "all-reduce": 20, "collective-permute": 8, "reduce-scatter": 32}


# ---- real programs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(tuple(MESH.values())), tuple(MESH))


def found_in(mesh, function, *arguments) -> list[Collective]:
    compiled = jax.jit(function).lower(*arguments).compile()
    return find_collectives(HloModule.parse(compiled.as_text()), dict(mesh.shape))


def abstract(mesh, shape, *spec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


@pytest.mark.parametrize(
    "axes", [axes for axes in product(*[(name, None) for name in ("data", "fsdp", "tensor")]) if any(axes)]
)
def test_a_sum_over_mesh_axes(mesh, axes):
    names = tuple(name for name in axes if name)
    add = jax.shard_map(
        lambda x: jax.lax.psum(x, names), mesh=mesh, in_specs=P(names), out_specs=P(), check_vma=False
    )  # fmt: skip
    (one,) = found_in(mesh, add, abstract(mesh, (64, 3), names))
    assert (one.kind, one.axes, one.count) == ("all-reduce", "+".join(names), 1)
    assert one.bytes == 4 * 3 * 64 // 2 ** len(names)  # each device's part, whole before and after


@pytest.mark.parametrize("name", ["data", "fsdp", "tensor"])
def test_a_gather_and_a_scatter_are_as_large_as_the_whole_array(mesh, name: str):
    gather = jax.shard_map(
        lambda x: jax.lax.all_gather(x, name, tiled=True), mesh=mesh, in_specs=P(name), out_specs=P(), check_vma=False
    )
    scatter = jax.shard_map(
        lambda x: jax.lax.psum_scatter(x, name, tiled=True), mesh=mesh, in_specs=P(), out_specs=P(name), check_vma=False
    )
    (one,) = found_in(mesh, gather, abstract(mesh, (64, 3), name))
    assert (one.kind, one.axes, one.bytes) == ("all-gather", name, 4 * 64 * 3)
    (one,) = found_in(mesh, scatter, abstract(mesh, (64, 3)))
    assert (one.kind, one.axes, one.bytes) == ("reduce-scatter", name, 4 * 64 * 3)


def test_data_parallel_gradients_are_the_parameters_bytes(mesh):
    """One layer of a model, its rows over data and fsdp: what travels is its gradient, once."""

    def step(weight, bias, x):
        return jax.grad(lambda w, b: ((x @ w + b) ** 2).sum(), argnums=(0, 1))(weight, bias)

    arguments = abstract(mesh, (32, 16)), abstract(mesh, (16,)), abstract(mesh, (64, 32), ("data", "fsdp"))
    found = found_in(mesh, step, *arguments)
    assert {one.axes for one in found} == {"data+fsdp"} and {one.kind for one in found} == {"all-reduce"}
    assert sum(one.bytes for one in found) == 4 * (32 * 16 + 16)


def test_fsdp_gathers_the_parameters_bytes(mesh):
    def forward(weight, x):
        whole = jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, P()))
        return x @ whole

    found = found_in(mesh, forward, abstract(mesh, (32, 16), "fsdp"), abstract(mesh, (64, 32), "data"))
    assert [(one.kind, one.axes, one.bytes) for one in found] == [("all-gather", "fsdp", 4 * 32 * 16)]


def test_a_loop_s_collectives_count_each_time(mesh):
    add = jax.shard_map(
        lambda x: jax.lax.scan(lambda carry, _: (jnp.tanh(jax.lax.psum(carry, "data")), None), x, length=5)[0],
        mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False,
    )  # fmt: skip
    (one,) = found_in(mesh, add, abstract(mesh, (64,), "data"))
    assert (one.count, one.bytes) == (5, 5 * 4 * 32)
