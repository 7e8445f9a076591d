"""Wait until all processes of a job have joined, before jax uses the coordinator's port.

jax waits silently for late processes and then aborts. Here, process 0 listens on the port first and reports which
processes are missing. Each says who it is (handshake.py) and keeps its connection open (peer_monitor.py). When all have
joined, process 0 stops listening, so that jax can use the port, and sends each a message to go on. What connects and is
not a process of the job is sent away, whatever it says.
"""

import errno
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from bertjax.errors import BertjaxError, StoppedSafely, UserError
from bertjax.parallel.multihost import handshake
from bertjax.parallel.multihost.addresses import bind_host, family_of, format_ranges, parse_address
from bertjax.parallel.multihost.handshake import MAX_LINE_BYTES, Hello
from bertjax.parallel.multihost.peer_monitor import Peer
from bertjax.progress import reporter

POLL_SECONDS = 0.2
REPORT_SECONDS = 30.0  # between two reports of missing processes
PORT_RELEASE_SECONDS = 60.0  # for an earlier start of the job to release the port
HELLO_SECONDS = 10.0  # in which a connection must say who it is
MAX_STRANGERS = 64  # connections that have not said who they are; more push out the oldest


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
        with _Coordinator(bind_host(host), port, count, deadline, report or _print_line) as coordinator:
            return coordinator.wait(limit)
    return {0: _join((host, port), Hello(index, count, socket.gethostname()), deadline, limit)}


def _print_line(line: str) -> None:
    reporter.say(line)


@dataclass
class _PendingPeer:
    connection: socket.socket
    address: str
    deadline: float  # to say who it is
    greeted: str  # the nonce it was greeted with
    text: bytes = b""
    index: int | None = None
    host: str = ""
    nonce: str = ""


@dataclass
class _Coordinator:
    """Process 0 while it waits; on exit it closes all connections that `wait` did not return."""

    host: str  # to listen at; "" for every address
    port: int
    count: int
    deadline: float
    report: Callable[[str], None]
    key: bytes = field(default_factory=handshake.job_key)
    reported_stranger: bool = False
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
                both = not self.host and socket.has_dualstack_ipv6()
                family = socket.AF_INET6 if both else family_of(self.host)
                backlog = max(self.count, MAX_STRANGERS)
                listener = socket.create_server(
                    (self.host, self.port), family=family, backlog=backlog, dualstack_ipv6=both
                )
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
                elif key.data in self.pending:  # else pushed out meanwhile
                    self._receive(key.data)
            self._drop_silent(time.monotonic())
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
            connection, address = self.listener.accept()
        except OSError:  # closed before it was accepted
            return
        peer = _PendingPeer(connection, str(address[0]), time.monotonic() + HELLO_SECONDS, handshake.make_nonce())
        self.pending.append(peer)
        connection.setblocking(False)
        self.selector.register(connection, selectors.EVENT_READ, peer)
        try:
            connection.sendall(handshake.greeting(peer.greeted))  # into an empty buffer
        except OSError:
            self._drop(peer)
        unknown = [each for each in self.pending if each.index is None]
        if len(unknown) > MAX_STRANGERS:
            self._ignore(unknown[0])

    def _drop_silent(self, now: float) -> None:
        for peer in [each for each in self.pending if each.index is None and now > each.deadline]:
            self._ignore(peer)

    def _ignore(self, peer: _PendingPeer) -> None:
        """Send away what is no process of this job; the first one is reported."""
        if not self.reported_stranger:
            self.reported_stranger = True
            self.report(
                f"note: a connection from {peer.address} to port {self.port} is ignored: it is no process of this job, "
                f"or has another {handshake.ENV_SECRET}"
            )
        self._drop(peer)

    def _receive(self, peer: _PendingPeer) -> None:
        try:
            new = peer.connection.recv(MAX_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            new = b""
        peer.text += new
        if not new or peer.index is not None:  # it has ended, or speaks when it should wait
            self._drop(peer)
        elif b"\n" in peer.text and (said := handshake.read_hello(peer.text, self.key, peer.greeted)):
            peer.nonce = said[1]
            self._register(peer, said[0])
        elif b"\n" in peer.text or len(peer.text) > MAX_LINE_BYTES:
            self._ignore(peer)

    def _drop(self, peer: _PendingPeer) -> None:
        self.selector.unregister(peer.connection)
        peer.connection.close()
        self.pending.remove(peer)

    def _register(self, peer: _PendingPeer, said: Hello) -> None:
        index, count, host = said.index, said.count, said.host
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
        for peer in self.pending:
            if not peer.nonce:  # it has not said who it is
                continue
            try:
                peer.connection.setblocking(True)
                peer.connection.settimeout(5)
                peer.connection.sendall(handshake.answer(answer, self.key, peer.nonce))
            except OSError:  # jax has its own time limit there
                continue


def _join(where: tuple[str, int], said: Hello, deadline: float, limit: float) -> Peer:
    while time.monotonic() < deadline + PORT_RELEASE_SECONDS:  # process 0 may have started later
        with suppress(OSError), ExitStack() as stack:  # OSError: not listening yet
            connection = stack.enter_context(socket.create_connection(where, timeout=5))
            answer = _exchange(connection, said, deadline)
            if answer.get("go"):
                stack.pop_all()  # keep it open
                return Peer(connection, handshake.clean_host(answer.get("host")))
            if "error" in answer:
                kind = UserError if answer["error"] == "UserError" else StoppedSafely
                raise kind(str(answer.get("message")))
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    raise StoppedSafely(
        f"process {said.index} ({said.host}): process 0 did not answer at {where[0]}:{where[1]} within {limit:g} s; "
        f"see that it runs, that its port can be reached and that {handshake.ENV_SECRET} is the same for all, and run "
        "the same command again"
    )


def _exchange(connection: socket.socket, said: Hello, deadline: float) -> dict[str, object]:
    """Process 0's answer; {} if another program answers. Raises OSError without an answer."""
    key, nonce = handshake.job_key(), handshake.make_nonce()
    connection.settimeout(POLL_SECONDS)
    greeted = handshake.read_greeting(_read_line(connection, min(deadline, time.monotonic() + HELLO_SECONDS)))
    if greeted is None:
        return {}
    connection.sendall(handshake.hello(said, key, greeted, nonce))
    return handshake.read_answer(_read_line(connection, deadline + PORT_RELEASE_SECONDS), key, nonce)


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    """The next line, or what there was of it when the connection ended or the time was over."""
    text = b""
    while b"\n" not in text and len(text) < MAX_LINE_BYTES and time.monotonic() < deadline:
        try:
            new = connection.recv(MAX_LINE_BYTES)
        except TimeoutError:
            continue
        if not new:
            break
        text += new
    return text.partition(b"\n")[0]
