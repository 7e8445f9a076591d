"""Who is there: the processes of a job meet at the coordinator's port before jax takes it over.

jax waits for late processes without a word and then aborts. Here process 0 listens first, knows by number and host who
has come, and can say who has not. Whoever comes sends one line of JSON and keeps its connection open; when all are
there process 0 stops listening, tells everyone to go on, and the port is jax's. The connections stay (lifelines.py).
"""

import errno
import json
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from bertjax.errors import BertjaxError, StoppedSafely, UserError
from bertjax.parallel.lifelines import LINE, Peer

BEAT = 0.2  # seconds between looks at the clock
NEWS = 30.0  # seconds between two lines about who is missing
TAKEN = 60.0  # seconds that a former life of the job may need to give the port back


def meet(
    address: str, count: int, index: int, limit: float, say: Callable[[str], None] | None = None
) -> dict[int, Peer]:
    """Returns on every process once all `count` are there -> {number: peer}: to process 0 all others, to them 0 alone.

    address: host:port of process 0. limit: seconds. say: told by process 0 about who is missing; default: stderr.
    Raises StoppedSafely naming the missing ones after `limit` seconds, on all that came; UserError when two say they
    are the same process, when they do not agree on their number, and when the port is taken.
    """
    if count == 1:
        return {}
    host, port = split(address)
    until = time.monotonic() + limit
    if index == 0:
        with _Host(port, count, until, say or _say) as hosting:
            return hosting.wait(limit)
    return {0: _attend((host, port), count, index, until, limit)}


def split(address: str) -> tuple[str, int]:
    """host:port, an IPv6 host in brackets -> (host, port). Raises UserError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"coordinator address '{address[:100]}': must be host:port, such as 10.0.0.2:8476")
    return host.strip("[]"), int(port)


def numbers(found: Iterable[int]) -> str:
    """Process numbers as people write them: 1, 4-7, 12."""
    runs: list[list[int]] = []
    for number in sorted(found):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- process 0 ------------------------------------------------------------------------------------------------------


@dataclass
class _Guest:
    connection: socket.socket
    text: bytes = b""
    index: int | None = None
    host: str = ""


@dataclass
class _Host:
    """Process 0 while it waits for the others; leaving it closes every connection but those that `wait` returned."""

    port: int
    count: int
    until: float
    say: Callable[[str], None]
    guests: list[_Guest] = field(default_factory=list)
    kept: list[_Guest] = field(default_factory=list)

    def __enter__(self) -> "_Host":
        self.selector = selectors.DefaultSelector()
        self.door = self._listen()
        self.selector.register(self.door, selectors.EVENT_READ)
        return self

    def __exit__(self, *_: object) -> None:
        self.selector.close()
        self.door.close()
        for guest in self.guests:
            if guest not in self.kept:
                guest.connection.close()

    def _listen(self) -> socket.socket:
        until = min(self.until, time.monotonic() + TAKEN)
        while True:
            try:
                both = socket.has_dualstack_ipv6()
                family = socket.AF_INET6 if both else socket.AF_INET
                door = socket.create_server(("", self.port), family=family, backlog=self.count, dualstack_ipv6=both)
                door.setblocking(False)
                return door
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                    raise UserError(
                        f"port {self.port} of this host ({socket.gethostname()}): {error.strerror}; "
                        "choose another port for the coordinator, or end what uses this one"
                    ) from None
                time.sleep(BEAT)

    def wait(self, limit: float) -> dict[int, Peer]:
        news = time.monotonic() + NEWS
        while missing := self._missing():
            now = time.monotonic()
            if now > self.until:
                self._refuse(StoppedSafely(f"{self._absent(missing)} within {limit:g} s; run the same command again"))
            if now > news:
                self.say(f"waiting for process {numbers(missing)} of 0-{self.count - 1}")
                news = now + NEWS
            for key, _ in self.selector.select(BEAT):
                if key.fileobj is self.door:
                    self._welcome()
                else:
                    self._hear(key.data)
        self.selector.unregister(self.door)
        self.door.close()  # first: whoever goes on looks for jax behind this port
        self._tell({"go": True, "host": socket.gethostname()})
        self.kept = [guest for guest in self.guests if guest.index is not None]
        return {guest.index: Peer(guest.connection, guest.host) for guest in self.kept if guest.index is not None}

    def _missing(self) -> set[int]:
        return set(range(1, self.count)) - {guest.index for guest in self.guests if guest.index is not None}

    def _absent(self, missing: set[int]) -> str:
        there = {guest.index: guest.host for guest in self.guests if guest.index is not None}
        shown = [f"0 ({socket.gethostname()})", *(f"{i} ({there[i]})" for i in sorted(there))]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        who = "processes" if len(missing) > 1 else "process"
        return f"{who} {numbers(missing)} of {self.count} never arrived (there: {', '.join(shown[:8])}{more})"

    def _welcome(self) -> None:
        try:
            connection, _ = self.door.accept()
        except OSError:  # gone again before it was let in
            return
        connection.setblocking(False)
        guest = _Guest(connection)
        self.guests.append(guest)
        self.selector.register(connection, selectors.EVENT_READ, guest)

    def _hear(self, guest: _Guest) -> None:
        try:
            new = guest.connection.recv(LINE)
        except BlockingIOError:
            return
        except OSError:
            new = b""
        guest.text += new
        if not new or len(guest.text) > LINE or guest.index is not None:
            self._forget(guest)
        elif guest.text.endswith(b"\n"):
            self._admit(guest)

    def _forget(self, guest: _Guest) -> None:
        self.selector.unregister(guest.connection)
        guest.connection.close()
        self.guests.remove(guest)

    def _admit(self, guest: _Guest) -> None:
        try:
            said = json.loads(guest.text)
            index, count, host = int(said["process"]), int(said["of"]), str(said["host"])[:100]
        except (ValueError, KeyError, TypeError):  # somebody else's connection
            return self._forget(guest)
        if count != self.count:
            self._refuse(
                UserError(
                    f"process {index} ({host}) was told of {count} processes, process 0 ({socket.gethostname()}) of "
                    f"{self.count}; start every process with the same number"
                )
            )
        if twin := next((other for other in self.guests if other.index == index), None):
            where = "one host" if twin.host == host else "two hosts"
            self._refuse(
                UserError(
                    f"two processes say they are process {index} ({twin.host} and {host}, {where}); "
                    "give each process a number of its own"
                )
            )
        if not 0 < index < self.count:
            self._refuse(UserError(f"{host} says it is process {index}; they count from 0 to {self.count - 1}"))
        guest.index, guest.host = index, host

    def _refuse(self, error: BertjaxError) -> None:
        self._tell({"error": type(error).__name__, "message": str(error)})
        raise error

    def _tell(self, answer: dict[str, object]) -> None:
        text = json.dumps(answer).encode() + b"\n"
        for guest in self.guests:
            try:
                guest.connection.setblocking(True)
                guest.connection.settimeout(5)
                guest.connection.sendall(text)
            except OSError:  # it finds out by itself: jax has its own limit
                continue


# ---- the others -----------------------------------------------------------------------------------------------------


def _attend(where: tuple[str, int], count: int, index: int, until: float, limit: float) -> Peer:
    said = json.dumps({"process": index, "of": count, "host": socket.gethostname()}).encode() + b"\n"
    while time.monotonic() < until + TAKEN:  # process 0 may have begun to wait later than this one
        with suppress(OSError), ExitStack() as stack:  # OSError: there is nobody
            connection = stack.enter_context(socket.create_connection(where, timeout=5))
            answer = _ask(connection, said, until)
            if answer.get("go"):
                stack.pop_all()  # it stays open
                return Peer(connection, str(answer.get("host"))[:100])
            if "error" in answer:
                kind = UserError if answer["error"] == "UserError" else StoppedSafely
                raise kind(str(answer.get("message")))
        if time.monotonic() > until:
            break
        time.sleep(BEAT)
    raise StoppedSafely(
        f"process {index} ({socket.gethostname()}): process 0 did not answer at {where[0]}:{where[1]} within "
        f"{limit:g} s; see that it runs and that its port can be reached, and run the same command again"
    )


def _ask(connection: socket.socket, said: bytes, until: float) -> dict[str, object]:
    """Process 0's answer; {} when it is somebody else who answers. Raises OSError when nobody does."""
    connection.sendall(said)
    connection.settimeout(BEAT)
    text = b""
    while b"\n" not in text and len(text) < LINE and time.monotonic() < until + TAKEN:
        try:
            new = connection.recv(LINE)
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
