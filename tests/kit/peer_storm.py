"""Disturb runs of several processes again and again; what they learn is compared with a run that nobody disturbs."""

import json
import os
import random
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fork_server import ROOT, Fault, ForkedProcess, ForkServer

from bertjax.training.checkpoint.layout import committed_steps

sys.path.insert(0, str(ROOT / "launch"))
import exit_codes  # noqa: E402

STEPS, SAVE_EVERY = 60, 3
HEARTBEAT_SECONDS = 15  # of jax: how long a stopped process goes unnoticed
START_SECONDS = 60  # that processes wait for one that was stopped before it joined
EXIT_SECONDS = START_SECONDS + 30  # in which all have left, whatever happens
KINDS = ("kill", "kill", "kill", "SIGTERM", "SIGINT", "SIGHUP", "stop and go on", "stop")


@dataclass
class Report:
    """What a storm has found."""

    times: int = 0  # lives of a run that were ended
    kinds: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)  # lives that ended with another code than 75
    runs: int = 0  # that were finished
    steps: int = 0  # that were compared, after each life
    differing: int = 0
    lost_checkpoints: int = 0
    redone: list[int] = field(default_factory=list)  # steps since the last checkpoint
    exits: list[float] = field(default_factory=list)  # seconds until all had left
    recoveries: list[float] = field(default_factory=list)  # seconds from the next start to its first step

    def summary(self) -> dict[str, Any]:
        return {
            "times": self.times, "kinds": self.kinds, "bad": self.bad, "runs": self.runs, "steps": self.steps,
            "differing": self.differing, "lost_checkpoints": self.lost_checkpoints,
            "steps_redone": max(self.redone, default=0), "slowest_exit": round(max(self.exits, default=0), 1),
            "median_exit": round(statistics.median(self.exits or [0]), 1),
            "median_recovery": round(statistics.median(self.recoveries or [0]), 1),
        }  # fmt: skip


class Storm:
    """Runs of `project` in `root`, each by `processes` processes; `faults`: in every process."""

    def __init__(
        self,
        server: ForkServer,
        project: Path,
        root: Path,
        processes: int,
        seed: int,
        faults: Sequence[Fault] = (),
        *,
        model: bool = True,
    ) -> None:
        """model: whether the runs train a model, or are those of small_run.py."""
        self.server, self.project, self.root, self.processes = server, project, root, processes
        self.random, self.report = random.Random(seed), Report()
        heartbeat = json.dumps({"heartbeat_timeout_seconds": HEARTBEAT_SECONDS})
        timeouts = ("bertjax.parallel.multihost.initialize:JAX_TIMEOUTS", 0, f"set {heartbeat}")
        small: Fault = ("bertjax.training.loop:train", 0, "wrap small_run:without_model")
        self.faults: list[Fault] = [timeouts, *faults, *([] if model else [small])]
        self.line_bytes = 300 if model else 60  # of a step in the record, about
        self.name, self.lives = "whole", 0

    @property
    def run_dir(self) -> Path:
        return self.root / self.name

    def start(self) -> list[ForkedProcess]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / f"forks-{self.processes}"
        about = {"root": self.root, "name": self.name, "compilation_cache_dir": cache}
        words = [f"run.{key}={value}" for key, value in about.items()]
        words += [f"stages.pretrain.steps={STEPS}", f"run.checkpoint.save_every={SAVE_EVERY}"]
        seat = {"COORDINATOR": address, "NUM_PROCESSES": self.processes, "START_TIMEOUT": START_SECONDS, "SECRET": "x"}
        self.lives += 1
        job = []
        for index in range(self.processes):
            environment = {f"BERTJAX_{name}": str(value) for name, value in (seat | {"PROCESS_ID": index}).items()}
            out = self.root / f"{self.lives}-{index}"
            job.append(self.server.start(["train", "tiny.yaml", *words], self.project, out, environment, self.faults))
        return job

    def losses(self) -> dict[int, float]:
        """{step: loss}; JSON keeps every bit. A line cut by a kill is none."""
        path, found = self.run_dir / "metrics.jsonl", dict[int, float]()
        for line in path.read_bytes().split(b"\n") if path.exists() else []:
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            if fields["kind"] == "train":
                assert fields["step"] not in found, f"step {fields['step']} is there twice"
                found[fields["step"]] = fields["loss"]
        return found

    def committed(self) -> int:
        folder = self.run_dir / "checkpoints" / "00-pretrain"
        return committed_steps(folder)[-1] if folder.exists() and committed_steps(folder) else 0

    def run(self, times: int) -> Report:
        whole = self.start()
        codes = [process.wait(300) for process in whole]
        assert set(codes) == {0}, [process.err.read_text() for process in whole]
        expected, number = self.losses(), 0
        assert sorted(expected) == [*range(1, STEPS + 1)]
        self.name = "run-0"
        while self.report.times < times or self.run_dir.exists():
            reached, disturbed = self.committed(), self.report.times < times
            finished = self.live(disturb=disturbed)
            found = self.losses()
            self.report.steps += len(found)
            self.report.differing += sum(found[step] != expected[step] for step in found)
            self.report.lost_checkpoints += self.committed() < reached
            if finished:
                assert found.keys() == expected.keys()
                number += 1
                self.report.runs, self.name = number, f"run-{number}"
            else:
                self.report.redone.append(max(found, default=0) - self.committed())
        return self.report

    def live(self, *, disturb: bool) -> bool:
        """One life of the run, ended by something, or to its end -> whether it is finished."""
        began, job = time.monotonic(), self.start()
        kind, victim = self.random.choice(KINDS), self.random.randrange(self.processes)
        early = self.random.random() < 0.25
        lines, until = (10**9, self.random.uniform(0, 4)) if early else (self.random.randint(0, 10), 1e9)
        if not disturb:
            lines, until = 10**9, 1e9
        self.wait_for(job, lines, began, until)
        if all(process.poll() is not None for process in job):
            return self.judge(job, "nothing", -1, began) == 0
        time.sleep(self.random.uniform(0, 0.06))
        struck = time.monotonic()
        self.strike(job, kind, victim)
        return self.judge(job, kind, victim, struck) == 0

    def wait_for(self, job: list[ForkedProcess], lines: int, began: float, until: float) -> None:
        """Until this life has logged so many lines, so many seconds are over, or it has ended."""
        path = self.run_dir / "metrics.jsonl"
        old = path.stat().st_ino if path.exists() else None  # a resumed run replaces its record, and then adds to it
        start: int | None = None
        limit = time.monotonic() + 300
        while any(process.poll() is None for process in job) and time.monotonic() - began < until:
            assert time.monotonic() < limit, [process.err.read_text() for process in job]
            now = path.stat() if path.exists() else None
            if now is not None and now.st_ino != old:
                if start is None:
                    start = now.st_size
                elif now.st_size > start and self.report.times and len(self.report.recoveries) < self.report.times:
                    self.report.recoveries.append(time.monotonic() - began)
                if now.st_size - start >= self.line_bytes * lines:
                    return
            time.sleep(0.01)

    def strike(self, job: list[ForkedProcess], kind: str, victim: int) -> None:
        if kind == "kill":
            job[victim].send_signal(signal.SIGKILL)
        elif kind.startswith("stop"):
            job[victim].send_signal(signal.SIGSTOP)
            if kind == "stop":  # until the others have left
                for process in job:
                    if process is not job[victim]:
                        process.wait(EXIT_SECONDS)
            else:
                time.sleep(self.random.uniform(0.1, 1.0))
            job[victim].send_signal(signal.SIGCONT)
            if kind == "stop and go on":
                job[self.random.randrange(self.processes)].send_signal(signal.SIGTERM)
        else:
            job[victim].send_signal(signal.Signals[kind])

    def judge(self, job: list[ForkedProcess], kind: str, victim: int, struck: float) -> int:
        """-> 0 for a run that has ended by itself, else 75; notes any other end."""
        codes = [process.wait(EXIT_SECONDS) for process in job]
        seconds = time.monotonic() - struck
        others = {code for index, code in enumerate(codes) if (kind, index, code) != ("kill", victim, -signal.SIGKILL)}
        if others == {0}:
            return 0
        self.report.times += 1
        self.report.kinds[kind] = self.report.kinds.get(kind, 0) + 1
        self.report.exits.append(seconds)
        if exit_codes.combine(codes) != 75 or others - {0, 75}:  # at the end of the run some may have finished it
            last = [process.err.read_text().splitlines()[-1:] for process in job]
            self.report.bad.append(f"life {self.lives}, {kind} of {victim}: {codes}, {last}")
        return 75


def forget_position(iterate: Callable[..., Any]) -> Callable[..., Any]:
    """For `Batches.iterate`: a run that goes on begins with the first batch again."""
    return lambda self, start, *arguments, **options: iterate(self, 0, *arguments, **options)
