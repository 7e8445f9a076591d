"""`bertjax plan`: what it says, in words and as JSON, and how it ends."""

import json
import sys

import jax
import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.plan import memory, report, stages, subprocess_runner, sweep, topologies
from bertjax.plan.compile import CompileResult
from bertjax.plan.handle_request import handle_request
from bertjax.plan.sweep import MeshShape, candidate_meshes, divisors, format_overrides, smallest_batch


@pytest.fixture
def gpus(monkeypatch):
    """The CPU devices of this process in the place of H100s: a data sheet, and no compiler for it."""
    monkeypatch.setattr(topologies, "devices", lambda topology: jax.devices()[: topology.size])


def ask(path, topology: str, *overrides: str, **wanted) -> tuple[str, bool]:
    request = {"config": load(path, overrides).model_dump(mode="json"), "name": "my.yaml", "topology": topology}
    return handle_request(
        request | {"stage": None, "episode": None, "sweep": False, "limit": 2, "json": False} | wanted
    )


@pytest.fixture(scope="module")
def planned(tiny_project) -> str:
    """One stage on eight GPUs, as JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topologies, "devices", lambda topology: jax.devices()[: topology.size])
        text, good = ask(
            tiny_project / "tiny.yaml", "h100:8", "mesh.data=4", "mesh.fsdp=2", stage="pretrain", json=True
        )
    assert good
    return text


def test_the_plan_as_json(planned: str):
    plan = json.loads(planned)
    (stage,) = plan["stages"]
    assert (plan["devices"], plan["slices"], plan["verdict"]) == (8, 1, "fits")
    assert stage["mesh"] == {"dcn": 1, "data": 4, "fsdp": 2, "tensor": 1}
    assert (stage["rows_per_device"], stage["positions_per_row"], stage["batch_sizes_in_steps_of"]) == (1, 32, 8)
    parts = {name: size for name, size in stage["memory"].items() if name not in ("total", "usable")}
    assert sum(parts.values()) == stage["memory"]["total"] < stage["memory"]["usable"]
    assert stage["memory"]["usable"] == int(84_942_979_072 * memory.GPU_MEMORY_FRACTION)
    roofline = stage["roofline"]
    assert roofline["collectives"] == pytest.approx(sum(row["seconds"] for row in stage["collectives"])) and (
        roofline["best"] <= roofline["step"] <= roofline["best"] + roofline["collectives"] + roofline["memory"]
    )
    assert roofline["tokens_per_second"] == pytest.approx(8 * 32 / roofline["step"])
    assert 0 < roofline["mfu"] < 1 and stage["flops"]["program"] > 0
    assert [one["names"] for one in stage["evaluations"]] == ["mlm"]


@pytest.mark.parametrize(
    ("topology", "slices", "dcn"), [("v5e:4x4", 1, 1), ("h100:2x8", 1, 2), ("h100:8", 1, 1), ("cpu:8", 1, 1)]
)
def test_counted_slices_are_those_of_the_topology(tiny_project, topology, slices, dcn):
    config = load(tiny_project / "tiny.yaml", ["mesh.dcn=-1"])
    found = topologies.parse(topology, config.mesh.dcn)
    assert found.slices == slices and topologies.count_slices(config, found).mesh.dcn == dcn
    fixed = load(tiny_project / "tiny.yaml", ["mesh.dcn=4"])
    assert topologies.count_slices(fixed, topologies.parse(topology, 4)).mesh.dcn == 4


def test_a_plan_says_how_many_slices_it_assumes(tiny_project, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(subprocess_runner, "compile_in_subprocess", lambda config, *_: asked.append(config.mesh) or 0)
    monkeypatch.setattr(subprocess_runner, "check_installed", lambda topology: None)
    words = ["plan", str(tiny_project / "tiny.yaml"), "--topology", "h100:2x4"]
    assert main([*words, "mesh.dcn=-1"]) == 0 and asked[-1].dcn == 2
    assert "note: mesh.dcn: -1 is planned as mesh.dcn=2, the slices of --topology h100:2x4" in capsys.readouterr().err
    assert main([*words, "mesh.dcn=2"]) == 0 and asked[-1].dcn == 2
    assert "note" not in capsys.readouterr().err
    assert main([*words, "mesh.dcn=-1", "stages.pretrain.batch_size=12"]) == 2
    assert "12 rows do not divide over 8 parts (dcn=2 data=4)" in capsys.readouterr().err


def test_the_plan_in_words(planned: str):
    text = report.format_text(json.loads(planned))
    assert "my.yaml on h100:8: 8 x cpu" in text and text.endswith("\nfits")
    for words in (
        "stage pretrain: mlm_nsp, mesh data=4 fsdp=2", "8 rows of 32 positions per step; 1 on each device",
        "optimizer state", "attention kernel: xla", "all-gather", "fsdp", "roofline, ms: compute", "MFU",
        "evaluation mlm: fits", "from data sheets",
    ):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) < 180


def test_what_does_not_fit_is_a_plan_too(planned: str):
    plan = json.loads(planned)
    plan["stages"][0] |= {"fits": False, "reason": "needs 90.00 GiB of 59.33 GiB"}
    assert not report.all_fit(plan) and report.format_text(plan).endswith("does not fit: stage pretrain")
    assert "DOES NOT FIT: needs 90.00 GiB" in report.format_text(plan)
    refused = json.loads(planned)
    refused["stages"][0]["evaluations"][0] |= {"fits": False, "reason": "needs more"}
    assert not report.all_fit(refused) and "evaluation mlm: DOES NOT FIT: needs more" in report.format_text(refused)


def test_a_compiler_s_refusal_is_a_plan_too(tiny_project, gpus, monkeypatch):
    refusal = CompileResult(
        1.0, reason="needs 20.50 GiB of the 15.75 GiB available to the compiler", required_bytes=22011707392
    )
    monkeypatch.setattr(stages, "compile_lowered", lambda *_, **__: refusal)
    text, good = ask(tiny_project / "tiny.yaml", "h100:8", stage="qa")
    assert not good and "DOES NOT FIT: needs 20.50 GiB" in text and "parameters, float32" in text
    found = json.loads(ask(tiny_project / "tiny.yaml", "h100:8", stage="qa", json=True)[0])
    assert found["stages"][0]["memory"]["total"] == 22011707392


def test_a_gpu_s_share_of_memory_is_the_environment_s():
    chip = topologies.parse("h100:8").chip
    assert memory.usable_bytes(chip, {}) == int(chip.memory * 0.75)
    assert memory.usable_bytes(chip, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".9"}) == int(chip.memory * 0.9)
    assert memory.usable_bytes(topologies.parse("v5e:2x4").chip, {}) == 16 * 2**30 and memory.usable_bytes(None) is None


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, says",
    [
        (["--topology", "v9:3"], "no chip 'v9'"),
        (["--topology", "cpu:8", "--stage", "nope"], "has no stage 'nope'; it has pretrain, qa"),
        (["--topology", "cpu:8", "--episode", "0"], "--episode: name a --stage: pretrain, qa"),
        (["--topology", "cpu:8", "--limit", "3"], "--limit: needs --sweep"),
        (["--topology", "cpu:8", "--stage", "qa", "--episode", "0", "--sweep"], "leave --episode out"),
        (["--topology", "cpu:8", "--episode", "-1"], "an integer, 0 or above"),
        (
            ["--topology", "cpu:3", "--stage", "pretrain"],
            "batch_size: 8 rows do not divide over 3 parts (data=3)",
        ),
        (["--topology", "v5e:2x4", "mesh.data=3"], "mesh: data=3 x fsdp=1 x tensor=1 does not fit 8 devices; set "),
        (["--topology", "cpu:2", "mesh.rules={embed: model}"], "mesh.rules.embed: no mesh axis 'model'; known: dcn,"),
        ([], "missing: --topology"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, tiny_project, capsys, monkeypatch):
    monkeypatch.setattr(subprocess_runner.subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be compiled"))
    assert main(["plan", str(tiny_project / "tiny.yaml"), *words]) == 2
    out = capsys.readouterr()
    assert says in out.err and out.err.count("\n") == 1 and not out.out


def run_child(tmp_path, monkeypatch, script: str, tiny_project) -> int:
    """The command with another program in the place of Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    return main(["plan", str(tiny_project / "tiny.yaml"), "--topology", "cpu:4"])


def test_the_compiling_process_has_its_environment_and_request(tmp_path, monkeypatch, tiny_project, capfd):
    script = f'cat > {tmp_path}/request; echo "$XLA_FLAGS $JAX_PLATFORMS $*" >&2; echo plan; exit 1'
    assert run_child(tmp_path, monkeypatch, script, tiny_project) == 1
    out = capfd.readouterr()
    assert out.out == "plan\n" and "device_count=4 cpu -P -m bertjax.plan" in out.err
    request = json.loads((tmp_path / "request").read_text())
    assert (request["topology"], request["stage"], request["limit"]) == ("cpu:4", None, 24)
    assert load(tiny_project / "tiny.yaml").model_dump(mode="json") == request["config"]


@pytest.mark.parametrize("code, gives", [(0, 0), (2, 2), (70, 70)])
def test_its_exit_code_is_ours(code: int, gives: int, tmp_path, monkeypatch, tiny_project):
    assert run_child(tmp_path, monkeypatch, f"cat > /dev/null; exit {code}", tiny_project) == gives


def test_a_compiler_that_dies_is_one_line(tmp_path, monkeypatch, tiny_project, capsys):
    assert run_child(tmp_path, monkeypatch, "cat > /dev/null; kill -ABRT $$", tiny_project) == 2
    out = capsys.readouterr()
    assert "the compiler ended with signal 6" in out.err and out.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu.yaml", "t5_cpu.yaml"])
def test_debug_configurations_from_the_command_line(config: str, capfd):
    words = ["plan", f"configs/debug/{config}", "--topology", "cpu:8", "mesh.data=4", "mesh.tensor=2", "--json"]
    assert main([*words, "--stage", "pretrain"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["device_kind"] == "cpu" and plan["verdict"] == "compiles; the memory of these devices is unknown"
    assert {row["over"] for row in plan["stages"][0]["collectives"]} >= {"data", "tensor"}


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_bad_input(tiny_project, capfd):
    config = str(tiny_project / "tiny.yaml")
    assert main(["plan", config, "--topology", "cpu:3", "--stage", "pretrain"]) == 2
    err = capfd.readouterr().err
    assert "stages.pretrain.batch_size: 8 rows do not divide over 3 parts (data=3); set 6 or 9" in err
    assert err.count("\n") == 1


# ---- sweep ----------------------------------------------------------------------------------------------------------


def test_shapes_fill_the_devices_and_divide_the_layers(tiny_project):
    config = load(tiny_project / "tiny.yaml", ["model.num_attention_heads=12", "model.hidden_size=48"])
    shapes = list(candidate_meshes(config, 64))
    assert shapes[0] == MeshShape(1, 1, 64) and all(s.tensor * s.fsdp * s.data == 64 for s in shapes)
    assert {s.tensor for s in shapes} == {1, 2, 4}  # 12 heads
    assert {s.fsdp for s in shapes if s.tensor == 1} == {1, 4, 16, 64} and len(set(shapes)) == len(shapes)
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


def test_the_first_batch_is_the_stage_s_or_the_next_that_divides(tiny_project):
    config = load(tiny_project / "tiny.yaml", ["stages.pretrain.batch_size=12", "stages.pretrain.grad_accum=2"])
    assert smallest_batch(config, config.stages[0], MeshShape(1, 1, 2)) == 12
    assert smallest_batch(config, config.stages[0], MeshShape(1, 2, 4)) == 16
    two = load(tiny_project / "tiny.yaml", ["mesh.dcn=2"])
    assert smallest_batch(two, two.stages[0], MeshShape(2, 1, 8)) == 16


@pytest.fixture
def pretend(monkeypatch, gpus):
    """Programs that need a MiB a row, half of that with remat dots and a quarter with full, and are as fast as wide."""

    def step(opened, site):
        run, rows = opened.config.run, opened.stage.batch_size
        total = rows * 2**20 // {"none": 1, "dots": 2, "full": 4}[run.remat]
        held = {"parameters": 1, "optimizer": 1, "total": total}
        speed = {
            "step": 1.0,
            "tokens_per_second": rows / opened.program.mesh.shape["data"],
            "mfu": 0.1,
            "bound": "memory",
        }
        fits = total <= site.usable_bytes
        return {"fits": fits, "reason": "" if fits else "too large", "memory": held, "roofline": speed}

    monkeypatch.setattr(sweep, "plan_step", step)

    def make(path, mib: int, limit: int, *changes: str) -> dict:
        config = load(path, changes)
        site = stages.Target(jax.devices()[:8], topologies.parse("h100:8").chip)
        monkeypatch.setattr(stages.memory, "usable_bytes", lambda chip: mib * 2**20)
        return sweep.sweep(config, config.stages[0], site, limit)

    return make


def test_a_sweep_recomputes_only_where_it_must(pretend, tiny_project):
    found = pretend(tiny_project / "tiny.yaml", 9, 100)
    assert {one["remat"] for one in found["ranked"] if one["batch_size"] == 8} == {"none"}
    assert {one["remat"] for one in found["ranked"] if one["batch_size"] == 16} == {"dots"}
    assert {one["remat"] for one in found["ranked"] if one["batch_size"] == 32} == {"full"}
    assert all(one["batch_size"] > 8 for one in found["unfit"])
    speeds = [one["roofline"]["tokens_per_second"] for one in found["ranked"]]
    assert speeds == sorted(speeds, reverse=True) and found["compiled"] == len(found["ranked"]) + len(found["unfit"])


def test_a_sweep_stops_at_its_limit(pretend, tiny_project, capsys):
    found = pretend(tiny_project / "tiny.yaml", 1000, 3)
    assert found["compiled"] == len(found["ranked"]) == 3
    progress = capsys.readouterr().err.splitlines()
    assert progress[0].startswith("1 of at most 3: data=8, 8 rows, remat none")


def test_a_sweep_skips_what_the_state_alone_fills(pretend, tiny_project, monkeypatch):
    monkeypatch.setattr(sweep.memory, "optimizer_bytes", lambda opened: 2**30)
    found = pretend(tiny_project / "tiny.yaml", 100, 50)
    assert found["compiled"] == 0 and not found["ranked"]
    assert {one["reason"] for one in found["unfit"]} == {"parameters and optimizer state exceed the memory"}
    assert {one["remat"] for one in found["unfit"]} == {"none"}


def test_the_table_and_the_overrides_of_the_best(pretend, tiny_project):
    found = pretend(tiny_project / "tiny.yaml", 9, 100) | {"config": "my.yaml", "topology": "h100:8", "devices": 8}
    text = sweep.format_sweep(found | {"device_kind": "NVIDIA H100"})
    best = format_overrides(found["ranked"][0], "pretrain")
    assert f"best: {best}" in text and "does not fit: " in text and "positions/s" in text
    changed = load(tiny_project / "tiny.yaml", best.split())
    assert changed.stages[0].batch_size == found["ranked"][0]["batch_size"]
    assert changed.mesh.data * changed.mesh.fsdp * changed.mesh.tensor == 8
    nothing = sweep.format_sweep(found | {"ranked": [], "device_kind": ""})
    assert nothing.endswith("nothing fits")


@pytest.mark.slow
def test_a_real_sweep_on_cpus_ranks_by_memory(tiny_project):
    text, good = ask(tiny_project / "tiny.yaml", "cpu:2", stage="pretrain", sweep=True)
    assert good and "2 compiled (--limit 2): 2 fit, by memory per row" in text
    assert text.splitlines()[3].startswith("mesh ") and "best: mesh.data=" in text
