"""Elastic runs: preempted, and continued by fewer and by more processes, each of them a slice (`mesh.dcn: -1`).

`launch/local.py` rehearses them. The losses must be those of a run in one process that was not stopped.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gcs_server
import pytest
from gcs_server import Server

from bertjax.cli.main import main

ROOT = Path(__file__).parents[1]
LOCAL = ROOT / "launch" / "local.py"


def rehearse(home: Path, counts: str, devices: int, after: int, *words: str) -> str:
    """Runs `launch/local.py --processes COUNTS --preempt-after AFTER train ...` in `home` -> its output."""
    options = ["--processes", counts, "--devices", str(devices), "--preempt-after", str(after)]
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / f"elastic-{devices}"
    fast = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with subprocess.Popen(
        [sys.executable, str(LOCAL), *options, "train", *words], cwd=home, env=os.environ | fast, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as launcher:  # fmt: skip
        try:
            said, _ = launcher.communicate(timeout=3000)
        except BaseException:
            launcher.terminate()  # which ends its processes
            raise
    assert launcher.returncode == 0, said[-5000:]
    return said


def check_same(expected: str, found: str) -> int:
    """Compares the losses in two metrics.jsonl, every step once, to one part in 100,000 -> the number of resumes."""
    kinds = [[json.loads(line) for line in text.splitlines()] for text in (expected, found)]
    one, other = ([(m["stage"], m["step"], m["loss"]) for m in lines if m["kind"] == "train"] for lines in kinds)
    assert [place[:2] for place in one] == [place[:2] for place in other]
    assert len({round(loss, 5) for *_, loss in one}) > len(one) // 2  # they do differ from step to step
    for (stage, step, loss), (*_, again) in zip(one, other, strict=True):
        assert again == pytest.approx(loss, rel=1e-5), (stage, step)
    return sum(line.get("event") == "resume" for line in kinds[1])


SMALL = """\
model: {family: word2vec, vocab_size: 128, hidden_size: 16}
run: {name: tiny, log_every: 1, compute_dtype: float32, tensorboard: false, compilation_cache_dir: null,
  prepare_workers: 1, checkpoint: {save_every: 1000}}
mesh: {dcn: -1}
stages:
  - {name: pretrain, data: {source: {kind: text, files: [text.txt], layout: sentences},
    preprocess: {kind: text_rows, sequence_length: 32}}, objective: {kind: cbow}, steps: 150, batch_size: 1024,
    optimizer: {learning_rate: 2e-3}}
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("counts", ["2,1", pytest.param("2,1,2", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_fewer_and_with_more_processes(tiny_project: Path, tmp_path: Path, counts: str):
    """Vectors of words, which compile fast; BERT and T5 follow below. A signal takes effect some steps later, so steps
    are large enough that a signal late by seconds still finds the run."""
    (tmp_path / "small.yaml").write_text(SMALL)
    words = [str(tmp_path / "small.yaml"), f"run.prepared_dir={tmp_path}/prepared"]
    said = rehearse(tiny_project, counts, 1, 10, *words, f"run.root={tmp_path}/runs")
    with contextlib.chdir(tiny_project):
        assert main(["train", *words, f"run.root={tmp_path}/alone"]) == 0
    alone, run = tmp_path / "alone" / "tiny", tmp_path / "runs" / "tiny"
    stops = counts.count(",")
    assert check_same((alone / "metrics.jsonl").read_text(), (run / "metrics.jsonl").read_text()) == stops, said
    assert "was on 2 processes with 2 devices (dcn=2), now on 1 process with 1 device;" in said
    assert stops == 1 or "was on 1 process with 1 device, now on 2 processes with 2 devices (dcn=2);" in said
    assert [line for line in said.splitlines() if line.startswith("launch:")] == [
        "launch: SIGTERM to 1 of 2 processes", "launch: stopped (75), going on with 1 process",
        "launch: SIGTERM to 0 of 1 processes", "launch: stopped (75), going on with 2 processes",
    ][: 2 * stops]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_shards_micro_batches_and_episodes_go_on(tiny_project: Path, tmp_path: Path):
    """2 -> 1 -> 2 processes of two devices: FSDP in each slice, gradient accumulation, Muon; a stop in an episode."""
    words = [
        str(tiny_project / "tiny.yaml"), f"run.prepared_dir={tmp_path}/prepared", "mesh.dcn=-1", "mesh.fsdp=2",
        "stages.pretrain.batch_size=16", "stages.pretrain.grad_accum=2", "stages.pretrain.steps=30",
        "stages.pretrain.optimizer.learning_rate=1e-4", "stages.qa.steps=40",
        "stages.qa.optimizer={kind: muon, learning_rate: 1e-3, adam_learning_rate: 1e-3}",
        "stages.pretrain.evaluate=[]", "stages.qa.evaluate=[]", "run.checkpoint.save_every=1000",
    ]  # fmt: skip
    said = rehearse(tiny_project, "2,1,2", 2, 20, *words, f"run.root={tmp_path}/runs")
    with contextlib.chdir(tiny_project):
        assert main(["train", *words, f"run.root={tmp_path}/alone"]) == 0
    alone, run = tmp_path / "alone" / "tiny", tmp_path / "runs" / "tiny"
    assert check_same((alone / "metrics.jsonl").read_text(), (run / "metrics.jsonl").read_text()) == 2
    assert "was on 2 processes with 4 devices (dcn=2 fsdp=2), now on 1 process with 2 devices (fsdp=2);" in said
    assert re.search(r"note: qa \d+: was on 1 process with 2 devices \(fsdp=2\), now on 2 processes with 4", said)


# ---- four, two and four processes -----------------------------------------------------------------------------------

FAMILIES = {  # the debug configurations, shorter
    "bert": ("cpu", ["stages.pretrain.steps=40", "stages.qa.steps=24"], 16),
    "t5": ("t5_cpu", ["stages.pretrain.steps=14", "stages.multitask.steps=6", "stages.qa.steps=12"], 8),
}


@pytest.fixture(scope="module", params=FAMILIES)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], int, str]:
    """-> (configuration and overrides, steps of one start, metrics.jsonl of a run that was not stopped)."""
    config, steps, after = FAMILIES[request.param]
    place = tmp_path_factory.mktemp(request.param)
    words = [
        str(ROOT / f"configs/debug/{config}.yaml"), *steps, f"run.prepared_dir={place}/prepared", "run.name=run",
        "run.compute_dtype=float32", "run.log_every=1", "run.tensorboard=false", "run.compilation_cache_dir=null",
        "stages.pretrain.evaluate=[]", "stages.qa.evaluate=[]", "run.checkpoint.save_every=10", "mesh.dcn=-1",
    ]  # fmt: skip
    assert main(["train", *words, f"run.root={place}"]) == 0
    return words, after, (place / "run" / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with gcs_server.serve() as store:
        yield store


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_two_and_four_processes(alone: tuple[list[str], int, str], tmp_path: Path):
    words, after, expected = alone
    said = rehearse(tmp_path, "4,2,4", 1, after, *words, f"run.root={tmp_path}")
    assert check_same(expected, (tmp_path / "run" / "metrics.jsonl").read_text()) == 2
    assert "was on 4 processes with 4 devices (dcn=4), now on 2 processes with 2 devices (dcn=2);" in said


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of gcsfs
def test_four_two_and_four_processes_in_a_bucket(
    alone: tuple[list[str], int, str], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words, after, expected = alone
    server.objects = {"bucket": {}}
    gcs_server.install(server, tmp_path, monkeypatch)
    rehearse(tmp_path, "4,2,4", 1, after, *words, "run.root=gs://bucket/runs")
    assert check_same(expected, server.text("runs/run/metrics.jsonl")) == 2
    assert not server.names("runs/run/writer.lock")
