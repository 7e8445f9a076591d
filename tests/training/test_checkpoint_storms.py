"""CheckpointManager under stress: flipped bits, broken files, kill -9, full disks, concurrent use."""

import json
import logging
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tally

from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import UserError
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.reader import CheckpointReader

pytestmark = pytest.mark.slow


def make_tree(step: int) -> dict[str, Any]:
    """Incompressible, so that a flipped bit changes a value and not a code."""
    rng = np.random.default_rng(step)
    return {
        "params": {"w": jnp.asarray(rng.standard_normal((40, 50)), jnp.float32), "b": jnp.full(3, step, jnp.float32)},
        "opt": {"mu": jnp.asarray(rng.standard_normal((40, 50)), jnp.float32), "count": jnp.int32(step)},
        "step": jnp.int32(step),
        "key": jax.random.key(step),
    }


def abstract() -> dict[str, Any]:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_tree(0))


def bits(tree: dict[str, Any]) -> bytes:
    plain = {**tree, "key": jax.random.key_data(tree["key"])}
    return b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(plain))


def save(folder: Path, *steps: int) -> None:
    with CheckpointManager(folder, CheckpointPolicy()) as ck:
        for step in steps:
            ck.save(step, make_tree(step), {"step": step})


def reader(folder: Path) -> CheckpointReader:
    return CheckpointReader(folder)


def files_of(step: Path) -> list[Path]:
    return sorted(p for p in step.rglob("*") if p.is_file())


def test_no_flipped_bit_is_silent(tmp_path: Path) -> None:
    save(tmp_path, 7)
    expected = bits(make_tree(7))
    wanted = abstract()
    rng = random.Random(0)
    arrays = [p for p in files_of(tmp_path / "7") if p.parent.name == "d"]
    every = files_of(tmp_path / "7")
    weights = [p.stat().st_size for p in arrays]
    caught = {"arrays": 0, "any file": 0}
    plan = [("arrays", p) for p in rng.choices(arrays, weights, k=60)] + [("any file", p) for p in every * 3]
    for kind, path in plan:
        sound = path.read_bytes()
        broken = bytearray(sound)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            step, tree, meta = reader(tmp_path).restore(wanted, step=7)
            assert (step, meta, bits(tree)) == (7, {"step": 7}, expected), f"silent: {path}"
        except UserError as error:
            assert "damaged" in str(error)
            caught[kind] += 1
        path.write_bytes(sound)
    assert caught["arrays"] >= 40 and caught["any file"] >= 10, caught
    assert bits(reader(tmp_path).restore(wanted)[1]) == expected
    found = sum(caught.values())
    tally.add(
        "a bit changed in a checkpoint",
        "one random bit; else it is in bytes that nothing reads",
        len(plan),
        detected=found,
    )


HARMS: dict[str, Callable[[Path], None]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "deleted": lambda path: path.unlink(),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
}


@pytest.mark.parametrize("harm", HARMS)
def test_any_broken_file_of_the_newest_step(tmp_path: Path, harm: str) -> None:
    """Back to the older step, or, when the file is not needed, the newest one whole. Nothing else."""
    save(tmp_path / "sound", 10, 20)
    wanted = abstract()
    went_back = 0
    names = [p.relative_to(tmp_path / "sound") for p in files_of(tmp_path / "sound" / "20")]
    for name in names:
        broken = tmp_path / "broken"
        shutil.copytree(tmp_path / "sound", broken)
        HARMS[harm](broken / name)
        with CheckpointManager(broken, CheckpointPolicy()) as ck:
            step, tree, meta = ck.restore(wanted)
            assert meta == {"step": step} and bits(tree) == bits(make_tree(step)), name
            assert ck.committed_steps() == ([10] if step == 10 else [10, 20])
            ck.save(30, make_tree(30), {"step": 30})
            ck.wait()
            assert ck.committed_steps()[-1] == 30
        went_back += step == 10
        shutil.rmtree(broken)
    assert went_back >= 4, (went_back, names)
    tally.add(
        f"a file of the newest step {harm}", "each file once; else it is not needed", len(names), detected=went_back
    )


def run_python(code: str, *args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve()
    paths = os.pathsep.join([str(here.parents[2]), str(here.parent), str(here.parents[1] / "kit")])
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": paths}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, **kwargs)


# The parent imports everything and forks each worker before any backend exists: a worker starts in well under a second.
KILLS = """
import os, random, signal, sys, time, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
import jax, numpy as np
import test_checkpoint_storms as storms
from bertjax.config.schema.run import CheckpointPolicy
from bertjax.training.checkpoint.manager import CheckpointManager

def worker(folder, commits):
    log = os.open(commits, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    policy = CheckpointPolicy(keep_last=2)
    ck = CheckpointManager(folder, policy, on_commit=lambda step, s: os.write(log, f"{step}\\n".encode()))
    wanted = storms.abstract()
    step = 0
    if ck.committed_steps():
        listed = ck.committed_steps()
        for each in listed:  # every listed step is whole
            found = storms.reader(folder).restore(wanted, step=each)
            assert storms.bits(found[1]) == storms.bits(storms.make_tree(each)), each
        step, tree, meta = ck.restore(wanted)
        assert step == listed[-1]
    os.write(log, f"start {step}\\n".encode())
    while True:
        step += 1
        ck.save(step, storms.make_tree(step), {"step": step})

folder, commits = Path(sys.argv[1]), sys.argv[2]
rng = random.Random(1)
for kill in range(int(sys.argv[3]) + 1):
    before = Path(commits).read_text().count("start") if os.path.exists(commits) else 0
    child = os.fork()
    if child == 0:
        try:
            worker(folder, commits)
        except BaseException as error:
            print(f"worker: {type(error).__name__}: {error}", flush=True)
        os._exit(1)
    end = time.monotonic() + 120
    while not os.path.exists(commits) or Path(commits).read_text().count("start") == before:
        assert time.monotonic() < end and os.waitpid(child, os.WNOHANG)[0] == 0, "the worker did not start"
        time.sleep(0.01)
    wanted, since = rng.randint(0, 4), len(Path(commits).read_text().splitlines())
    while len(Path(commits).read_text().splitlines()) < since + wanted:
        assert time.monotonic() < end and os.waitpid(child, os.WNOHANG)[0] == 0, "the worker does not commit"
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_kill_9_loses_no_committed_step(tmp_path: Path) -> None:
    done = run_python(KILLS, str(tmp_path / "ck"), str(tmp_path / "commits"), "10")
    assert done.returncode == 0 and "worker:" not in done.stdout, done.stdout + done.stderr[-2000:]
    newest = 0
    starts = []
    for line in (tmp_path / "commits").read_text().splitlines():
        if line.startswith("start"):
            starts.append(int(line.split()[1]))
            assert starts[-1] >= newest, "a committed step was lost"
        else:
            newest = int(line)
    assert len(starts) == 11 and newest >= 10
    assert not (tmp_path / "ck" / "quarantine").exists()
    tally.add("process killed", "SIGKILL at a random time of saves in a row", 10)


FULL = """
import os, resource, sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
import jax.numpy as jnp, numpy as np
import test_checkpoint_storms as storms
from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import BertjaxError
from bertjax.training.checkpoint.manager import CheckpointManager

draw = np.random.default_rng(0).standard_normal
tree = {"params": {f"w{i}": jnp.asarray(draw(12_500), jnp.float32) for i in range(40)}}
commits = []
ck = CheckpointManager(Path(sys.argv[1]), CheckpointPolicy(keep_last=1), on_commit=lambda step, s: commits.append(step))
ck.save(1, tree, {"step": 1})
ck.wait()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
for step in (2, 3):
    try:
        ck.save(step, tree, {"step": step})
        ck.wait()
        print("saved", step)
    except BertjaxError as error:
        print(f"{error.exit_code}|{error}")
print("steps", ck.committed_steps(), commits, sorted(os.listdir(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
ck.save(3, tree, {"step": 3})
ck.close()
print("steps", ck.committed_steps(), commits)
"""


def test_a_full_disk_is_one_line_and_costs_no_step(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = run_python(FULL, str(tmp_path))
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 4, done.stdout + done.stderr
    for line, step in zip(lines[:2], (2, 3), strict=True):
        said = "could not be written: File too large; make room and run the same command again"
        assert line == f"4|{tmp_path}/{step}: {said}"
    assert lines[2] == "steps [1] [1] ['1', 'writer.lock']"
    assert lines[3] == "steps [3] [1, 3]"
    assert done.stderr == ""  # no traceback of Orbax's
    tally.add("full disk", "a limit on the size of files", 2, detected=2)


BROKEN = """
import logging, sys, warnings
warnings.filterwarnings("ignore")
logging.basicConfig(format="%(message)s")
from pathlib import Path
import test_checkpoint_storms as storms
from bertjax.config.schema.run import CheckpointPolicy
from bertjax.training.checkpoint.manager import CheckpointManager
with CheckpointManager(Path(sys.argv[1]), CheckpointPolicy()) as ck:
    print(ck.restore(storms.abstract())[0])
"""


def test_going_back_says_one_line_on_stderr(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    for path in files_of(tmp_path / "20"):
        if path.parent.name == "d":
            HARMS["zeroed"](path)
    done = run_python(BROKEN, str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1 and "step 20 is damaged" in done.stderr, done.stderr


def test_readers_beside_a_writer_that_deletes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = abstract()
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with CheckpointManager(tmp_path, CheckpointPolicy(keep_last=1)) as ck:
                step = 0
                while not stop.is_set():
                    step += 1
                    ck.save(step, make_tree(step), {"step": step})
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    try:
        end = time.monotonic() + 30
        while not reader(tmp_path).committed_steps() and time.monotonic() < end:
            time.sleep(0.02)
        with caplog.at_level(logging.WARNING):
            end, n = time.monotonic() + 60, 0
            while time.monotonic() < end and (n < 40 or len(set(seen)) < 6):
                n += 1
                if n % 2:
                    step, tree, meta = reader(tmp_path).restore(wanted)
                    assert bits(tree) == bits(make_tree(step))
                else:
                    step, params, meta = reader(tmp_path).restore_params(wanted["params"])
                    np.testing.assert_array_equal(np.asarray(params["w"]), np.asarray(make_tree(step)["params"]["w"]))
                assert meta == {"step": step}
                seen.append(step)
    finally:
        stop.set()
        writer.join()
    assert not failures and not caplog.records and seen == sorted(seen) and len(set(seen)) >= 6


PAIR = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
from pathlib import Path
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import test_checkpoint_storms as storms
from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import BertjaxError
from bertjax.training.checkpoint import layout
from bertjax.training.checkpoint.manager import CheckpointManager
from jax.experimental import multihost_utils

lead = jax.process_index() == 0
mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
def placed(step):
    where = lambda x: NamedSharding(mesh, P("fsdp") if x.ndim == 2 else P())
    tree = jax.tree.map(np.asarray, {k: v for k, v in storms.make_tree(step).items() if k != "key"})
    tree = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, where(x), lambda i: x[i]), tree)
    key = jax.jit(jax.random.key, static_argnums=0, out_shardings=NamedSharding(mesh, P()))(step)
    return {**tree, "key": key}
def same(tree, step):
    full = placed(step)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(full)):
        a, b = [jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b)]
        for s, t in zip(a.addressable_shards, b.addressable_shards):
            np.testing.assert_array_equal(np.asarray(s.data), np.asarray(t.data))
folder = Path(sys.argv[1])
wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed(0))
commits = []
with CheckpointManager(folder, CheckpointPolicy(keep_last=2), on_commit=lambda step, s: commits.append(step)) as ck:
    for step in (1, 2, 3):
        ck.save(step, placed(step), {"step": step})
    ck.wait()
    multihost_utils.sync_global_devices("saved")
    assert ck.committed_steps() == [2, 3] and commits == ([1, 2, 3] if lead else [])
    if lead:  # a file that only process 1 reads
        for path in (folder / "3" / "state" / "ocdbt.process_1" / "d").iterdir():
            storms.HARMS["zeroed"](path)
    multihost_utils.sync_global_devices("damaged")
    step, tree, meta = ck.restore(wanted)
    assert step == 2 and meta == {"step": 2}
    same(tree, 2)
    multihost_utils.sync_global_devices("restored")
    assert ck.committed_steps() == [2]
    ck.save(3, placed(3), {"step": 3})
    try:
        ck.restore(wanted, step=9)
    except BertjaxError as error:
        print(json.dumps(str(error)))
    ck.wait()
    same(ck.restore(wanted)[1], 3)
print("done", jax.process_index())
"""


def test_two_processes_agree(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    results: dict[int, subprocess.CompletedProcess[str]] = {}

    def run(rank: int) -> None:
        results[rank] = run_python(PAIR, str(tmp_path / "ck"), address, str(rank))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank, done in results.items():
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        message, last = done.stdout.splitlines()[-2:]  # after what gloo prints
        assert "there is no step 9; complete steps: 2, 3" in json.loads(message) and last == f"done {rank}"
    found = reader(tmp_path / "ck").restore(abstract())  # one process reads what two wrote
    assert found[0] == 3 and bits(found[1]) == bits(make_tree(3))
