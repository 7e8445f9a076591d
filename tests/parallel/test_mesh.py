"""Which device stands where: slices and hosts outermost."""

from types import SimpleNamespace

import jax
import pytest

from bertjax.config.schema.run import MeshConfig
from bertjax.errors import UserError
from bertjax.parallel.mesh import group_by_slice, make_mesh


def fake(platform: str, hosts: int, each: int, slices: int | None = None) -> list:
    """`hosts` x `each` devices in process order; `slices` of equally many hosts, or none that jax knows of."""
    of_slice = (lambda host: None) if slices is None else (lambda host: host * slices // hosts)
    return [
        SimpleNamespace(id=host * each + n, platform=platform, process_index=host, slice_index=of_slice(host))
        for host in range(hosts)
        for n in range(each)
    ]


def ids(parts: list) -> list[list[int]]:
    return [[device.id for device in part] for part in parts]


def test_slices_of_one_process_are_equal_runs():
    mesh = make_mesh(MeshConfig(dcn=2, fsdp=2, tensor=2, data=1))
    assert [[d.id for d in part.flat] for part in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert mesh.devices.shape == (2, 1, 2, 2) and set(mesh.devices.flat) == set(jax.devices())


def test_tpu_slices_are_found_by_their_index():
    """In whatever order jax lists them."""
    listed = fake("tpu", 4, 2, slices=2)
    assert ids(group_by_slice(listed[4:] + listed[:4], 2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(("slices", "asked"), [(2, 1), (2, 4), (1, 2)])
def test_tpu_slices_are_what_they_are(slices, asked):
    with pytest.raises(UserError, match=rf"^mesh.dcn: .* form {slices} slices, not {asked}; set it to {slices}$"):
        group_by_slice(fake("tpu", 4, 2, slices=slices), asked)


@pytest.mark.parametrize("known", [None, 4], ids=["by host", "by NVLink domain"])
def test_gpu_hosts_join_into_groups(known):
    listed = fake("gpu", 4, 2, slices=known)
    assert ids(group_by_slice(listed, 2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert ids(group_by_slice(listed, 4)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert ids(group_by_slice(listed, 1)) == [list(range(8))]


@pytest.mark.parametrize("listed", [fake("gpu", 3, 2), fake("gpu", 1, 8), fake("gpu", 2, 4)[:6]], ids=["3", "1", "odd"])
def test_gpu_hosts_that_do_not_part_are_one_line(listed):
    with pytest.raises(UserError, match="^mesh.dcn: 2 does not part") as error:
        group_by_slice(listed, 2)
    assert "\n" not in str(error.value)
