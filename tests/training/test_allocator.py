"""Freed memory stays with a CPU run: what the setting is for is that a step takes no page faults."""

import json
import subprocess
import sys

import pytest

from bertjax.parallel import host_allocator

STEPS = """
import json, resource, sys
from bertjax.parallel.host_allocator import keep_freed_memory
told = sys.argv[1] == "keep" and keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sin(jnp.sin(x) @ jnp.cos(x)).sum())
x = jnp.ones((3000, 3000))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    float(step(x))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([told, min([faults() for _ in range(8)][3:])]))
"""


def run(mode: str) -> list:
    done = subprocess.run([sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_step_takes_its_memory_without_page_faults():
    told, faults = run("keep")
    if not told:
        pytest.skip("the C library is not glibc")
    if faults >= 500:
        faults = run("keep")[1]  # a kernel short of memory takes pages back: ask once more
    assert faults < 500 < run("leave")[1]


@pytest.mark.parametrize(
    ("asked", "files", "expected"),
    [
        ("cpu", ["nvidia0"], True),
        ("cuda", [], False),
        ("", ["accel0"], False),
        ("", ["nvidia0"], False),
        ("", [], True),
    ],
)
def test_which_machine_is_a_cpu_machine(monkeypatch, asked, files, expected):
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr(host_allocator.Path, "exists", lambda path: path.name in files)
    assert host_allocator.cpu_only() is expected
