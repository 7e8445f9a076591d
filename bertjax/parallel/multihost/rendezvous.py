"""Wait until all processes of a job have joined, before jax uses the coordinator's port.

jax waits silently for late processes and then aborts. Here, process 0 listens on the port first and reports which
processes are missing. Each sends a line of JSON and keeps its connection open (peer_monitor.py). When all have joined,
process 0 stops listening, so that jax can use the port, and sends each a message to go on.
"""

import errno
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from bertjax.errors import BertjaxError, StoppedSafely, UserError
from bertjax.parallel.multihost.peer_monitor import MAX_MESSAGE_BYTES, Peer
from bertjax.progress import reporter

POLL_SECONDS = 0.2
REPORT_SECONDS = 30.0  # between two reports of missing processes
PORT_RELEASE_SECONDS = 60.0  # for an earlier start of the job to release the port


def wait_for_all(
    address: str, count: int, index: int, limit: float, report: Callable[[str], None] | None = None
) -> dict[int, Peer]:
    """Return when all `count` processes have joined -> {number: peer}: all others on process 0, process 0 on them.

    address: host:port of process 0. report: gets lines about missing processes, on process 0 (default: stderr). Raises
    StoppedSafely naming the missing ones after `limit` seconds; UserError for two processes with one number, different
    counts, and a port that is in use.
    """
    if count == 1:
        return {}
    host, port = parse_address(address)
    deadline = time.monotonic() + limit
    if index == 0:
        with _Coordinator(port, count, deadline, report or _print_line) as coordinator:
            return coordinator.wait(limit)
    return {0: _join((host, port), count, index, deadline, limit)}


def parse_address(address: str) -> tuple[str, int]:
    """host:port, an IPv6 host in brackets -> (host, port). Raises UserError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"coordinator address '{address[:100]}': must be host:port, such as 10.0.0.2:8476")
    return host.strip("[]"), int(port)


def format_ranges(found: Iterable[int]) -> str:
    """Numbers as ranges: 1, 4-7, 12."""
    runs: list[list[int]] = []
    for number in sorted(found):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _print_line(line: str) -> None:
    reporter.say(line)


@dataclass
class _PendingPeer:
    connection: socket.socket
    text: bytes = b""
    index: int | None = None
    host: str = ""


@dataclass
class _Coordinator:
    """Process 0 while it waits; on exit it closes all connections that `wait` did not return."""

    port: int
    count: int
    deadline: float
    report: Callable[[str], None]
    pending: list[_PendingPeer] = field(default_factory=list)
    accepted: list[_PendingPeer] = field(default_factory=list)

    def __enter__(self) -> "_Coordinator":
        self.selector = selectors.DefaultSelector()
        self.listener = self._listen()
        self.selector.register(self.listener, selectors.EVENT_READ)
        return self

    def __exit__(self, *_: object) -> None:
        self.selector.close()
        self.listener.close()
        for peer in self.pending:
            if peer not in self.accepted:
                peer.connection.close()

    def _listen(self) -> socket.socket:
        deadline = min(self.deadline, time.monotonic() + PORT_RELEASE_SECONDS)
        while True:
            try:
                both = socket.has_dualstack_ipv6()
                family = socket.AF_INET6 if both else socket.AF_INET
                listener = socket.create_server(("", self.port), family=family, backlog=self.count, dualstack_ipv6=both)
                listener.setblocking(False)
                return listener
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise UserError(
                        f"port {self.port} of this host ({socket.gethostname()}): {error.strerror}; "
                        "choose another port for the coordinator, or end what uses this one"
                    ) from None
                time.sleep(POLL_SECONDS)

    def wait(self, limit: float) -> dict[int, Peer]:
        next_report = time.monotonic() + REPORT_SECONDS
        while missing := self._missing():
            now = time.monotonic()
            if now > self.deadline:
                what = f"{self._describe_missing(missing)} within {limit:g} s; run the same command again"
                self._reject_all(what, StoppedSafely)
            if now > next_report:
                self.report(f"waiting for process {format_ranges(missing)} of 0-{self.count - 1}")
                next_report = now + REPORT_SECONDS
            for key, _ in self.selector.select(POLL_SECONDS):
                if key.fileobj is self.listener:
                    self._accept()
                else:
                    self._receive(key.data)
        self.selector.unregister(self.listener)
        self.listener.close()  # before the message: the others then connect to jax at this port
        self._broadcast({"go": True, "host": socket.gethostname()})
        self.accepted = [peer for peer in self.pending if peer.index is not None]
        return {peer.index: Peer(peer.connection, peer.host) for peer in self.accepted if peer.index is not None}

    def _missing(self) -> set[int]:
        return set(range(1, self.count)) - {peer.index for peer in self.pending if peer.index is not None}

    def _describe_missing(self, missing: set[int]) -> str:
        there = {peer.index: peer.host for peer in self.pending if peer.index is not None}
        shown = [f"0 ({socket.gethostname()})", *(f"{i} ({there[i]})" for i in sorted(there))]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        who = "processes" if len(missing) > 1 else "process"
        return f"{who} {format_ranges(missing)} of {self.count} never arrived (there: {', '.join(shown[:8])}{more})"

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:  # closed before it was accepted
            return
        connection.setblocking(False)
        peer = _PendingPeer(connection)
        self.pending.append(peer)
        self.selector.register(connection, selectors.EVENT_READ, peer)

    def _receive(self, peer: _PendingPeer) -> None:
        try:
            new = peer.connection.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            new = b""
        peer.text += new
        if not new or len(peer.text) > MAX_MESSAGE_BYTES or peer.index is not None:
            self._drop(peer)
        elif peer.text.endswith(b"\n"):
            self._register(peer)

    def _drop(self, peer: _PendingPeer) -> None:
        self.selector.unregister(peer.connection)
        peer.connection.close()
        self.pending.remove(peer)

    def _register(self, peer: _PendingPeer) -> None:
        try:
            said = json.loads(peer.text)
            index, count, host = int(said["process"]), int(said["of"]), str(said["host"])[:100]
        except (ValueError, KeyError, TypeError):  # not a process of this job
            return self._drop(peer)
        if count != self.count:
            self._reject_all(
                f"process {index} ({host}) was started for {count} processes, process 0 "
                f"({socket.gethostname()}) for {self.count}; start every process with the same number"
            )
        if duplicate := next((other for other in self.pending if other.index == index), None):
            where = "one host" if duplicate.host == host else "two hosts"
            self._reject_all(
                f"two processes say they are process {index} ({duplicate.host} and {host}, {where}); "
                "give each process a number of its own"
            )
        if not 0 < index < self.count:
            self._reject_all(f"{host} says it is process {index}; they count from 0 to {self.count - 1}")
        peer.index, peer.host = index, host

    def _reject_all(self, message: str, kind: type[BertjaxError] = UserError) -> None:
        self._broadcast({"error": kind.__name__, "message": message})
        raise kind(message)

    def _broadcast(self, answer: dict[str, object]) -> None:
        text = json.dumps(answer).encode() + b"\n"
        for peer in self.pending:
            try:
                peer.connection.setblocking(True)
                peer.connection.settimeout(5)
                peer.connection.sendall(text)
            except OSError:  # jax has its own time limit there
                continue


def _join(where: tuple[str, int], count: int, index: int, deadline: float, limit: float) -> Peer:
    said = json.dumps({"process": index, "of": count, "host": socket.gethostname()}).encode() + b"\n"
    while time.monotonic() < deadline + PORT_RELEASE_SECONDS:  # process 0 may have started later
        with suppress(OSError), ExitStack() as stack:  # OSError: not listening yet
            connection = stack.enter_context(socket.create_connection(where, timeout=5))
            answer = _exchange(connection, said, deadline)
            if answer.get("go"):
                stack.pop_all()  # keep it open
                return Peer(connection, str(answer.get("host"))[:100])
            if "error" in answer:
                kind = UserError if answer["error"] == "UserError" else StoppedSafely
                raise kind(str(answer.get("message")))
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    raise StoppedSafely(
        f"process {index} ({socket.gethostname()}): process 0 did not answer at {where[0]}:{where[1]} within "
        f"{limit:g} s; see that it runs and that its port can be reached, and run the same command again"
    )


def _exchange(connection: socket.socket, said: bytes, deadline: float) -> dict[str, object]:
    """Process 0's answer; {} if another program answers. Raises OSError without an answer."""
    connection.sendall(said)
    connection.settimeout(POLL_SECONDS)
    text = b""
    while b"\n" not in text and len(text) < MAX_MESSAGE_BYTES and time.monotonic() < deadline + PORT_RELEASE_SECONDS:
        try:
            new = connection.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            continue
        if not new:
            return {}
        text += new
    try:
        answer = json.loads(text.partition(b"\n")[0])
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
