"""Know which processes of a job are gone, by connections between process 0 and each other one.

The connections of a killed process close at once, while a collective may wait until jax misses its heartbeats. Messages
are lines of JSON, which process 0 passes on:

    {"gone": who, "index": i}           the connection of process i has closed
    {"left": i, "code": c, "why": text} process i ends in order, with exit code c
    {"ask": k}, {"here": i, "to": k}    process k asks who is there; process i is
"""

import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

MAX_MESSAGE_BYTES = 4096
GRACE_SECONDS = 3.0  # for this process to find the cause by itself, and for its watchdog to report a hang
LEAVE_SECONDS = 20.0  # for this process to end too, after another has ended in order before the run was done
SEND_SECONDS = 5.0  # for one message
MAX_WHY_CHARS = 300


class Peer(NamedTuple):
    connection: socket.socket  # to the other process
    host: str


class Departure(NamedTuple):
    """A process that has ended in order."""

    who: str
    code: int
    why: str


class PeerMonitor:
    """The other processes of this one's job, watched by a thread.

    `on_lost(which process)` is called in that thread when one is gone and this process has not left by itself.
    """

    def __init__(
        self, peers: Mapping[int, Peer], index: int, count: int, on_lost: Callable[[str], None] = lambda who: None
    ) -> None:
        """peers: of process 0 all others, of the others process 0. index: this process; count: of the job."""
        self.peers, self.index, self._on_lost = dict(peers), index, on_lost
        self.others = set(range(count)) - {index}
        self.lost: dict[int, str] = {}  # by index, what it is called
        self.left: dict[int, Departure] = {}
        self._closed: set[int] = set()
        self._here: set[int] = set()
        self._leaving = threading.Event()  # this process
        self._deadline: tuple[float, str] | None = None  # when to call on_lost, and with what
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._unread = dict.fromkeys(self.peers, b"")
        self._selector = selectors.DefaultSelector()
        for number, peer in self.peers.items():
            _keep_alive(peer.connection)
            self._selector.register(peer.connection, selectors.EVENT_READ, number)
        if self.peers:
            threading.Thread(target=self._watch, name="peer_monitor", daemon=True).start()

    # ---- what the main thread asks ---------------------------------------------------------------------------------

    def find_lost(self, limit: float) -> str | None:
        """Which process is gone, or does not answer within `limit` seconds; None if all are there or ended in order."""
        with self._changed:
            self._here.clear()
        self._send_all({"ask": self.index})
        with self._changed:
            self._changed.wait_for(lambda: self.lost or not self._awaited(), limit)
            if self.lost:
                return next(iter(self.lost.values()))
            silent = min(self._awaited(), default=None)
        return None if silent is None else f"{self._name(silent)}, which does not answer"

    def _awaited(self) -> set[int]:
        """Processes that have neither answered nor ended; none if process 0, which passes messages on, has ended."""
        if self.index != 0 and 0 in self._closed:
            return set()
        return self.others - self._here - self.left.keys()

    def leave(self, code: int, why: str = "") -> None:
        """Say that this process ends in order; whatever happens to the others from now on, `on_lost` is not called."""
        if not self._leaving.is_set():
            self._leaving.set()
            self._send_all({"left": self.index, "code": code, "why": why[:MAX_WHY_CHARS]})

    def wait_for_departures(self, limit: float) -> None:
        """Wait until all others have ended or `limit` seconds are over; process 0 does, whose end ends the others."""
        if self.index == 0:
            with self._changed:
                self._changed.wait_for(lambda: self.others <= self._closed, limit)

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        with self._selector:
            while self._selector.get_map() or self._deadline:
                wait = None if self._deadline is None else max(0.0, self._deadline[0] - time.monotonic())
                for key, _ in self._selector.select(wait):
                    self._receive(key.data, self.peers[key.data].connection)
                if self._leaving.is_set():
                    self._deadline = None
                elif self._deadline is not None and time.monotonic() >= self._deadline[0]:
                    who, self._deadline = self._deadline[1], None
                    self._on_lost(who)

    def _receive(self, number: int, connection: socket.socket) -> None:
        try:
            received = connection.recv(MAX_MESSAGE_BYTES)
        except OSError:
            received = b""
        *lines, rest = (self._unread[number] + received).split(b"\n")
        self._unread[number] = rest[:MAX_MESSAGE_BYTES]
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
                self._handle(number, json.loads(line))
        if not received:
            self._selector.unregister(connection)
            self._close(number)

    def _close(self, number: int) -> None:
        with self._changed:
            self._closed.add(number)
            self._changed.notify_all()
        if number not in self.left:
            self._lose(number, self._name(number))

    def _handle(self, sender: int, message: Mapping[str, Any]) -> None:
        if "ask" in message:
            asking = int(message["ask"])
            self._send(sender, {"here": self.index, "to": asking})
            self._pass_on(sender, message)
        elif "here" in message:
            if message["to"] == self.index:
                with self._changed:
                    self._here.add(int(message["here"]))
                    self._changed.notify_all()
            elif message["to"] in self.peers:
                self._send(message["to"], message)
        elif "left" in message:
            number = int(message["left"])
            departure = Departure(self._name(number), int(message["code"]), str(message["why"])[:MAX_WHY_CHARS])
            with self._changed:
                self.left[number] = departure
                self._changed.notify_all()
            if departure.code:  # not at the end of the run
                self._set_deadline(LEAVE_SECONDS, f"{departure.who}, which ended with exit code {departure.code}")
            self._pass_on(sender, message)
        else:
            self._lose(int(message["index"]), str(message["gone"])[:200])

    def _lose(self, number: int, who: str) -> None:
        with self._changed:
            self.lost[number] = who
            self._changed.notify_all()
        self._set_deadline(GRACE_SECONDS, who)
        if not self._leaving.is_set():
            self._pass_on(number, {"gone": who, "index": number})

    def _set_deadline(self, seconds: float, who: str) -> None:
        when = time.monotonic() + seconds
        if self._deadline is None or when < self._deadline[0]:
            self._deadline = when, who

    def _name(self, number: int) -> str:
        return f"process {number}" + (f" on {self.peers[number].host}" if number in self.peers else "")

    # ---- sending ---------------------------------------------------------------------------------------------------

    def _pass_on(self, sender: int, message: Mapping[str, Any]) -> None:
        if self.index == 0:
            self._send_all(message, but=sender)

    def _send_all(self, message: Mapping[str, Any], but: int | None = None) -> None:
        for number in self.peers:
            if number != but:
                self._send(number, message)

    def _send(self, number: int, message: Mapping[str, Any]) -> None:
        with suppress(OSError), self._sending:  # OSError: `_receive` finds out
            self.peers[number].connection.sendall(json.dumps(message).encode() + b"\n")


def _keep_alive(connection: socket.socket) -> None:
    """Keep the connection alive in routers and firewalls, which drop idle ones after ten minutes."""
    connection.settimeout(SEND_SECONDS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):
        if option := getattr(socket, name, None):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


current = PeerMonitor({}, 0, 1)  # of this process's job; without one there are no others


def start(peers: Mapping[int, Peer], index: int, count: int, on_lost: Callable[[str], None]) -> None:
    """Watch the other processes of this one's job from now on."""
    global current
    current = PeerMonitor(peers, index, count, on_lost)
