"""A device that is asked for and not there: one line before anything is read or written, in every command."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bertjax.config.schema.run import MeshConfig
from bertjax.errors import UserError
from bertjax.parallel import mesh

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "stages: [{name: s, steps: 1, data: {source: {files: [a.txt]}}}]\n"
NO_GPU = "--device gpu (JAX_PLATFORMS=cuda): jax finds no such device"


def bertjax(folder: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-m", "bertjax", *argv]
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=100)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="this machine has the device")
@pytest.mark.parametrize(
    ("argv", "platforms"),
    [
        (["train", "c.yaml", "--device", "gpu"], ""),
        pytest.param(["evaluate", ".", "--device", "gpu"], "", marks=pytest.mark.slow),
        pytest.param(["predict", "fill-mask", ".", "x", "--device", "gpu"], "", marks=pytest.mark.slow),
        pytest.param(["inspect", "c.yaml"], "cuda", marks=pytest.mark.slow),
        pytest.param(["import", ".", "out"], "cuda", marks=pytest.mark.slow),
        pytest.param(["export", ".", "out"], "cuda", marks=pytest.mark.slow),
        pytest.param(["verify"], "cuda", marks=pytest.mark.slow),
    ],
)
def test_it_is_said_in_one_line_with_what_there_is_and_what_to_install(tmp_path, argv, platforms):
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "a.txt").write_text("One sentence.\n")
    done = bertjax(tmp_path, *argv, JAX_PLATFORMS=platforms)
    assert done.returncode == 2 and done.stdout == "", done
    lines = [line for line in done.stderr.splitlines() if " ... | " not in line]  # of a start that takes over 5 s
    assert len(lines) == 1 and lines[0].startswith(NO_GPU)
    assert "x cpu; " in done.stderr and "bertjax[cuda13]" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "c.yaml"]


@pytest.mark.parametrize(
    ("platforms", "error", "said"),
    [
        ("cuda", AssertionError(), NO_GPU + "; this machine has"),
        ("tpu", RuntimeError("Unable to initialize backend 'tpu': no (set JAX_PLATFORMS='')"),
         "--device tpu (JAX_PLATFORMS=tpu): jax finds no such device (Unable to initialize backend 'tpu': no); "),
        ("rocm", RuntimeError("not known"), "JAX_PLATFORMS=rocm: jax finds no such device (not known); "),
    ],
)  # fmt: skip
def test_whatever_jax_raises_is_worded(monkeypatch, platforms, error, said):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(mesh, "_available_devices", lambda: "1 x cpu")
    monkeypatch.setattr(jax, "devices", fail)
    for ask in (mesh.all_devices, lambda: mesh.make_mesh(MeshConfig())):
        with pytest.raises(UserError) as caught:
            ask()
        assert str(caught.value).startswith(said)
