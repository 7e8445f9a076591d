"""Kills a training run with SIGKILL again and again; what it learnt is compared with an uninterrupted run's.

    kill_storm.py PROJECT ROOT --kills N [--forget WHAT] [key.path=value ...]   -> one JSON object about what happened

This process imports everything and never touches a device, and every life of the run is a fork of it: a life then
starts in a second. `--forget slots`, `key` or `data` resumes without them: a run that must be found different.
"""

import argparse
import json
import os
import random
import signal
import time
import traceback
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = ""
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import jax.numpy as jnp

from bertjax.config.loading.load import load
from bertjax.config.schema.run import Config
from bertjax.data.pipeline.loader import Batches
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.training import loop
from bertjax.training.checkpoint.layout import committed_steps
from bertjax.training.stage import start as stage_start
from bertjax.training.state import TrainState

SAME = (
    "loss", "grad_norm", "learning_rate", "mlm_loss", "nsp_loss", "span_loss", "target_loss", "target_loss/spans",
    "mlm_accuracy", "span_accuracy", "target_accuracy",
)  # fmt: skip
Seen = dict[tuple[str, int], tuple[Any, ...]]


def fork(config: Config, base: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        loop.train(config, base, build_evaluators)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def seen(run: Path) -> Seen:
    """(stage, step) -> its numbers; JSON keeps every bit of a float. A line cut by a kill is none."""
    found: Seen = {}
    path = run / "metrics.jsonl"
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if fields["kind"] == "train":
            place = (fields["stage"], fields["step"])
            assert place not in found, f"{place} is there twice"
            found[place] = tuple(fields.get(name) for name in SAME)
    return found


def newest(run: Path) -> tuple[int, int]:
    """(stage, step) of the newest checkpoint."""
    folders = sorted((run / "checkpoints").glob("[0-9]*"))
    found = [(number, steps[-1]) for number, folder in enumerate(folders) if (steps := committed_steps(folder))]
    return max(found, default=(0, 0))


def arrays(run: Path) -> Any:
    """Digests of all arrays of the last checkpoint of every stage: parameters, slots and key."""
    last = [folder / str(committed_steps(folder)[-1]) for folder in sorted((run / "checkpoints").iterdir())]
    return [json.loads((step / "digest" / "metadata").read_text())["leaves"] for step in last]


def live_and_die(config: Config, base: Path, rng: random.Random, recoveries: list[float]) -> bool:
    """One life of the run, ended by SIGKILL at a random moment of its start or of its training; False: it finished.

    Adds the seconds to the first line of a resumed life to `recoveries`.
    """
    path, began = config.run_dir / "metrics.jsonl", time.monotonic()
    old = path.stat().st_ino if path.exists() else None  # a resumed run replaces its record, and then adds to it
    start: int | None = None
    until, lines = (rng.uniform(0, 2.0), 10**9) if rng.random() < 0.2 else (1e9, rng.randint(0, 14))
    child = fork(config, base)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"a life ended by itself: {status}"
            return False
        now = path.stat() if path.exists() else None
        if now is not None and now.st_ino != old:
            if start is None and old is not None:
                recoveries.append(time.monotonic() - began)
            start = now.st_size if start is None else start
            if now.st_size - start >= 400 * lines:
                until = 0.0
        if time.monotonic() - began > until:
            time.sleep(rng.uniform(0, 0.06))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.005)


def forget(what: str) -> None:
    """Break the resume: the optimizer's slots, the random key or the place in the data are not restored."""
    remember, iterate = stage_start.from_tree, Batches.iterate

    def without_slots(tree: Any, like: TrainState) -> TrainState:
        opt = {group: {name: jnp.zeros_like(x) for name, x in slots.items()} for group, slots in tree["opt"].items()}
        return remember({**tree, "opt": opt}, like)

    def without_key(tree: Any, like: TrainState) -> TrainState:
        return remember({**tree, "key": jax.random.fold_in(tree["key"], 1)}, like)

    def from_the_beginning(self: Batches, start: int, stop: int, *given: Any) -> Any:
        return iterate(self, 0, stop - start, *given)

    if what == "data":
        Batches.iterate = from_the_beginning
    else:
        stage_start.from_tree = {"slots": without_slots, "key": without_key}[what]


def storm(project: Path, root: Path, kills: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Runs until `kills` lives were ended by force; each finished run is compared and followed by another."""
    configs = (load(project / "tiny.yaml", [f"run.root={root}", f"run.name=run-{n}", *overrides]) for n in range(10**6))
    rng, config = random.Random(seed), next(configs)
    reference = load(project / "tiny.yaml", [f"run.root={root}", "run.name=whole", *overrides])
    assert os.waitpid(fork(reference, project), 0)[1] == 0
    expected, report = seen(reference.run_dir), {"kills": 0, "runs": 0, "steps": 0, "lost_checkpoints": 0, "redone": []}
    report["recoveries"] = recoveries = list[float]()
    differing, began, reached = set(), time.monotonic(), (0, 0)
    while config is not None:
        killed = report["kills"] < kills and live_and_die(config, project, rng, recoveries)
        if not killed:
            assert os.waitpid(fork(config, project), 0)[1] == 0  # a finished run changes nothing any more
        found = seen(config.run_dir)
        report["steps"] += len(found)
        differing |= {(config.run.name, *place) for place in found if found[place] != expected[place]}
        report["lost_checkpoints"] += newest(config.run_dir) < reached
        reached = newest(config.run_dir)
        if killed:
            report["kills"] += 1
            at = max(((place[0] == "qa") * 1, place[1]) for place in found) if found else (0, 0)
            report["redone"].append(at[1] - reached[1] if at[0] == reached[0] else at[1])
            continue
        report["runs"] += 1
        report["whole"] = report.get("whole", True) and found.keys() == expected.keys()
        report["arrays"] = report.get("arrays", True) and arrays(config.run_dir) == arrays(reference.run_dir)
        reached, config = (0, 0), next(configs) if report["kills"] < kills else None
    seconds = round((time.monotonic() - began) / max(report["kills"], 1), 2)
    redone = max(report["redone"], default=0)
    return report | {"redone": redone, "differing": len(differing), "seconds_a_kill": seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("project", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forget", choices=("slots", "key", "data"))
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    if given.forget:
        forget(given.forget)
    print(json.dumps(storm(given.project, given.root, given.kills, given.seed, given.overrides)))
