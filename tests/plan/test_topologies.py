"""Names of devices, against Google Cloud's tables of TPU types and what the compilers are told."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.errors import UserError
from bertjax.plan import topologies
from bertjax.plan.topologies import parse


@pytest.mark.parametrize(
    "name, kind, shape, devices",
    [
        ("v5e:16x16", "v5e", (16, 16), 256),
        ("v5p:8x8x8", "v5p", (8, 8, 8), 512),
        ("v4:2x2x4", "v4", (2, 2, 4), 16),
        ("v6e:4x4", "v6e", (4, 4), 16),
        ("v3:4x4", "v3", (4, 4), 32),  # two devices a chip
        # Cloud TPU types: cloud.google.com/tpu/docs/v5e, v6e (chips) and v4, v5p, v3 (cores)
        ("v5e-256", "v5e", (16, 16), 256),
        ("v5litepod-8", "v5e", (2, 4), 8),
        ("v6e-64", "v6e", (8, 8), 64),
        ("v4-8", "v4", (2, 2, 1), 4),
        ("v5p-128", "v5p", (4, 4, 4), 64),
        ("v5p-12288", "v5p", (16, 16, 24), 6144),
        ("v3-8", "v3", (2, 2), 8),
        ("v3-64", "v3", (4, 8), 64),
        # shapes of whole cubes, by the table of xpk (core/system_characteristics.py)
        ("v4-1536", "v4", (8, 8, 12), 768),
        ("v5p-384", "v5p", (4, 4, 12), 192),
        ("v5p-1152", "v5p", (4, 12, 12), 576),
        ("v5p-3072", "v5p", (8, 12, 16), 1536),
        ("v5p-6912", "v5p", (12, 12, 24), 3456),
        ("v5p-9984", "v5p", (8, 12, 52), 4992),
        ("H100:8", "h100", (1, 8), 8),
        ("h200:2x8", "h200", (2, 8), 16),
        ("cpu:8", "cpu", (8,), 8),
    ],
)
def test_names(name: str, kind: str, shape: tuple[int, ...], devices: int):
    found = parse(name)
    assert (found.kind, found.shape, found.size, found.name) == (kind, shape, devices, name)


def test_slices_are_of_tpus():
    assert parse("v5e:4x4", 4).size == 64
    assert parse("h200:4x8", 2).size == 32 and parse("cpu:8", 2).size == 8  # their names say all devices


@pytest.mark.parametrize(
    "name, says",
    [
        ("", "is not a topology"), ("v5e", "not a topology"), ("v5e:", "not a topology"), ("16x16", "not a topology"),
        ("v9:2x2", "no chip 'v9'"), ("v5e:4x4x4", "like v5e:4x4"), ("v5p:4x4", "like v5p:4x4x4"),
        ("h100:2x2x2", "like h100:8"), ("cpu:2x2", "like cpu:8"), ("cpu:0", "like cpu:8"),
        ("v5p-7", "v5p comes in 8, 16"), ("v5e-7", "v5e comes in 1, 4, 8"), ("v7x-8", "not a known Cloud TPU type"),
        ("v5e:4096x4096", "like v5e:4x4"),
    ],
)  # fmt: skip
def test_wrong_names_say_what_is_right(name: str, says: str):
    with pytest.raises(UserError, match=says) as caught:
        parse(name)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_name_or_a_user_error(name: str):
    try:
        assert parse(name).size >= 1
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 300


def test_the_environment_keeps_jax_off_the_hardware_and_other_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x --xla_force_host_platform_device_count=3")
    found = topologies.compiler_env(parse("cpu:5"))
    assert found["XLA_FLAGS"].split() == ["--xla_dump_to=/x", "--xla_force_host_platform_device_count=5"]
    assert {topologies.compiler_env(parse(name))["JAX_PLATFORMS"] for name in ("cpu:5", "v5e:2x4", "h100:8")} == {"cpu"}
    assert {"TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"} <= topologies.compiler_env(parse("v5e:2x4")).keys()


@pytest.mark.parametrize("name, package", [("v5e:2x4", "libtpu"), ("h100:8", "jax[cuda13]")])
def test_a_missing_compiler_is_one_line_with_what_to_install(name: str, package: str, monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install") as caught:
        topologies.check_installed(parse(name))
    assert package in str(caught.value) and "\n" not in str(caught.value)
    topologies.check_installed(parse("cpu:8"))


def test_cpu_devices_are_this_process_s():
    assert len(topologies.devices(parse("cpu:4"))) == 4
    with pytest.raises(UserError, match="CPU devices"):
        topologies.devices(parse("cpu:4096"))
    assert os.environ["JAX_PLATFORMS"] == "cpu"
