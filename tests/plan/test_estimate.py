"""The roofline against worked examples of "How to Scale Your Model" (jax-ml.github.io/scaling-book) and by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bertjax.config.loading.load import load
from bertjax.models.bert import flops as bert_flops
from bertjax.models.peft_options import PeftOptions
from bertjax.models.t5 import flops as t5_flops
from bertjax.parallel.hardware import CHIPS_BY_NAME
from bertjax.plan.estimate import Interconnect, Roofline, roofline, transfer_factor
from bertjax.plan.hlo.collectives import Collective
from bertjax.training.program import TrainProgram


def torus(*extents: int, slices: int = 1) -> list[SimpleNamespace]:
    """Devices of a TPU slice in row-major order of their coordinates."""
    coords = [(*at, 0, 0)[:3] for at in np.ndindex(*extents)]
    return [SimpleNamespace(coords=at, slice_index=s, process_index=0) for s in range(slices) for at in coords]


def hosts(count: int, gpus: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(process_index=host, slice_index=0) for host in range(count) for _ in range(gpus)]


def gather(size: int, group: tuple[int, ...], kind: str = "all-gather") -> Collective:
    return Collective(kind, "x", 1, size, group)


B, D = 1024, 4096  # chapter "Sharded Matrices", question 2: bfloat16[B, D] on a TPU v4 4x4x4, mesh X=4 Y=4 Z=4


@pytest.mark.parametrize(
    "size, group, microseconds",
    [
        (2 * B * D // 4, tuple(range(0, 64, 16)), 23.3),  # along X, the other axis split
        (2 * B * D // 4, tuple(range(0, 16, 4)), 23.3),  # along Y
        (2 * B * D, tuple(range(0, 64, 4)), 46.6),  # along X and Y, over the links of both
        (2 * B * D // 16, tuple(range(4)), 5.8),  # along Z
    ],
)
def test_gathers_of_the_scaling_book(size: int, group: tuple[int, ...], microseconds: float):
    """Its answers leave out (n-1)/n."""
    seconds = Interconnect(CHIPS_BY_NAME["v4"], torus(4, 4, 4)).seconds(gather(size, group))
    n = len(group)
    assert seconds * n / (n - 1) * 1e6 == pytest.approx(microseconds, rel=0.01)


def test_a_reduction_is_two_gathers_and_an_all_to_all_a_quarter():
    links, group, size = Interconnect(CHIPS_BY_NAME["v5e"], torus(16, 16)), tuple(range(16)), 2**24
    once = links.seconds(gather(size, group))
    assert links.seconds(gather(size, group, "all-reduce")) == pytest.approx(2 * once)
    assert links.seconds(gather(size, group, "reduce-scatter")) == pytest.approx(once)
    # All-to-all: bytes are those of a device's part; the book's array is sixteen of them, a quarter of its gather.
    whole = links.seconds(gather(16 * size, group)) * 16 / 15
    assert links.seconds(gather(size, group, "all-to-all")) == pytest.approx(whole / 4)


def test_a_line_has_half_of_a_ring():
    """Dimensions of v5e close at 16; eight of sixteen, or a dimension of eight, do not."""
    size, chip = 2**24, CHIPS_BY_NAME["v5e"]
    ring = Interconnect(chip, torus(16, 16)).seconds(gather(size, tuple(range(16)))) * 16 / 15
    part = Interconnect(chip, torus(16, 16)).seconds(gather(size, tuple(range(8)))) * 8 / 7
    short = Interconnect(chip, torus(4, 8)).seconds(gather(size, tuple(range(8)))) * 8 / 7
    assert part == short == pytest.approx(2 * ring) == pytest.approx(size / chip.link_bandwidth)


def test_gpus_of_a_host_use_nvlink_and_hosts_their_network():
    chip, size = CHIPS_BY_NAME["h100"], 2**30
    links = Interconnect(chip, hosts(2, 8))
    inside = links.seconds(gather(size, tuple(range(8))))
    assert inside == pytest.approx(size * 7 / 8 / 450e9)
    pair = links.seconds(gather(size, (0, 8)))  # one GPU of each host: its own network card, 50 GB/s
    assert pair == pytest.approx(size / 2 / 50e9)
    both = links.seconds(gather(size, tuple(range(16))))  # each GPU fetches an eighth of the other host's half
    assert both == pytest.approx(inside + size / 8 / 2 / 50e9)


def test_slices_share_out_what_crosses_between_them():
    chip, size = CHIPS_BY_NAME["v5p"], 2**30
    links = Interconnect(chip, torus(4, 4, 4, slices=2))
    across = links.seconds(gather(size, (0, 64), "all-reduce"))
    assert across == pytest.approx(size / (25e9 / 4))  # twice half of it, over a chip's share of the host's network
    whole = links.seconds(gather(size, tuple(range(128)), "all-reduce"))
    assert whole == pytest.approx(links.seconds(gather(size, tuple(range(64)), "all-reduce")) + across / 64)


def test_one_device_receives_nothing_from_itself():
    assert (
        transfer_factor("all-reduce", 1) == 0
        and Interconnect(CHIPS_BY_NAME["v5e"], torus(1, 1)).seconds(gather(2**20, (0,))) == 0
    )


def test_a_roofline_by_hand():
    """A v5e at 197 TFLOP/s and 819 GB/s."""
    found = roofline(
        CHIPS_BY_NAME["v5e"], flops=int(394e12), model_flops=197e12, memory_bytes=int(819e9), transfers=0.5, tokens=5000
    )
    assert found == Roofline(2.0, 1.0, 0.5, 5000, 197e12)
    assert (found.best, found.step, found.bound) == (2.0, 2.5, "compute")
    assert found.tokens_per_second == 2000 and found.mfu(CHIPS_BY_NAME["v5e"]) == pytest.approx(0.4)
    hidden = roofline(CHIPS_BY_NAME["v5e"], flops=0, model_flops=197e12, memory_bytes=1, transfers=0.0, tokens=1)
    assert hidden.compute == 1.0  # products inside of kernels cannot be counted


@pytest.mark.parametrize("model, groups", [("bert", ("layers/1", "heads")), ("t5", ("embeddings", "decoder/layers/0"))])
def test_model_flops_of_plan_and_log_are_the_family_s(model: str, groups, tiny_project, tiny_t5_project):
    """Both ask TrainProgram.row_flops, which takes the widths of a row's fields to the family's formula."""
    config = load({"bert": tiny_project, "t5": tiny_t5_project}[model] / "tiny.yaml")
    lengths = {"input_ids": 32, "target_ids": 16, "masked_positions": 5}
    fields = {name: ((length,), np.dtype(np.int32)) for name, length in lengths.items()}
    one = SimpleNamespace(sequences=lambda fields: 1, row_widths=lambda widths: widths)
    program: Any = SimpleNamespace(model=config.model, heads=("mlm", "nsp"), peft=PeftOptions(), objective=one,
                                   teacher=None)  # fmt: skip
    expected = {
        "bert": lambda: bert_flops.train_flops(config.model, 32, 5, trainable_layers=1),
        "t5": lambda: t5_flops.train_flops(config.model, 32, 16, groups=groups),
    }
    assert TrainProgram.row_flops(program, fields, groups) == expected[model]()
