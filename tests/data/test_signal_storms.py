"""`bertjax prepare` under signals at random times: each leaves with the documented code, and the next one goes on."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tally
from preparing import WORDS, sentence

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys

if __name__ == "__main__":
    from bertjax.__main__ import main
    from bertjax.data.jobs import job_plan, tokenize
    job_plan.MIN_POOL_TOKENS = tokenize.MIN_POOL_BYTES = 0
    job_plan.MIN_SHARD_TOKENS = job_plan.MAX_SHARD_TOKENS = 10_000
    sys.argv[1:] = ["prepare", "c.yaml", "--workers", "2"]
    main()
"""
CONFIG = """\
model: {vocab_size: %d, hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1, intermediate_size: 32}
tokenizer: {path: vocab.txt}
run: {compilation_cache_dir: null, tensorboard: false, prepared_dir: prepared}
tasks: {t: {source: {kind: text, files: ["part-*.txt"]}, preprocess: {sequence_length: 32, dupe_factor: 4}}}
stages: [{name: s, data: t, steps: 1, batch_size: 2}]
"""
SAID = "stopped; what is finished is kept: run the same command again"
LIMIT = 20.0  # seconds to leave in, on a machine that is busy


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    import numpy as np

    rng = np.random.default_rng(0)
    for part in range(3):
        blocks = ["\n".join(sentence(rng, 9) for _ in range(12)) for _ in range(60)]
        (tmp_path / f"part-{part}.txt").write_text("\n\n".join(blocks))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (tmp_path / "c.yaml").write_text(CONFIG % len(pieces))
    (tmp_path / "script.py").write_text(SCRIPT)
    yield tmp_path


def start(project: Path) -> subprocess.Popen:
    """A preparation that has begun to handle signals: what comes before that is Python's own start."""
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}, start_new_session=True,
    )  # fmt: skip
    while not caught(process.pid) >> (signal.SIGTERM - 1) & 1:
        assert process.poll() is None
        time.sleep(0.005)
    return process


def finish(project: Path) -> None:
    process = start(project)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def caught(pid: int) -> int:
    """The mask of the signals that a process has handlers for."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("SigCgt:")[1].split()[0], 16)


def workers_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def storm(project: Path, times: int, seed: int) -> list[tuple[int, str]]:
    """Signals at random times, to the process or to its group -> code and last line of each."""
    rng, began = random.Random(seed), time.monotonic()
    finish(project)
    lasts = time.monotonic() - began
    ends = []
    for number in range(times):
        if number % 4 == 0:  # else it goes on where the one before left
            subprocess.run(["rm", "-rf", "prepared"], cwd=project, check=True)
        process = start(project)
        time.sleep(rng.uniform(0, 0.8 * lasts))
        sent = signal.SIGINT if number % 5 == 4 else signal.SIGTERM
        os.killpg(process.pid, sent) if number % 2 else process.send_signal(sent)
        _, err = process.communicate(timeout=LIMIT)
        lines = [line for line in err.splitlines() if not line.startswith(("bertjax prepare ...", "t: "))]
        ends.append((process.returncode, lines[-1] if lines else ""))
    finish(project)  # whatever is in the folder
    return ends


@pytest.mark.slow
def test_forty_signals(project):
    ends = storm(project, 40, seed=2)
    for code, line in ends:
        said = (SAID, "stopped; run the same command again", "interrupted")
        assert (code in (75, 130) and line in said) or code == 0, (code, line, ends)
    assert sum(code == 75 for code, _ in ends) >= 25
    stopped = sum(code != 0 for code, _ in ends)
    tally.add("`prepare` signalled", "SIGTERM or SIGINT at a random time; else it had finished", 40, detected=stopped)


@pytest.mark.slow
def test_killed_workers_while_packing(project):
    """SIGKILL as from the kernel's out-of-memory killer, alone and with a SIGTERM right after it."""
    for number in range(6):
        subprocess.run(["rm", "-rf", "prepared"], cwd=project, check=True)
        process = start(project)
        while not (done := list(project.glob("prepared/.*.work2/corpus-done/*.json"))) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.1 * number)
        for worker in workers_of(process.pid)[1:2]:  # the first child is Python's resource tracker
            os.kill(worker, signal.SIGKILL)
        if number % 2:
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode in ((2, 75, 0) if number % 2 else (2, 0)), err
        assert done and "Traceback" not in err
    finish(project)
