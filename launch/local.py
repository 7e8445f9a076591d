#!/usr/bin/env python3
"""Simulate a pod on this machine: several bertjax processes with virtual CPU devices, connected through localhost.

    launch/local.py --processes 4 --devices 2 train configs/debug/cpu.yaml
    launch/local.py --processes 4,2,4 --preempt-after 20 train configs/debug/cpu.yaml mesh.dcn=-1

The second command rehearses an elastic run: after 20 steps the processes that will be missing receive SIGTERM, all save
and leave, and the same run goes on with 2 processes, then with 4.

Exit code: 0 done, 75 run the same command again, otherwise the code of the process that failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

import exit_codes

ROOT = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 60.0  # seconds the others have to exit after a failure; their heartbeats detect it earlier
# Uninformative lines, one per process group; gloo threads write them in pieces, so lines may be incomplete.
# A line of a run about one of its steps: "pretrain 20/60 | loss 5.2 ...", "pretrain 20 | resumed".
STEP_LINE = re.compile(r"(\S+) (\d+)(?:/\d+)? \|")
GLOO_NOISE = re.compile(r"\[Gloo\]|connected to \d+ peer ranks|number of connected peer ranks")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the processes and retries while they exit with 75 -> the combined exit code."""
    arguments = _arguments(argv)
    counts, retries = list(arguments.processes), 0
    while True:
        preemption = Preemption(arguments.preempt_after, counts[0], counts[1]) if counts[1:] else None
        processes = Processes(counts[0], arguments.devices, arguments.command, preemption)
        code = processes.run()
        if code != exit_codes.RETRY or processes.stop_requested:
            break
        if preemption is not None and preemption.is_over:
            counts.pop(0)
            print(f"launch: stopped (75), going on with {_processes(counts[0])}", flush=True)
        elif retries < arguments.retries:
            retries += 1
            print(f"launch: stopped (75), retry {retries} of {arguments.retries}", flush=True)
        else:
            break
    if code == 0 and counts[1:]:
        print(f"launch: the run ended before it could go on with {_processes(counts[1])}", flush=True)
    if code:
        print(f"launch: {'run the same command again (75)' if code == 75 else exit_codes.describe(code)}", flush=True)
    return code


class Preemption:
    """Finds in the output of a run the moment to preempt it: after `steps` steps of one start."""

    def __init__(self, steps: int, now: int, then: int) -> None:
        self.steps, self.is_over = steps, False
        self.leaving = range(then, now) if then < now else range(now)  # a larger number starts all processes again
        self._done, self._last = 0, ("", 0)

    def is_due(self, line: str) -> bool:
        """Whether the run has made its steps with this line of process 0; true only once."""
        found = STEP_LINE.match(line)
        if found is None or self.is_over:
            return False
        stage, step = found[1], int(found[2])
        if stage == self._last[0]:
            self._done += max(0, step - self._last[1])
        self._last = stage, step
        self.is_over = self._done >= self.steps
        return self.is_over


class Processes:
    """One start of all processes. `stop_requested`: this process received a signal."""

    def __init__(self, count: int, devices: int, command: Sequence[str], preemption: Preemption | None = None) -> None:
        self.stop_requested, self._preemption = False, preemption
        self._printing = threading.Lock()
        self._argv = [_python(), "-P", "-m", "bertjax", *command]
        self._width = len(str(count - 1))
        address = f"127.0.0.1:{_free_port()}"
        secret = secrets.token_hex(32)  # in the environment, which `ps` shows to nobody else
        self._environments = [_environment(address, secret, count, index, devices) for index in range(count)]
        self._running: list[subprocess.Popen[str]] = []

    def run(self) -> int:
        """Starts the processes, forwards signals and prints their output line by line -> the combined exit code."""
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for environment in self._environments:
                if self.stop_requested:
                    break
                # A session for each, or Ctrl-C in a terminal would reach them twice.
                self._running.append(
                    subprocess.Popen(
                        self._argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
                    )
                )  # fmt: skip
            readers = [threading.Thread(target=self._read, args=(i,), daemon=True) for i in range(len(self._running))]
            for reader in readers:
                reader.start()
            killed = self._wait()
            for reader in readers:
                reader.join()
        finally:
            for process in self._running:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        # Processes killed here are not the cause of the failure.
        return exit_codes.combine(p.returncode for i, p in enumerate(self._running) if i not in killed)

    def _wait(self) -> set[int]:
        """Waits until all have exited -> the indices of processes that had to be killed."""
        failed_at: float | None = None
        while True:
            codes = [process.poll() for process in self._running]
            if None not in codes:
                return set()
            if failed_at is None and any(codes):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
                left = {i for i, code in enumerate(codes) if code is None}
                numbers = ", ".join(map(str, sorted(left)))
                self._say(f"launch: killing {numbers}: still running {GRACE_SECONDS:.0f} s after a failure")
                for index in left:
                    self._running[index].kill()
                    self._running[index].wait()
                return left
            time.sleep(0.05)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        self._send(number, range(len(self._running)))

    def _send(self, number: int, indices: Iterable[int]) -> None:
        for index in indices:
            if self._running[index].poll() is None:
                self._running[index].send_signal(number)

    def _read(self, index: int) -> None:
        stream: IO[str] | None = self._running[index].stdout
        assert stream is not None
        for line in stream:
            if not GLOO_NOISE.search(line):
                self._say(f"[{index:>{self._width}}] {line.rstrip()}")
            if index == 0 and self._preemption is not None and self._preemption.is_due(line):
                leaving = self._preemption.leaving
                self._say(f"launch: SIGTERM to {', '.join(map(str, leaving))} of {len(self._running)} processes")
                self._send(signal.SIGTERM, leaving)

    def _say(self, line: str) -> None:
        with self._printing:
            print(line, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description="Run bertjax in several processes with virtual CPU devices on this machine.",
        usage="launch/local.py [--processes N[,N...]] [--devices D] [--retries R] [--preempt-after STEPS] COMMAND ...",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--processes", type=_counts, default=(2,), metavar="N[,N...]",
        help="number of processes, default: 2; several numbers, with --preempt-after: one after the other",
    )  # fmt: skip
    parser.add_argument(
        "--devices", type=_int_from(1), default=1, metavar="D", help="CPU devices per process; default: 1"
    )
    parser.add_argument(
        "--retries", type=_int_from(0), default=0, metavar="R", help="retries after exit code 75; default: 0"
    )
    parser.add_argument(
        "--preempt-after", type=_int_from(1), metavar="STEPS",
        help="steps, as the output shows them (run.log_every), after which SIGTERM stops the run, to go on with the "
        "next number of --processes",
    )  # fmt: skip
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="bertjax command and its arguments"
    )
    arguments = parser.parse_args(argv)
    if not arguments.command:
        parser.error("name a command, such as train configs/debug/cpu.yaml")
    if (len(arguments.processes) > 1) != (arguments.preempt_after is not None):
        parser.error("--preempt-after STEPS and several numbers, such as --processes 4,2,4, need each other")
    return arguments


def _processes(count: int) -> str:
    return f"{count} process{'es' * (count > 1)}"


def _counts(word: str) -> tuple[int, ...]:
    return tuple(map(_int_from(1), word.split(",")))


def _int_from(least: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {least} (got {word!r})")
        return int(word)

    return parse


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _python() -> str:
    """This Python if jax is installed in it, otherwise that of the checkout's .venv."""
    own = ROOT / ".venv" / "bin" / "python"
    return sys.executable if importlib.util.find_spec("jax") or not own.exists() else str(own)


def _environment(address: str, secret: str, count: int, index: int, devices: int) -> dict[str, str]:
    flags = [f for f in shlex.split(os.environ.get("XLA_FLAGS", "")) if "host_platform_device_count" not in f]
    joined = {"COORDINATOR": address, "NUM_PROCESSES": str(count), "PROCESS_ID": str(index), "SECRET": secret}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        **{f"BERTJAX_{name}": value for name, value in joined.items()},
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": shlex.join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }


if __name__ == "__main__":
    sys.exit(main())
