"""The table in docs/results/plans.md is what the compilers said, and they say it again (slow; needs libtpu or CUDA)."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bertjax.cli.main import COMMANDS, _parse

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "plans.json"
FOUND = json.loads(RESULTS.read_text(encoding="utf-8"))
# What is expected to cross between devices; anything else means that activations or rows travel.
PLAIN = {"all-reduce"}
SHARDED = {"all-reduce", "all-gather", "reduce-scatter"}


@pytest.fixture(scope="module")
def plans() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plans_benchmark", ROOT / "benchmarks" / "plans.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_was_compiled(plans):
    page = (ROOT / "docs" / "results" / "plans.md").read_text(encoding="utf-8")
    assert plans.table(FOUND) in page and plans.scaling(FOUND) in page


def test_every_row_has_the_command_that_made_it(plans):
    assert set(FOUND) <= {f"{name} {topology}" for name in plans.SUBJECTS for topology in plans.DEVICES}
    for key, one in FOUND.items():
        name, topology = key.split(" ")
        assert one["command"] == " ".join(plans.command(name, topology))
        arguments = _parse("plan", COMMANDS["plan"], shlex.split(one["command"])[2:])
        assert arguments is not None
        assert arguments.topology == topology and (ROOT / arguments.config).is_file()


@pytest.mark.parametrize("key", FOUND)
def test_nothing_unexpected_travels(key: str):
    """Copies send gradients alone, all of them once; sharded models gather weights and scatter gradients."""
    one = FOUND[key]
    if not one["fits"]:
        return
    split = {axis for axis, size in one["mesh"].items() if size > 1}
    kinds = {move["kind"] for move in one["collectives"]}
    assert kinds <= (PLAIN if split <= {"data", "dcn"} else SHARDED)
    if split <= {"data", "dcn"}:
        weights = one["memory"]["parameters"]
        # float32 weights; the partitioner may sum what a matmul in bfloat16 gave before it is made float32
        assert 0.5 * weights <= sum(move["bytes"] for move in one["collectives"]) <= 1.3 * weights


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("key", FOUND)
def test_the_compiler_says_it_again(plans, key: str):
    """Other versions of the compilers may move a little; a changed layout, kernel or collective shows."""
    if not plans.has_compiler(key.split(" ")[1]):
        pytest.skip("the compiler is not installed: pip install libtpu, or jax[cuda13]")
    before, now = FOUND[key], plans.compiled(shlex.split(FOUND[key]["command"]))
    assert now["fits"] is before["fits"]
    if before["memory"]["total"]:
        assert now["memory"]["total"] == pytest.approx(before["memory"]["total"], rel=0.1)
    if before["fits"]:
        assert now["attention"]["kernel"] == before["attention"]["kernel"]
        sums = [{move["kind"]: move["bytes"] for move in one["collectives"]} for one in (before, now)]
        assert sums[1] == pytest.approx(sums[0], rel=0.1)
