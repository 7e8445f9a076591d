"""Which XLA flags a step is compiled with, and that jax hands them to the compiler."""

import jax
import jax.numpy as jnp
import pytest

from bertjax.parallel import xla_flags
from bertjax.parallel.xla_flags import FLAGS, Flag, compiler_options


def test_flags_by_platform_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Flag("gpu", "xla_gpu_one", True, False, "", least_devices=2)
    monkeypatch.setattr(xla_flags, "FLAGS", (one, Flag("gpu", "xla_gpu_two", None, 3, ""), Flag("tpu", "t", 5, 6, "")))
    assert compiler_options("gpu", 8, {}) == {"xla_gpu_one": True}
    assert compiler_options("gpu", 1, {}) == {}
    assert compiler_options("tpu", 1, {}) == {"t": 5}
    assert compiler_options("cpu", 8, {}) == {}


@pytest.mark.parametrize("given", ["--xla_gpu_one=false", "--xla_dump_to=/x --xla_gpu_one", "'--xla_gpu_one=true'"])
def test_the_user_s_value_stays(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_flags, "FLAGS", (Flag("gpu", "xla_gpu_one", True, False, ""),))
    assert compiler_options("gpu", 8, {"XLA_FLAGS": given}) == {}
    assert compiler_options("gpu", 8, {"XLA_FLAGS": "--xla_gpu_one_more=1"}) == {"xla_gpu_one": True}


def test_an_ablation_adds_to_the_flags_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    one = Flag("gpu", "xla_gpu_one", True, False, "")
    monkeypatch.setattr(xla_flags, "FLAGS", (one,))
    found = one.environment()
    assert found == {"XLA_FLAGS": "--xla_dump_to=/x --xla_gpu_one=false"}
    assert compiler_options("gpu", 8, found) == {}
    assert Flag("tpu", "xla_tpu_two", None, 7, "").environment() == {"LIBTPU_INIT_ARGS": "--xla_tpu_two=7"}


def test_every_flag_is_described_once_and_changed_by_its_ablation() -> None:
    assert len({(flag.platform, flag.name) for flag in FLAGS}) == len(FLAGS)
    for flag in FLAGS:
        assert flag.name.startswith("xla_") and flag.why and flag.ours != flag.other


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.platform == "gpu"], ids=lambda flag: flag.name)
def test_jax_knows_the_flags_of_gpus(flag: Flag) -> None:
    """They are options of every XLA; those of TPUs only libtpu knows (tests/test_aot_tpu.py)."""
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    lowered.compile(compiler_options={flag.name: flag.other})
    with pytest.raises(Exception, match="No such compile option"):
        lowered.compile(compiler_options={flag.name + "_not": flag.other})
