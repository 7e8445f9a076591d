"""Several processes on one machine, joined by jax.distributed: the same batches, the same training, one record."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import gloo
import numpy as np
import pytest

from bertjax.config.loading.load import load
from bertjax.data.pipeline.loader import open_batches
from bertjax.training.checkpoint.layout import committed_steps
from bertjax.training.run_context import load_tokenizer, prepared_dir

PLACE = """
import sys
from pathlib import Path
import jax, numpy as np
from bertjax.config.loading.load import load
from bertjax.parallel import batches
from bertjax.parallel.multihost import initialize
from bertjax.training import loop, run_context
from bertjax.parallel.multihost.primary import primary_first
from bertjax.training.checkpoint.stage_files import StageFiles

initialize.initialize_distributed()
config, base = load("tiny.yaml", sys.argv[2:]), Path.cwd()
job = primary_first(lambda: run_context.open_run_context(config, base))
plan = primary_first(lambda: loop.open_stage(job, StageFiles(job.config, 0, job.base), None))
shards = {}
for k in range(3):
    rows = plan.batches.batch(k, plan.rows)
    placed = batches.place(rows, plan.program.batch_sharding(), plan.stage.batch_size)
    for name, array in placed.items():
        assert array.shape[0] == plan.stage.batch_size and len(array.addressable_shards) == 2
        for shard in array.addressable_shards:
            shards[f"{k}/{name}/{shard.index[0].start}"] = np.asarray(shard.data)
np.savez(f"{sys.argv[1]}-{jax.process_index()}.npz", **shards)
"""


def environment(devices: int, **more: str) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    cache = str(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / f"processes-{devices}")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    fast = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": paths} | fast | more


class Job:
    """The processes of one command; killed on the way out if a test fails."""

    def __init__(self, home: Path, words: list[str], processes: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.running = []
        for index in range(processes):
            names = {"COORDINATOR": address, "NUM_PROCESSES": str(processes), "PROCESS_ID": str(index)}
            joined = {f"BERTJAX_{name}": value for name, value in names.items()} if processes > 1 else {}
            self.running.append(
                subprocess.Popen(
                    [sys.executable, *words], cwd=home, env=environment(4 // processes, **joined),
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.kill()
            process.communicate()

    def ended(self, timeout: float = 240) -> list[tuple[int, str, str]]:
        """(exit code, standard output, standard error) of every process, without what Gloo says of itself."""
        found = []
        for process in self.running:
            out, err = process.communicate(timeout=timeout)
            found.append((process.returncode, gloo.without(out), err))
        return found


def train(home: Path, *overrides: str, processes: int = 1) -> Job:
    return Job(home, ["-m", "bertjax", "train", "tiny.yaml", *overrides], processes)


def learnt(run: Path) -> dict[tuple[str, int], dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    found = {(line["stage"], line["step"]): line for line in train}
    assert len(found) == len(train), "a step is there twice"
    return found


def test_two_processes_place_the_batches_of_one(tiny_project, tmp_path):
    overrides = [f"run.root={tmp_path}/runs", "stages.pretrain.grad_accum=2"]
    with Job(tiny_project, ["-c", PLACE, str(tmp_path / "shards"), *overrides], 2) as job:
        (code, said, err), (other_code, other_said, other_err) = job.ended()
    assert (code, other_code) == (0, 0), err + other_err
    assert said.count("examples in") == 1 and other_said == ""  # prepared once, and told once
    config = load(tiny_project / "tiny.yaml", overrides)
    tokenizer = load_tokenizer(config, tiny_project)
    batches = open_batches(config, config.stages[0], tokenizer, base=tiny_project, cache=prepared_dir(config))
    shards = [np.load(tmp_path / f"shards-{index}.npz") for index in (0, 1)]
    assert not set(shards[0]) & set(shards[1])
    for k in range(3):
        for name, expected in batches.batch(k).items():
            keys = [f"{k}/{name}/{start}" for start in (0, 2, 4, 6)]
            whole = np.concatenate([next(s[key] for s in shards if key in s) for key in keys])
            assert whole.dtype == expected.dtype and whole.tobytes() == expected.tobytes(), name


def test_bad_data_end_both_processes_with_2(tiny_project, tmp_path):
    with train(tiny_project, f"run.root={tmp_path}/runs", "tasks.text.source.files=[none.txt]", processes=2) as job:
        ended = job.ended()
    assert [code for code, _, _ in ended] == [2, 2], ended
    assert all("none.txt" in err for _, _, err in ended)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_keep_the_features_of_one(tiny_project, tmp_path):
    """Each encodes its rows of every batch and keeps those of all: the order of the next epoch asks for any of them."""
    overrides = [
        f"run.root={tmp_path}/runs", "stages.pretrain.steps=2", "stages.pretrain.evaluate=[]", "stages.qa.evaluate=[]",
        "stages.qa.trainable={kind: features, feature_layers: weighted}", "stages.qa.steps=20",
    ]  # fmt: skip
    for processes, name in ((1, "one"), (2, "two")):
        with train(tiny_project, *overrides, f"run.name={name}", processes=processes) as job:
            ended = job.ended(400)
        assert [code for code, _, _ in ended] == [0] * processes, ended
        assert "cached in" in ended[0][1], ended[0][1]
    one, other = (learnt(tmp_path / "runs" / name) for name in ("one", "two"))
    assert one.keys() == other.keys() and len(one) == 22
    for place, line in one.items():
        assert other[place]["loss"] == pytest.approx(line["loss"], abs=2e-5), place


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_by_two_processes_lost_stopped_and_finished_by_one(tiny_project, tmp_path):
    """Two processes, one killed; the same two, one told to stop; then a single one goes on to the end."""
    overrides = [
        f"run.root={tmp_path}/runs", "stages.pretrain.steps=200", "stages.qa.steps=6", "run.checkpoint.save_every=25",
        "stages.pretrain.optimizer.learning_rate=1e-4",
    ]  # fmt: skip
    run = tmp_path / "runs" / "two"
    with train(tiny_project, *overrides, "run.name=one") as job:
        ((code, _, err),) = job.ended()
        assert code == 0, err
    two = [*overrides, "run.name=two"]

    with train(tiny_project, *two, processes=2) as job:
        wait_for(run, 30)
        began = time.monotonic()
        job.running[1].send_signal(signal.SIGKILL)
        survivor = job.ended()[0]
        assert survivor[0] in (75, -signal.SIGABRT), survivor
        assert time.monotonic() - began < 30
    assert len(learnt(run)) < 200

    reached = len(learnt(run))
    with train(tiny_project, *two, processes=2) as job:
        wait_for(run, reached + 20)
        job.running[1].send_signal(signal.SIGTERM)
        ended = job.ended()
    assert [code for code, _, _ in ended] == [75, 75], ended
    assert ended[1][1] == "", "only the lead speaks"
    assert "run the same command again" in ended[0][2]
    stopped = committed_steps(run / "checkpoints" / "00-pretrain")[-1]
    assert max(learnt(run))[1] == stopped < 200, "the agreed step is saved and the last in the record"

    with train(tiny_project, *two) as job:
        ((code, said, err),) = job.ended()
    assert code == 0, err
    assert f"pretrain {stopped} | resume" in said
    one, other = learnt(tmp_path / "runs" / "one"), learnt(run)
    assert one.keys() == other.keys() and len(one) == 206
    for place, line in one.items():
        for name in ("loss", "grad_norm"):
            assert other[place][name] == pytest.approx(line[name], rel=1e-5 if name == "loss" else 1e-3), (place, name)
    counts = [[line[k] for k in ("mlm_accuracy", "nsp_accuracy")] for (stage, _), line in one.items() if stage != "qa"]
    assert len({tuple(c) for c in counts}) > 20  # the steps do differ from one another
    shutil.rmtree(run)


def wait_for(run: Path, lines: int) -> None:
    """Until the record of a run has so many steps."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text().count('"kind": "train"') >= lines:
            return
        time.sleep(0.02)
    raise AssertionError("the run does not get on")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_save_by_time_and_stop_early_together(tiny_project, tmp_path):
    """The primary process decides on both; a process that decided otherwise would wait for the others forever."""
    checkpoint = "{save_every: 100000, save_minutes: 0.02, keep_last: 99}"
    overrides = [
        f"run.root={tmp_path}/runs", "run.name=timed", f"run.checkpoint={checkpoint}", "stages.pretrain.steps=400",
        "stages.pretrain.evaluate.0.every=20", "stages.qa.steps=1", "stages.qa.trainable=all",
        "stages.pretrain.early_stopping={metric: mlm/mlm_loss, patience: 2, min_delta: 9}",
    ]  # fmt: skip
    with train(tiny_project, *overrides, processes=2) as job:
        ended = job.ended(timeout=500)
    assert [code for code, _, _ in ended] == [0, 0], ended
    steps = committed_steps(tmp_path / "runs" / "timed" / "checkpoints" / "00-pretrain")
    assert steps[-1] == 60, steps  # the first score, and two that are not better by 9
    assert [step for step in steps if step % 20], steps
    assert "stopped early at step 60 of 400" in ended[0][1]
    shutil.rmtree(tmp_path / "runs")
