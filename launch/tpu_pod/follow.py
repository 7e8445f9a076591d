"""Follow a command on all workers of a pod: stream their lines to the terminal and to files, collect exit codes.

gcloud's own exit code is not enough: it is that of the first worker that failed, and a worker it could not reach may
not count. Instead, the last line of each worker contains its code (worker.py), and a job is over when all codes are
known. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tpu_pod.gcloud import Node

_LINE = re.compile(r"\[s(\d+) w(\d+)\] (.*)")
_EXIT = re.compile(r"launch: (setup|run|doctor|stop) exit (\d+)")
_BEGIN = re.compile(r"launch: (setup|run|doctor|stop) begins")  # of this connection, which repeats all lines
GRACE_SECONDS = 120.0  # seconds the other workers have to exit after a failure
MAX_RECONNECTS = 3  # in a row without a new line; gcloud retries each connection ten times


@dataclass
class FollowResult:
    """Exit codes by (slice, worker), and why some are missing, if so."""

    codes: dict[tuple[int, int], int] = field(default_factory=dict)
    lost: str = ""


class NodeStream:
    """The gcloud process of one slice. It writes to a file, where lines of many writers do not mix."""

    def __init__(self, node: Node, argv: Sequence[str], file: Path) -> None:
        self.node, self._argv, self._file = node, argv, file
        self.reconnects = 0
        self._rest, self._position = "", file.stat().st_size if file.exists() else 0
        self._start = self._position  # of the output of this connection
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self._file, "ab") as out:
            self._start = out.tell()
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def lines(self) -> list[str]:
        """The complete lines since the last call."""
        with open(self._file, "rb") as file:
            file.seek(self._position)
            data = file.read()
        self._position += len(data)
        *complete, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        return complete

    def output(self) -> str:
        """What the current connection wrote."""
        with open(self._file, "rb") as file:
            file.seek(self._start)
            return file.read().decode(errors="replace")

    def last_line(self) -> str:
        """The last line that gcloud wrote."""
        words = self._file.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(words) if line.strip()), "no output")

    def close(self) -> None:
        """Closes the connection; the workers continue."""
        if self._process is None or self._process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            try:
                self._process.wait(5)
                return
            except subprocess.TimeoutExpired:
                continue

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)  # gcloud's ssh processes are in its session


class LogStreamer:
    """Runs one command on all slices until every worker reported its exit code, or the pod is lost."""

    def __init__(
        self, nodes: Sequence[Node], argv: Callable[[Node], list[str]], logs: Path, verb: str, poll: float,
        watch: Callable[[], str], on_drop: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        """`watch`: called every `poll` seconds; returns why the pod is lost, or an empty string.

        `on_drop`: called with the output of a connection that ended early, before the next.
        """
        self._verb, self._poll, self._watch, self._logs = verb, poll, watch, logs
        self._on_drop = on_drop
        self._several = len(nodes) > 1
        self._expected = {(node.index, worker) for node in nodes for worker in range(node.workers)}
        self._streams = [NodeStream(n, argv(n), logs / f"gcloud-{verb}-{n.index}.log") for n in nodes]
        self._result = FollowResult()
        self._failed_at: float | None = None
        # A new connection repeats all lines: skip those that were printed before.
        self._printed_before = {key: _count_lines(self._log(key)) if verb == "run" else 0 for key in self._expected}
        self._seen = dict.fromkeys(self._expected, 0)

    def run(self) -> FollowResult:
        """Follows to the end. An exception leaves the processes of the workers running."""
        for stream in self._streams:
            stream.start()
        asked = time.monotonic()
        try:
            while not self._is_over():
                time.sleep(min(0.2, self._poll))
                for stream in self._streams:
                    alive = stream.running()  # before reading lines, or the last could be missed
                    self._read_lines(stream)
                    if not alive and not self._complete(stream.node):
                        self._reconnect(stream)
                if time.monotonic() - asked >= self._poll and not self._is_over():
                    self._result.lost = self._result.lost or self._watch()
                    asked = time.monotonic()
        finally:
            for stream in self._streams:
                stream.close()
        return self._result

    def _is_over(self) -> bool:
        if self._result.lost or self._result.codes.keys() >= self._expected:
            return True
        return self._failed_at is not None and time.monotonic() - self._failed_at > GRACE_SECONDS

    def _complete(self, node: Node) -> bool:
        return all((node.index, worker) in self._result.codes for worker in range(node.workers))

    def _reconnect(self, stream: NodeStream) -> None:
        if lost := self._watch():
            self._result.lost = lost
        elif stream.reconnects == MAX_RECONNECTS:
            self._result.lost = f"no answer from {stream.node.name}: {stream.last_line()}"
        else:
            stream.reconnects += 1
            if self._on_drop is not None:
                self._on_drop(stream.output())
            print(f"launch: the connection to {stream.node.name} ended; connecting again", flush=True)
            time.sleep(min(self._poll, 10.0))
            stream.start()

    def _read_lines(self, stream: NodeStream) -> None:
        for line in stream.lines():
            found = _LINE.search(line)
            if found is None or (int(found[1]), int(found[2])) not in self._expected:
                continue  # gcloud's own output, which is in its log
            key, text = (int(found[1]), int(found[2])), found[3]
            if _BEGIN.fullmatch(text):
                self._seen[key] = 0
            elif exited := _EXIT.fullmatch(text):
                if exited[1] == self._verb:
                    self._record_exit(key, int(exited[2]))
            else:
                self._seen[key] += 1
                if self._seen[key] > self._printed_before[key]:
                    stream.reconnects = 0
                    self._pass_on(key, text)

    def _pass_on(self, key: tuple[int, int], text: str) -> None:
        if self._verb in ("run", "doctor"):
            self._printed_before[key] = self._seen[key]
        with open(self._log(key), "a", encoding="utf-8") as log:
            log.write(text + "\n")
        print(f"[{f's{key[0]} ' if self._several else ''}w{key[1]}] {text}", flush=True)

    def _record_exit(self, key: tuple[int, int], code: int) -> None:
        self._result.codes[key] = code
        if code and self._failed_at is None:
            self._failed_at = time.monotonic()

    def _log(self, key: tuple[int, int]) -> Path:
        return self._logs / f"{self._verb}-s{key[0]}-w{key[1]}.log"


def _count_lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0
