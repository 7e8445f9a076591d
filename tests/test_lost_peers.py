"""A lost process is recognized wherever it surfaces: the others leave with 75. What is no lost process is not 75.

The storms disturb runs at random: nothing that was learned may differ from a run that nobody disturbs.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import peer_storm
import pytest
import tally
from fork_server import Fault, ForkedProcess
from peer_storm import Storm, exit_codes

from bertjax.training.checkpoint.layout import committed_steps

SLOW = pytest.mark.slow
pytestmark = pytest.mark.timeout(300)
EXIT_SECONDS = 15  # in which all have left after a kill: three of grace, the rest for a busy machine


Start = Callable[..., list[ForkedProcess]]


@pytest.fixture
def start(fork_server, pretrain_project, tmp_path) -> Start:
    """start({process: faults}, *overrides, processes=2): a run of six steps, saved at 3 and 6, in runs/tiny.

    Its steps are those of kit/small_run.py, with `model=True` those of a small BERT.
    """

    def begin(
        faults: dict[int, Sequence[Fault]], *overrides: str, processes: int = 2, model: bool = False
    ) -> list[ForkedProcess]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / f"forks-{processes}"
        words = ["train", "tiny.yaml", f"run.root={tmp_path}/runs", "stages.pretrain.steps=6",
                 "run.checkpoint.save_every=3", f"run.compilation_cache_dir={cache}", *overrides]  # fmt: skip
        always: list[Fault] = [] if model else [("bertjax.training.loop:train", 0, "wrap small_run:without_model")]
        return [
            fork_server.start(
                words, pretrain_project, tmp_path / f"{index}-{time.monotonic_ns()}",
                {"BERTJAX_COORDINATOR": address, "BERTJAX_NUM_PROCESSES": str(processes),
                 "BERTJAX_PROCESS_ID": str(index)}, [*always, *faults.get(index, ())],
            )
            for index in range(processes)
        ]  # fmt: skip

    return begin


def codes(job: list[ForkedProcess], timeout: float = 120) -> list[int]:
    return [process.wait(timeout) for process in job]


def own_lines(process: ForkedProcess) -> list[str]:
    """Lines of ours on standard error: jax's begin with a letter and the date."""
    lines = process.err.read_text().splitlines()
    return [x for x in lines if x and not re.match(r"[IWEF]\d{4} |\s|\*\*\*|RPC:|Additional GRPC", x)]


def survive(job: list[ForkedProcess], victim: int) -> None:
    """The victim was killed; all others leave with 75 soon and name it."""
    assert job[victim].wait(120) == -9, job[victim].err.read_text()
    for process in job:
        code = process.wait(EXIT_SECONDS)
        if process is not job[victim]:
            assert code == 75, process.err.read_text()
            last = own_lines(process)[-1]
            assert last.startswith("another process is gone (") and last.endswith("run the same command again"), last
    assert exit_codes.combine(process.returncode for process in job) == 75


PLACES = {
    "rendezvous": ("bertjax.parallel.multihost.peer_monitor:start", 1),
    "jax's start": ("jax:distributed.initialize", 1),
    "warm-up": ("bertjax.parallel.multihost.initialize:warm_up_collectives", 1),
    "step": ("small_run:one_step", 2),
    "digest": ("bertjax.training.checkpoint.checksums:compute_digests", 1),
    "save": ("bertjax.training.checkpoint.orbax_io:start_save", 1),
    "commit": ("bertjax.training.checkpoint.manager:CheckpointManager._finish", 1),
    "next save": ("bertjax.training.checkpoint.manager:CheckpointManager.wait", 2),
    "end": ("bertjax.training.checkpoint.manager:CheckpointManager.close", 1),
}
IN_A_MODEL = {
    "step": ("bertjax.training.stage.runner:StageRunner.run_step", 2),
    "digest": PLACES["digest"],
    "evaluation": ("bertjax.evaluation.evaluators.loss:local_batch_rows", 1),
    "end": ("bertjax.training.stage.runner:StageRunner.finish", 1),
}
FAST = {("digest", 1), ("commit", 0)}


@pytest.mark.parametrize(
    ("place", "victim"),
    [pytest.param(p, v, marks=() if (p, v) in FAST else SLOW) for p in PLACES for v in (0, 1)],
)
def test_a_process_killed_anywhere_is_75_for_the_other(start, tmp_path, place, victim):
    where, call = PLACES[place]
    survive(start({victim: [(where, call, "kill")]}), victim)
    assert set(codes(start({}))) == {0}, "the same command goes on"
    assert committed_steps(tmp_path / "runs" / "tiny" / "checkpoints" / "00-pretrain")[-1] == 6
    tally.add("one of 2 processes killed", "SIGKILL at a given place, as a save or the end", 1, detected=1)


@SLOW
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("place", IN_A_MODEL)
def test_the_same_in_a_run_with_a_model(start, place, victim):
    where, call = IN_A_MODEL[place]
    survive(start({victim: [(where, call, "kill")]}, model=True), victim)
    assert set(codes(start({}, model=True))) == {0}, "the same command goes on"
    tally.add("one of 2 processes killed", "SIGKILL at a given place, as a save or the end", 1, detected=1)


@SLOW
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("function", ["reader:orbax_io.read_arrays", "integrity:checksums.compute_digests"])
def test_a_process_killed_in_a_restore_costs_no_checkpoint(start, tmp_path, function, victim):
    assert set(codes(start({}, "stages.pretrain.steps=3"))) == {0}
    run = tmp_path / "runs" / "tiny"
    survive(start({victim: [(f"bertjax.training.checkpoint.{function}", 1, "kill")]}), victim)
    assert not [*run.rglob("quarantine")]
    assert committed_steps(run / "checkpoints" / "00-pretrain") == [3]
    assert set(codes(start({}))) == {0}


@SLOW
def test_all_of_four_name_the_one_that_was_killed(start):
    job = start({2: [("bertjax.training.checkpoint.checksums:compute_digests", 1, "kill")]}, processes=4)
    survive(job, 2)
    assert any("process 2 on " in own_lines(process)[-1] for process in job if process is not job[2])


# ---- what is no lost process ----------------------------------------------------------------------------------------

SEAL = "bertjax.training.checkpoint.manager:seal"


@pytest.mark.parametrize(
    "failing", [pytest.param((0, 1)), pytest.param((0,), marks=SLOW), pytest.param((1,), marks=SLOW)]
)
def test_a_bug_is_70(start, failing):
    """On all, or on one: then the other one has lost it, and the job is 70 all the same."""
    job = start({index: [(SEAL, 1, "raise an array is missing")] for index in failing})
    found = codes(job)
    assert [found[index] for index in failing] == [70] * len(failing), [p.err.read_text() for p in job]
    assert all("ValueError: an array is missing" in job[index].err.read_text() for index in failing)
    assert {found[index] for index in {0, 1} - {*failing}} <= {75} and exit_codes.combine(found) == 70


@SLOW
@pytest.mark.parametrize("failing", [(0,), (1,)])
@pytest.mark.parametrize("place", [SEAL, "bertjax.training.checkpoint.orbax_io:start_save"])
def test_a_full_disk_of_one_process_is_4(start, failing, place):
    job = start({index: [(place, 1, "disk full")] for index in failing})
    found = codes(job)
    assert [found[index] for index in failing] == [4] * len(failing), [p.err.read_text() for p in job]
    assert {found[index] for index in {0, 1} - {*failing}} <= {4, 75} and exit_codes.combine(found) == 4
    assert not any("Traceback" in process.err.read_text() for process in job)


@SLOW
def test_a_full_disk_in_the_commit_is_4(start):
    job = start({0: [("bertjax.training.checkpoint.layout:flush_unfinished", 1, "disk full")]})
    found = codes(job)
    assert found[0] == 4 and found[1] in (4, 75) and exit_codes.combine(found) == 4, [p.err.read_text() for p in job]


@SLOW
def test_bad_input_is_2_on_both(start):
    job = start({}, "tasks.text.source.files=[none.txt]", model=True)
    assert codes(job) == [2, 2], [process.err.read_text() for process in job]


# ---- storms ---------------------------------------------------------------------------------------------------------


def assert_nothing_lost(storm: Storm, times: int) -> None:
    report = storm.run(times)
    print(json.dumps(report.summary()))
    assert report.times >= times and report.runs >= 1 and report.bad == [], report.summary()
    assert report.differing == 0 and report.lost_checkpoints == 0, report.summary()
    assert max(report.redone) <= 2 * peer_storm.SAVE_EVERY and max(report.exits) < peer_storm.EXIT_SECONDS
    tally.add(
        f"one of {storm.processes} processes killed, stopped or signalled", "at a random time, saves at every 3rd step",
        report.times, lost=report.differing + report.lost_checkpoints, detected=report.times - len(report.bad),
        recovery=report.recoveries,
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_five_disturbances_of_a_run_without_a_model(fork_server, pretrain_project, tmp_path, monkeypatch):
    monkeypatch.setattr(peer_storm, "KINDS", ("kill", "kill", "SIGTERM", "SIGHUP"))
    assert_nothing_lost(Storm(fork_server, pretrain_project, tmp_path, 2, seed=1, model=False), 5)


@SLOW
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [2, 4])
def test_forty_disturbances_of_a_run_without_a_model(fork_server, pretrain_project, tmp_path, processes):
    """Of more lives most end near a save: nothing else takes long."""
    assert_nothing_lost(Storm(fork_server, pretrain_project, tmp_path, processes, seed=10, model=False), 40)


@SLOW
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [2, 4])
def test_forty_disturbances(fork_server, pretrain_project, tmp_path, processes):
    assert_nothing_lost(Storm(fork_server, pretrain_project, tmp_path, processes, seed=processes), 40)


@SLOW
@pytest.mark.timeout(900)
def test_the_storm_sees_a_run_that_forgets_its_place_in_the_data(fork_server, pretrain_project, tmp_path, monkeypatch):
    """A control: every resumed run takes the first batches again."""
    monkeypatch.setattr(peer_storm, "KINDS", ("SIGTERM",))
    forgetful: Fault = ("bertjax.data.pipeline.loader:Batches.iterate", 0, "wrap peer_storm:forget_position")
    report = Storm(fork_server, pretrain_project, tmp_path, 2, seed=3, faults=[forgetful]).run(3)
    assert report.bad == [] and report.differing > 0, report.summary()
