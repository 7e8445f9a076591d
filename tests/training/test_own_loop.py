"""Loops around the compiled step: the losses of `train` to the bit; checkpoints that `train` and Orbax read."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

import bertjax
from bertjax.errors import UserError

QUIET = {"run": {"checkpoint": {"save_every": 100}}}
PLAIN_ORBAX = """\
import sys
import jax, numpy, orbax.checkpoint as ocp

path, reader = sys.argv[1], ocp.PyTreeCheckpointer()
as_numpy = lambda leaf: ocp.RestoreArgs(restore_type=numpy.ndarray)
wanted = jax.tree.map(as_numpy, dict(reader.metadata(path).item_metadata.tree))
params = reader.restore(path, restore_args=wanted)["params"]

assert jax.device_count() == 1 and "bertjax" not in sys.modules
numpy.save(sys.argv[2], params["layers"]["1"]["mlp"]["output"]["kernel"])
"""


def losses(run: Path, stage: str) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train" and line["stage"] == stage]


def test_the_losses_are_those_of_train_while_layers_thaw(tiny_project, tmp_path, monkeypatch, one_device):
    monkeypatch.chdir(tiny_project)
    here = dict(QUIET, **{"run.root": tmp_path})
    run = bertjax.train("tiny.yaml", **here).run_dir
    program = bertjax.build_program(bertjax.load(run / "config.yaml"), "qa")
    assert program.steps == 6 and len(program.episodes) == 2 and program.mesh.size == 1
    state, found = program.init_state(), []
    for episode in program.episodes:
        state = program.unfreeze(state, episode)
        step = program.jit_step(state)
        for batch in program.batches(episode.start, episode.stop):
            state, metrics = step(state, batch)
            found.append(float(metrics["loss"]))
    assert found == losses(run, "qa") and int(state.step) == 6
    first = next(bertjax.batches(run / "config.yaml", "qa", start=2))
    np.testing.assert_array_equal(first["input_ids"], list(program.batches(0, 3))[2]["input_ids"])
    with pytest.raises(UserError, match="there is no stage 'q'; the stages are pretrain, qa"):
        bertjax.build_program("tiny.yaml", "q")


def test_models_are_built_in_any_thread():
    from bertjax.config.schema.model import BertConfig
    from bertjax.models.registry import abstract_model

    tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16)
    here = abstract_model(tiny, ("mlm",))[0]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(abstract_model, tiny, ("mlm",)).result()[0] == here


@pytest.mark.slow
def test_eight_devices_and_a_checkpoint_for_train_and_for_plain_orbax(tiny_project, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_project)
    stages = {"stages.pretrain.steps": 3, "stages.pretrain.evaluate": []}
    changes = dict(QUIET, mesh={"data": 4, "fsdp": 2}, **{"run.root": tmp_path}, **stages)
    config = bertjax.load("tiny.yaml")
    config = config.model_copy(update={"stages": config.stages[:1]})
    trained = bertjax.train(config, **changes)

    program = bertjax.build_program(config, **changes, **{"run.name": "own"})
    state = program.init_state()
    step = program.jit_step(state)
    found = []
    for batch in program.batches(stop=2):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    assert len(batch["input_ids"].sharding.device_set) == jax.device_count() == 8
    assert found == losses(trained.run_dir, "pretrain")[:2]

    saved = program.save(state)
    assert saved == tmp_path / "own/checkpoints/00-pretrain/2"
    continued = bertjax.train(program.config)  # which restores step 2
    assert losses(continued.run_dir, "pretrain") == losses(trained.run_dir, "pretrain")[2:]

    kernel = state.params["layers/1/mlp/output/kernel"]
    plain = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PATH": ""}
    command = [sys.executable, "-c", PLAIN_ORBAX, str(saved / "state"), str(tmp_path / "kernel.npy")]
    done = subprocess.run(command, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "kernel.npy"), kernel)
    assert PLAIN_ORBAX.split("\n\n")[1].replace("sys.argv[1]", "STEP") in _page("python.md")


def _page(name: str) -> str:
    return (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")
