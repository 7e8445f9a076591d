#!/usr/bin/env python3
"""Rehearse a pod on this machine: several bertjax processes with virtual CPU devices, joined through localhost.

    launch/local.py --processes 4 --devices 2 train configs/debug/cpu.yaml

One exit code for all: 0 done, 75 run me again, otherwise the reason of the process that had one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

import outcome

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0  # seconds the others get once one process has failed; by then their heartbeats have told them
# A line for each group of processes, about nothing. Its threads write in pieces, so that lines come torn.
GLOO = re.compile(r"\[Gloo\]|connected to \d+ peer ranks|number of connected peer ranks")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the processes, again while they end with 75 and retries are left; returns one exit code for all."""
    arguments = _arguments(argv)
    for attempt in range(arguments.retries + 1):
        processes = Processes(arguments.processes, arguments.devices, arguments.command)
        code = processes.run()
        if code != outcome.AGAIN or processes.stop_requested or attempt == arguments.retries:
            break
        print(f"launch: stopped (75), again: {attempt + 1} of {arguments.retries} retries", flush=True)
    if code:
        print(f"launch: {'run the same command again (75)' if code == 75 else outcome.reason(code)}", flush=True)
    return code


class Processes:
    """One start of all processes. `stop_requested`: a signal asked us to stop."""

    def __init__(self, count: int, devices: int, command: Sequence[str]) -> None:
        self.stop_requested = False
        self._printing = threading.Lock()
        self._argv = [_python(), "-m", "bertjax", *command]
        self._width = len(str(count - 1))
        address = f"127.0.0.1:{_free_port()}"
        self._environments = [_environment(address, count, index, devices) for index in range(count)]
        self._running: list[subprocess.Popen[str]] = []

    def run(self) -> int:
        """Starts them, passes signals on, prints what they say line by line; returns one exit code for all."""
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for environment in self._environments:
                if self.stop_requested:
                    break
                # A session each, or Ctrl-C at a terminal would reach them twice.
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
        # What we killed ourselves died of the others' failure.
        return outcome.worst(p.returncode for i, p in enumerate(self._running) if i not in killed)

    def _wait(self) -> set[int]:
        """Until all have left; the numbers of those that had to be killed."""
        failed_at: float | None = None
        while True:
            codes = [process.poll() for process in self._running]
            if None not in codes:
                return set()
            if failed_at is None and any(codes):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > PATIENCE:
                left = {i for i, code in enumerate(codes) if code is None}
                self._say(f"launch: killing {', '.join(map(str, sorted(left)))}: still there {PATIENCE:.0f} s later")
                for index in left:
                    self._running[index].kill()
                    self._running[index].wait()
                return left
            time.sleep(0.05)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        for process in self._running:
            if process.poll() is None:
                process.send_signal(number)

    def _read(self, index: int) -> None:
        stream: IO[str] | None = self._running[index].stdout
        assert stream is not None
        for line in stream:
            if not GLOO.search(line):
                self._say(f"[{index:>{self._width}}] {line.rstrip()}")

    def _say(self, line: str) -> None:
        with self._printing:
            print(line, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description="Run bertjax in several processes with virtual CPU devices on this machine.",
        usage="launch/local.py [--processes N] [--devices D] [--retries R] COMMAND ...",
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=_count(1), default=2, metavar="N", help="default: 2")
    parser.add_argument("--devices", type=_count(1), default=1, metavar="D", help="of each process; default: 1")
    parser.add_argument("--retries", type=_count(0), default=0, metavar="R", help="starts after a 75; default: 0")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="as for bertjax")
    arguments = parser.parse_args(argv)
    if not arguments.command:
        parser.error("say what to run: train configs/debug/cpu.yaml")
    return arguments


def _count(least: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"a number from {least} up is wanted (got {word!r})")
        return int(word)

    return parse


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _python() -> str:
    """This Python if it has what bertjax needs, otherwise the checkout's own."""
    own = ROOT / ".venv" / "bin" / "python"
    return sys.executable if importlib.util.find_spec("jax") or not own.exists() else str(own)


def _environment(address: str, count: int, index: int, devices: int) -> dict[str, str]:
    flags = [f for f in shlex.split(os.environ.get("XLA_FLAGS", "")) if "host_platform_device_count" not in f]
    joined = {"COORDINATOR": address, "NUM_PROCESSES": str(count), "PROCESS_ID": str(index)}
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
