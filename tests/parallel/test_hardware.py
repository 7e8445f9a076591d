"""The table of chips against figures of the same data sheets that it does not hold."""

import pytest

from bertjax.parallel.hardware import CHIPS, CHIPS_BY_NAME, find_chip


@pytest.mark.parametrize(
    "name, both_ways",
    # Google Cloud's pages: bidirectional ICI bandwidth of a chip, bytes/s; NVIDIA's: NVLink of a GPU, bytes/s.
    [
        ("v5e", 400e9), ("v5p", 1200e9), ("v6e", 800e9), ("a100", 600e9), ("h100", 900e9), ("h200", 900e9),
        ("b200", 1800e9),
    ],
)  # fmt: skip
def test_links_add_up_to_the_data_sheet(name: str, both_ways: float):
    chip = CHIPS_BY_NAME[name]
    total = chip.link_bandwidth * 2 * (2 * chip.torus if chip.torus else 1)
    assert 0.89 <= total / both_ways <= 1  # the scaling book's links are net of what the protocol takes


@pytest.mark.parametrize(
    "name, flops_per_byte",
    # "How to Scale Your Model", chapter Rooflines: 240 for v5e; the others from the sheets' own two figures.
    [("v5e", 240), ("v5p", 166), ("v6e", 560), ("v4", 229), ("h100", 295), ("h200", 206), ("a100", 153)],
)
def test_the_balance_of_compute_and_memory(name: str, flops_per_byte: float):
    chip = CHIPS_BY_NAME[name]
    assert chip.flops / chip.memory_bandwidth == pytest.approx(flops_per_byte, rel=0.01)


def test_named_chips_can_be_planned_for():
    assert set(CHIPS_BY_NAME) == {"v3", "v4", "v5e", "v5p", "v6e", "a100", "h100", "h200", "b200"}
    for chip in CHIPS_BY_NAME.values():
        assert chip.memory and chip.memory_bandwidth and chip.link_bandwidth
        assert chip.network_bandwidth or chip.name == "v3"  # which came in one slice
    assert len(CHIPS) == len({chip.device_kinds for chip in CHIPS})


@pytest.mark.parametrize("kind, name", [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("NVIDIA H100 80GB HBM3", "h100")])
def test_a_device_kind_names_its_chip(kind: str, name: str):
    found = find_chip(kind)
    assert found is not None and found.name == name
