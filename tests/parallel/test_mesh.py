"""Which device stands where: slices and hosts outermost."""

from types import SimpleNamespace

import jax
import pytest

from bertjax.config.schema.run import MeshConfig, Stage
from bertjax.errors import UserError
from bertjax.parallel.mesh import count_slices, group_by_slice, make_mesh
from bertjax.parallel.mesh_shape import axis_sizes, find_problems, fitting_counts


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


@pytest.mark.parametrize(
    ("devices", "slices"),
    [
        (fake("tpu", 8, 4, slices=4), 4),
        (fake("tpu", 4, 2, slices=1), 1),
        (fake("gpu", 2, 8, slices=2), 2),  # two hosts
        (fake("gpu", 16, 1, slices=2), 2),  # the same with a process for each GPU
        (fake("gpu", 8, 1, slices=1), 1),  # one host, or one NVLink domain
        (fake("gpu", 4, 2), 4),  # jax gives no index
        (fake("cpu", 3, 2), 3),
        (fake("cpu", 1, 8), 1),
    ],
)
def test_slices_are_counted(devices, slices):
    """`dcn: -1` and `data: -1` together: the slices are counted and `data` takes the rest of each."""
    assert count_slices(devices) == slices
    if devices[0].platform != "tpu":  # whose devices have coordinates
        mesh = SimpleNamespace(dcn=-1, data=-1, fsdp=1, tensor=1)
        sizes = axis_sizes(mesh, len(devices), count_slices(devices))
        assert sizes == {"dcn": slices, "data": len(devices) // slices, "fsdp": 1, "tensor": 1}
        assert [len(part) for part in group_by_slice(devices, slices)] == [len(devices) // slices] * slices


def test_counted_slices_of_this_process_are_one():
    mesh = make_mesh(MeshConfig(dcn=-1, fsdp=2))
    assert dict(mesh.shape) == {"dcn": 1, "data": 4, "fsdp": 2, "tensor": 1}


def test_gpu_hosts_of_other_sizes_are_not_equal_slices():
    devices = fake("gpu", 2, 4, slices=2)[:6]
    with pytest.raises(UserError, match="^mesh.dcn: 2 does not part 2 hosts with 4, 2 devices into equal groups"):
        group_by_slice(devices, count_slices(devices))


@pytest.mark.parametrize("sizes", [{"dcn": 0}, {"dcn": -2}, {"data": -1, "fsdp": -1}])
def test_sizes_that_are_none(sizes):
    with pytest.raises(ValueError, match="axis sizes are positive numbers; the number of slices and one of"):
        MeshConfig(**sizes)


def stage(rows: int, grad_accum: int = 1) -> Stage:
    data = {"source": {"kind": "stdlib_docs"}}
    return Stage(name="pretrain", data=data, steps=1, batch_size=rows, grad_accum=grad_accum)


def test_batches_that_do_not_divide_name_the_numbers_of_hosts_that_do():
    """One line; a run that has begun cannot change its batch size, so it says on how many hosts it goes on."""
    (line,) = find_problems(MeshConfig(dcn=-1), [stage(24)], 5 * 4, slices=5)
    assert line == (
        "stages.pretrain.batch_size: 24 rows do not divide over 20 parts (dcn=5 data=4); set 20 or 40, or a larger "
        "mesh.tensor, which splits no rows; a run that has begun keeps its batches: numbers of slices that divide them "
        "when each slice has 4 devices: 1, 2, 3, 6"
    )
    (line,) = find_problems(MeshConfig(), [stage(8)], 3, processes=3)
    assert line.endswith("numbers of processes that divide them when each process has 1 device: 1, 2, 4")
    assert find_problems(MeshConfig(), [stage(8)], 4, processes=2) == []
    (line,) = find_problems(MeshConfig(dcn=-1, fsdp=4, data=1), [stage(64)], 6, slices=3)
    assert line.startswith("mesh: dcn=3 x data=1 x fsdp=4 x tensor=1 does not fit 6 devices") and "begun" not in line
    (line,) = find_problems(MeshConfig(), [stage(8)], 3)
    assert "begun" not in line


def test_the_nearest_numbers_of_hosts_fit_all_stages():
    assert fitting_counts(MeshConfig(dcn=-1), [stage(1024), stage(768)], 4, 60) == [2, 4, 8, 16, 32, 64]
    assert fitting_counts(MeshConfig(dcn=-1), [stage(1024)], 4, 3) == [1, 2, 4]  # up to twice as many
    assert fitting_counts(MeshConfig(fsdp=8, data=1), [stage(64)], 4, 3) == [2]


def test_fewer_micro_batches_are_named_where_they_help():
    (line,) = find_problems(MeshConfig(), [stage(256, grad_accum=4)], 128)
    assert "set 512, or grad_accum=2, or a larger" in line
    (line,) = find_problems(MeshConfig(), [stage(250, grad_accum=2)], 16)
    assert "grad_accum" not in line


def test_a_fixed_number_of_slices_must_be_that_of_the_devices():
    (line,) = find_problems(MeshConfig(dcn=2), [stage(8)], 8, slices=4)
    assert "slices: 4, not 2; set mesh.dcn=4, or -1 for as many as there are" in line
    assert find_problems(MeshConfig(dcn=-1), [stage(8)], 8, slices=4) == []


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
