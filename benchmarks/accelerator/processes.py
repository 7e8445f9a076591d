"""Processes of a benchmark, which end by a deadline: workers that wait for numbers of steps, and scripts."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1]
OUT_OF_TIME = "out of time (--minutes)"
PLATFORMS = {"gpu": "cuda", "tpu": "tpu", "cpu": "cpu"}


def environment(platform: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables of a process that computes on this platform, on the first device if it is a GPU."""
    found = os.environ | {
        "JAX_PLATFORMS": PLATFORMS[platform],
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")])),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if platform == "gpu":
        found["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return found | dict(more or {})


class Worker:
    """A process that answers lines with lines of JSON. `failed` is the reason, one line, once it has ended."""

    def __init__(self, words: list[str], env: Mapping[str, str]):
        self.failed = ""
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, *words], env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True, start_new_session=True,
        )  # fmt: skip
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._collect, daemon=True)
        self.reader.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # the end

    def read(self, seconds: float) -> dict[str, Any]:
        """The next line of JSON; {} and a reason in `failed` if there is none within so many seconds."""
        end = time.monotonic() + seconds
        while not self.failed:
            try:
                line = self.lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                self.failed = OUT_OF_TIME
                break
            if line.startswith("{"):  # anything else is a library's chatter
                return dict(json.loads(line))
            if not line:
                self.failed = last_line(self.errors, self._end(20))
        self.close()
        return {}

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        if self.failed:
            return
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `read` finds the reason

    def _end(self, seconds: float) -> int:
        """Give the process so long to end, then kill it; and what it started, as torch.compile does. -> exit code.

        The group is killed before the process is reaped: afterwards its number may be another's.
        """
        if self.process.returncode is None:
            end = time.monotonic() + seconds
            while os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                if time.monotonic() > end:
                    break
                time.sleep(0.02)
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait(timeout=20)

    def close(self) -> None:
        """End the process, at once if it failed."""
        if self.errors.closed:
            return
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self._end(0 if self.failed else 20)
        self.reader.join(timeout=20)
        self.process.stdout.close()
        self.errors.close()


def last_line(errors: Any, code: int | None) -> str:
    """The last line that a process wrote to its errors, without paths of an own machine; or its exit code."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return lines[-1].replace(str(FOLDER.parent) + "/", "")[:300] if lines else f"exit code {code}"


def run_script(words: list[str], env: Mapping[str, str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Run a script to its end -> (the lines of JSON that it printed, the reason if it failed)."""
    worker, found = Worker(words, env), []
    end = time.monotonic() + seconds
    try:
        while one := worker.read(end - time.monotonic()):
            found.append(one)
    finally:
        worker.close()
    return found, "" if worker.process.returncode == 0 else worker.failed
